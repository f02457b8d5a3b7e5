"""What a command prints: tables for people, tab-separated lines for pipes, JSON for programs.

What comes from a server or a message was chosen by others. In text, everything that is not printable is shown
as an escape, so that no message moves a cursor, changes a terminal or passes for two lines; JSON is ASCII.
`--raw` of `liftbridge subscribe` is the only way around that.

Everything goes to the descriptor in one piece and is not kept here: what was printed has been printed,
however the command ends.
"""

from __future__ import annotations

import json
import os
import select
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timezone

import trio

_BOLD, _PLAIN = "\x1b[1m", "\x1b[0m"


class Output:
    """Standard output of a command."""

    def __init__(self, *, as_json: bool, descriptor: int = 1) -> None:
        self.as_json = as_json
        self._descriptor = descriptor
        self.terminal = os.isatty(descriptor)
        # https://no-color.org: set and not empty, whatever the value.
        self.color = self.terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"

    def write(self, data: bytes) -> None:
        """Write all of it, waiting for the reader. Raises BrokenPipeError when there is none any more."""
        view = memoryview(data)
        while view:
            # Whoever started this command may share a non-blocking descriptor with it.
            select.select([], [self._descriptor], [])
            with suppress(BlockingIOError):
                view = view[os.write(self._descriptor, view) :]

    async def stream(self, data: bytes) -> None:
        """`write` while everything else goes on; for what may be much."""
        await trio.to_thread.run_sync(self.write, data, abandon_on_cancel=True)

    def line(self, text: str) -> None:
        """A line for people; nothing with --json, where `document` says the same."""
        if not self.as_json:
            self.write(f"{text}\n".encode(errors="backslashreplace"))

    def document(self, document: Mapping[str, object]) -> None:
        """A JSON object in a line of its own; nothing without --json."""
        if self.as_json:
            self.write(as_json(document))

    def told(self, text: str, document: Mapping[str, object]) -> None:
        """What a command has done: the line, or the object with --json."""
        self.line(text)
        self.document(document)

    def table(self, headings: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Rows: aligned below headings on a terminal, else separated by tabs and without headings."""
        if not self.as_json:
            self.write(self.table_text(headings, rows).encode(errors="backslashreplace"))

    def table_text(self, headings: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
        """What `table` writes."""
        cells = [[plain(str(cell)) for cell in row] for row in rows]
        if not self.terminal:
            return "".join("\t".join(row) + "\n" for row in cells)
        widths = [max(len(cell) for cell in column) for column in zip(headings, *cells, strict=True)]
        numeric = [bool(rows) and all(_is_number(row[i]) for row in rows) for i in range(len(headings))]
        lines = [_aligned(row, widths, numeric) for row in cells]
        head = _aligned(headings, widths, numeric)
        return "".join(f"{line}\n" for line in [self.bold(head), *lines])

    def bold(self, text: str) -> str:
        """The text, bold where colours are wanted."""
        return f"{_BOLD}{text}{_PLAIN}" if self.color else text


def note(text: str) -> None:
    """Something to know that is no result, on standard error."""
    print(f"liftbridge: {plain(text)}", file=sys.stderr, flush=True)


def as_json(document: Mapping[str, object]) -> bytes:
    """An object as a line."""
    return json.dumps(document, separators=(", ", ": ")).encode() + b"\n"


def plain(text: str) -> str:
    """Text with everything that is not printable as an escape."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def bytes_as_text(data: bytes) -> str:
    """Bytes for people: as UTF-8, what is none as an escape."""
    return plain(data.decode(errors="backslashreplace"))


def bytes_as_json(name: str, data: bytes) -> dict[str, str]:
    """A field of a JSON object: the text, or, when it is no UTF-8, `<name>_base64`."""
    try:
        return {name: data.decode()}
    except UnicodeDecodeError:
        import base64

        return {f"{name}_base64": base64.b64encode(data).decode()}


def time_as_text(nanoseconds: int) -> str:
    """A time in UTC to the millisecond; `-` for 0, which means never."""
    if not nanoseconds:
        return "-"
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    try:
        moment = datetime.fromtimestamp(seconds, timezone.utc)
    except (ValueError, OverflowError, OSError):
        return str(nanoseconds)  # a clock that was never set
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{rest // 1_000_000:03}Z"


def _is_number(cell: object) -> bool:
    return str(cell).replace(".", "", 1).lstrip("-").isdecimal() or cell == "-"


def _aligned(row: Sequence[str], widths: Sequence[int], numeric: Sequence[bool]) -> str:
    cells = [
        f"{cell:>{width}}" if right else f"{cell:<{width}}"
        for cell, width, right in zip(row, widths, numeric, strict=True)
    ]
    return "  ".join(cells).rstrip()
