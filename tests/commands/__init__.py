"""The command line, on the emulator."""
