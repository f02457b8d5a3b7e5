"""`liftbridge top`: a live table of streams and how fast they grow.

Rates are the differences of offsets between two looks at the metadata, so they count what was stored by
whichever way it came, and cost the server one call in an interval. A server that is away for a while leaves a
note in the table, not an end.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import trio

from liftbridge import client as lc
from liftbridge.cli.output import Output, note, plain, time_as_text
from liftbridge.cli.session import Parser, add_connection, run
from liftbridge.cli.stream import INTERNAL, messages_of, state_of
from liftbridge.cli.values import argument, seconds, whole
from liftbridge.client import StreamInfo

_ALTERNATE, _MAIN = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
_HOME, _REST_OF_LINE, _REST = "\x1b[H", "\x1b[K", "\x1b[J"
_HEADINGS = ("STREAM", "PARTITIONS", "OFFSETS", "MSG/S", "STATE", "LAST RECEIVED")


@dataclass(frozen=True)
class Row:
    """A stream in one look."""

    name: str
    partitions: int
    messages: int
    rate: float
    state: str
    received: int
    """When the last message came, 0 for never."""


def parser() -> argparse.ArgumentParser:
    """The command line of `liftbridge top`."""
    top = Parser(prog="liftbridge top", description="Show streams and how fast they grow, until Ctrl-C.")
    top.add_argument(
        "--interval", "-i", type=argument(seconds), default=1.0, metavar="SECONDS", help="(default: 1)"
    )
    top.add_argument("--count", "-n", type=whole(1), metavar="N", help="stop after so many looks")
    top.add_argument("--sort", choices=("rate", "offsets", "name"), default="rate", help="(default: rate)")
    top.add_argument("--all", action="store_true", help="the server's own streams, too")
    add_connection(top)
    top.set_defaults(run=lambda options: run(options, _top, endless=options.count is None))
    return top


async def _top(options: argparse.Namespace, client: lc.Client, output: Output) -> None:
    live = output.terminal and not output.as_json
    if live:
        output.write(_ALTERNATE.encode())
    try:
        await _look(options, client, output, live=live)
    finally:
        if live:
            output.write(_MAIN.encode())


async def _look(options: argparse.Namespace, client: lc.Client, output: Output, *, live: bool) -> None:
    before: Mapping[str, StreamInfo] = (await client.metadata()).streams
    seen = trio.current_time()
    looks = 0
    problem = ""
    rows: list[Row] = []
    while options.count is None or looks < options.count:
        await trio.sleep(options.interval)
        try:
            streams = (await client.metadata()).streams
        except (lc.UnavailableError, lc.DeadlineExceededError) as error:
            problem = f"no answer: {error.message}"
            if not live:
                note(problem)
        else:
            problem = ""
            now = trio.current_time()
            chosen = [info for info in streams.values() if options.all or info.name not in INTERNAL]
            rows = [_row(info, before.get(info.name), now - seen) for info in chosen]
            rows.sort(key=_order(options.sort))
            before, seen = streams, now
            looks += 1
            if not live:
                await _print(output, rows)
        if live:
            await output.stream(_screen(output, options, rows, problem).encode(errors="backslashreplace"))


def _row(info: StreamInfo, before: StreamInfo | None, elapsed: float) -> Row:
    messages = messages_of(info)
    same = before is not None and before.creation_timestamp == info.creation_timestamp
    earlier = messages_of(before) if before is not None and same else 0
    partitions = info.partitions.values()
    return Row(
        info.name,
        len(info.partitions),
        messages,
        max(0, messages - earlier) / elapsed,
        state_of(partitions),
        max((partition.received.latest for partition in partitions), default=0),
    )


def _order(word: str) -> Callable[[Row], Any]:
    if word == "rate":
        return lambda row: (-row.rate, row.name)
    if word == "offsets":
        return lambda row: (-row.messages, row.name)
    return lambda row: row.name


def _cells(row: Row) -> tuple[object, ...]:
    rate = f"{row.rate:.1f}" if 0 < row.rate < 10 else f"{row.rate:.0f}"
    return row.name, row.partitions, row.messages, rate, row.state, time_as_text(row.received)


async def _print(output: Output, rows: list[Row]) -> None:
    if output.as_json:
        for row in rows:
            output.document(
                {
                    "stream": row.name,
                    "partitions": row.partitions,
                    "messages": row.messages,
                    "rate": round(row.rate, 3),
                    "state": row.state,
                    "last_received": row.received,
                }
            )
    else:
        await output.stream(output.table_text(_HEADINGS, [_cells(row) for row in rows]).encode())


def _screen(output: Output, options: argparse.Namespace, rows: list[Row], problem: str) -> str:
    """What a terminal is to show: as many rows as fit, each cut off at its edge."""
    size = shutil.get_terminal_size()
    total = sum(row.rate for row in rows)
    head = problem or f"{len(rows)} streams, {total:.0f} messages a second, every {options.interval:g} s"
    shown = rows[: max(1, size.lines - 4)]
    lines = [plain(head)[: size.columns], ""]
    table = output.table_text(_HEADINGS, [_cells(row) for row in shown]).splitlines()
    # The heading's first characters may be those that make it bold.
    lines += [table[0], *(line[: size.columns] for line in table[1:])]
    if len(shown) < len(rows):
        lines.append(f"... and {len(rows) - len(shown)} more")
    return _HOME + "".join(f"{line}{_REST_OF_LINE}\r\n" for line in lines) + _REST
