"""A line on the terminal for what takes more than a second."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO

_PATIENCE = 1.0  # seconds
_WIDTH = 30


class Progress:
    """Says how many of the expected steps are done, once the first second is over; on standard error, if that is a
    terminal. The line is gone when the work is done."""

    def __init__(self, title: str, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._title, self._stream, self._clock = title, stream or sys.stderr, clock
        self._start, self._done, self._expected, self._shown = clock(), 0, 0, False

    def __enter__(self) -> Progress:
        return self

    def expect(self, steps: int) -> None:
        """So many more steps are to come."""
        self._expected += steps

    def step(self) -> None:
        """One more is done."""
        self._done += 1
        if self._stream.isatty() and self._clock() - self._start > _PATIENCE:
            bar = "#" * (_WIDTH * self._done // max(self._done, self._expected))
            self._write(f"\r{self._title[:60]} [{bar:{_WIDTH}}] {self._done}/{self._expected}")

    def __exit__(self, *error: object) -> None:
        if self._shown:
            self._write("\r\x1b[K")

    def _write(self, text: str) -> None:
        self._shown = True
        self._stream.write(text)
        self._stream.flush()
