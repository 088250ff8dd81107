"""Random histories of runs: the client's own code, in this process, against the emulator."""
