"""`liftbridge cursor`: read and set the positions that consumers have stored."""

from __future__ import annotations

import argparse

from liftbridge import client as lc
from liftbridge.cli.exits import CommandError, Exit
from liftbridge.cli.output import Output, plain
from liftbridge.cli.session import Parser, add_connection, completes, run
from liftbridge.cli.values import MAX_OFFSET, argument, check_text, whole


def parser() -> argparse.ArgumentParser:
    """The command line of `liftbridge cursor`."""
    top = Parser(prog="liftbridge cursor", description="Read and set stored positions.")
    actions = top.add_subparsers(metavar="ACTION", required=True)
    get = actions.add_parser("get", help="print the offset that was stored last")
    _add_place(get)
    get.set_defaults(run=lambda options: run(options, _get))
    put = actions.add_parser("set", help="store an offset")
    _add_place(put)
    put.add_argument("offset", type=whole(-MAX_OFFSET - 1, MAX_OFFSET))
    put.set_defaults(run=lambda options: run(options, _set))
    for action in (get, put):
        add_connection(action)
    return top


def _add_place(action: argparse.ArgumentParser) -> None:
    action.add_argument("cursor", type=argument(check_text), help="name of the cursor")
    completes(action.add_argument("stream", type=argument(check_text)), "stream")
    action.add_argument("--partition", "-p", type=whole(0), default=0, metavar="N", help="(default: 0)")


async def _get(options: argparse.Namespace, client: lc.Client, output: Output) -> None:
    offset = await client.fetch_cursor(options.cursor, options.stream, options.partition)
    if offset == -1:
        text = (
            f"there is no cursor {options.cursor!r} for partition {options.partition} of stream "
            f"{options.stream!r}; `liftbridge cursor set` makes one"
        )
        raise CommandError(text, Exit.NOT_FOUND)
    output.told(str(offset), _document(options, offset))


async def _set(options: argparse.Namespace, client: lc.Client, output: Output) -> None:
    await client.set_cursor(options.cursor, options.stream, options.partition, options.offset)
    place = f"partition {options.partition} of stream {plain(options.stream)}"
    output.told(
        f"cursor {plain(options.cursor)} is at offset {options.offset} of {place}",
        _document(options, options.offset),
    )


def _document(options: argparse.Namespace, offset: int) -> dict[str, object]:
    return {
        "cursor": options.cursor,
        "stream": options.stream,
        "partition": options.partition,
        "offset": offset,
    }
