"""A progress bar on a terminal, and nothing anywhere else."""

from __future__ import annotations

import sys
from typing import TextIO

PROGRESS_SECONDS = 0.1
_WIDTH = 30


class Progress:
    """Shows how far a run is, as long as its block lasts.

    Args:
        total: what `update` counts up to.
        label: what is running.
        stream: where to show it; only a terminal gets anything.
        wanted: False shows nothing even there.
    """

    def __init__(self, total: int, label: str, stream: TextIO | None = None, *, wanted: bool = True) -> None:
        self._stream = sys.stderr if stream is None else stream
        self.shown = wanted and self._stream.isatty()
        self._total = max(1, total)
        self._label = label

    def update(self, done: int, total: int | None = None) -> None:
        """Show that `done` of the total are done; `total` replaces the one there was."""
        if self.shown:
            self._total = max(1, total or self._total)
            share = min(1.0, done / self._total)
            bar = "#" * int(share * _WIDTH)
            self._stream.write(f"\r{self._label}  [{bar:<{_WIDTH}}] {share:4.0%}")
            self._stream.flush()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.shown:
            self._stream.write("\r\x1b[K")  # take the bar away
            self._stream.flush()
