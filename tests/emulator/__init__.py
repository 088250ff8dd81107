"""Tests of the emulator, by real clients where there are any."""
