"""`liftbridge events`: the activity stream, decoded; and the events for whoever else needs them."""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator
from typing import NamedTuple

from google.protobuf.message import DecodeError

from liftbridge import client as lc
from liftbridge.cli.exits import CommandError, Exit
from liftbridge.cli.output import Output, as_json, note, plain, time_as_text
from liftbridge.cli.session import Parser, add_connection, run
from liftbridge.cli.subscribe import add_positions, batches, check_positions, watching
from liftbridge.client import StartPosition, StopPosition
from liftbridge.metadata.validation import ACTIVITY_STREAM
from liftbridge.proto import api_pb2

OFF = "the server has no activity stream: set activity.stream.enabled in its configuration and start it again"
_OPS = {number: name.lower().replace("_", "-") for name, number in api_pb2.ActivityStreamOp.items()}


class Event(NamedTuple):
    """One event of the activity stream."""

    offset: int
    timestamp: int
    id: int
    op: str
    """Such as `create-stream`."""
    detail: dict[str, object]
    """The fields of the operation."""


def parser() -> argparse.ArgumentParser:
    """The command line of `liftbridge events`."""
    top = Parser(
        prog="liftbridge events",
        description="Print what happened to streams and consumer groups, then what happens.",
    )
    add_positions(top)
    chosen = top.add_argument_group("filters", "An event is printed when all of them fit.")
    chosen.add_argument(
        "--op", action="append", choices=sorted(_OPS.values()), help="may be repeated: any of them"
    )
    chosen.add_argument("--stream", metavar="NAME", help="of this stream")
    chosen.add_argument("--group", metavar="ID", help="of this consumer group")
    add_connection(top)
    top.set_defaults(
        run=lambda options: run(options, _print, endless=options.stop is None, outlast=options.follow)
    )
    return top


async def events(
    client: lc.Client, start: StartPosition, stop: StopPosition, live: list[lc.Subscription] | None = None
) -> AsyncIterator[list[Event]]:
    """Events as they come, some at a time; each id once, as an event may be stored twice.

    Raises:
        CommandError: NOT_FOUND, there is no activity stream.
    """
    last = 0
    subscription = client.subscribe(ACTIVITY_STREAM, start=start, stop=stop)
    try:
        async for batch in batches(subscription, stop, [] if live is None else live):
            found = []
            for message in batch:
                event = _decoded(message)
                if event is not None and event.id > last:
                    last = event.id
                    found.append(event)
            yield found
    except lc.StreamDeletedError:
        raise
    except lc.NotFoundError as error:
        raise CommandError(OFF, Exit.NOT_FOUND) from error


def _decoded(message: lc.Message) -> Event | None:
    """The event in a message; None if it is none: whoever can publish on the subject can put it there."""
    try:
        event = api_pb2.ActivityStreamEvent.FromString(message.value)
    except DecodeError:
        return None
    detail: dict[str, object] = {}
    for described, value in event.ListFields():
        if described.message_type is not None:
            # All of them, also those that have their default value.
            for entry in described.message_type.fields:
                found = getattr(value, entry.name)
                detail[_snake(entry.name)] = found if isinstance(found, (str, int)) else list(found)
    return Event(message.offset, message.timestamp, event.id, _OPS.get(event.op, f"op-{event.op}"), detail)


def _snake(name: str) -> str:
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in name)


async def _print(options: argparse.Namespace, client: lc.Client, output: Output) -> None:
    start, stop = check_positions(options)
    live: list[lc.Subscription] = []
    async with watching(live):
        async for found in events(client, start, stop, live):
            lines = [_line(event, output) for event in found if _wanted(event, options)]
            if lines:
                await output.stream(b"".join(lines))
    if stop is None:
        note("the activity stream is read-only and was read to its end")


def _wanted(event: Event, options: argparse.Namespace) -> bool:
    if options.op is not None and event.op not in options.op:
        return False
    detail = event.detail
    streams = detail.get("streams", ())
    assert isinstance(streams, (list, tuple))
    if options.stream is not None and options.stream not in (detail.get("stream"), *streams):
        return False
    return options.group is None or detail.get("group_id") == options.group


def _line(event: Event, output: Output) -> bytes:
    if output.as_json:
        known = {
            "id": event.id,
            "op": event.op,
            "timestamp": event.timestamp,
            "time": time_as_text(event.timestamp),
        }
        return as_json(known | event.detail)
    return f"{time_as_text(event.timestamp)}\t{event.id}\t{event.op}\t{_words(event)}\n".encode(
        errors="backslashreplace"
    )


def _words(event: Event) -> str:
    parts = []
    for name, value in event.detail.items():
        shown = ",".join(map(str, value)) if isinstance(value, list) else str(value)
        if isinstance(value, bool):
            shown = str(value).lower()
        parts.append(f"{name}={plain(shown)}")
    return " ".join(parts)
