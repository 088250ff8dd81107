"""What a person reads while a run goes on: plain lines, results on stdout, trouble on stderr."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Mapping
from typing import BinaryIO, TextIO


class Console:
    """Prints phases with their seconds, the training's own log, and a summary.

    Args:
        quiet: print nothing but warnings, for callers from Python.
    """

    def __init__(
        self, *, quiet: bool = False, out: TextIO | None = None, err: TextIO | None = None
    ) -> None:
        self._quiet = quiet
        self._out = out or sys.stdout
        self._err = err or sys.stderr
        self._started = time.monotonic()
        self._ends_in_newline = True
        self._lock = threading.RLock()  # the log may come from a thread of its own

    @property
    def is_quiet(self) -> bool:
        return self._quiet

    def phase(self, name: str, seconds: float | None, detail: str = "") -> None:
        """One line for a phase that has ended (``seconds``) or begins now (None)."""
        duration = f"{seconds:7.1f} s" if seconds is not None else " " * 9
        self.say(f"  {name:<12}{duration}  {detail}".rstrip())

    def say(self, text: str) -> None:
        if self._quiet:
            return
        try:
            with self._lock:
                self._fresh_line()
                print(text, file=self._out, flush=True)
        except OSError:
            self._quiet = True  # whoever read us is gone; the run is not

    def warn(self, text: str) -> None:
        with contextlib.suppress(OSError), self._lock:
            self._fresh_line()
            # A warning may quote anything; stderr of its own accord escapes what it cannot print.
            encoding = self._err.encoding or "utf-8"
            text = text.encode(encoding, "backslashreplace").decode(encoding)
            print(f"mlflow-gce: {text}", file=self._err, flush=True)

    def log(self, piece: bytes) -> None:
        """A piece of the training's log, byte for byte where the terminal takes bytes."""
        if self._quiet or not piece:
            return
        try:
            with self._lock:
                self._write(piece)
        except OSError:
            self._quiet = True

    def _write(self, piece: bytes) -> None:
        buffer: BinaryIO | None = getattr(self._out, "buffer", None)
        if buffer is not None:
            self._out.flush()
            buffer.write(piece)
            buffer.flush()
        else:
            self._out.write(piece.decode("utf-8", "replace"))
        self._ends_in_newline = piece.endswith(b"\n")

    def table(self, title: str, rows: Mapping[str, str]) -> None:
        """A titled list of names and values, the values in one column."""
        if not rows:
            return
        self.say(title)
        width = max(map(len, rows)) + 1
        for name, value in rows.items():
            self.say(f"  {f'{name}:':<{width}} {value}")

    def _fresh_line(self) -> None:
        if not self._ends_in_newline:
            print(file=self._out)
            self._ends_in_newline = True
