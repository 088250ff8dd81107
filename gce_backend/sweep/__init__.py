"""Sweeps: one command, many instances, one table to compare; see docs/sweeps.md."""
