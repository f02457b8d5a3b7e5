"""`liftbridge group`: consumer groups, their members, and how far they are behind.

The API tells of a group by its id alone, and nobody but a member is told of assignments: asking for them is a
member's sign of life, so asking in its name would keep a dead one. What groups and members there are follows
from the joins and leaves in the activity stream; positions are the cursors that consumers store under the
name `__group:<id>`. Without the activity stream a group can still be described by its id, without its
members.

Lag is counted in offsets: what is committed in a partition and not yet handled by the group.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import trio

from liftbridge import client as lc
from liftbridge.cli.events import events
from liftbridge.cli.exits import CommandError, Exit
from liftbridge.cli.output import Output, note, plain
from liftbridge.cli.session import Parser, add_connection, run
from liftbridge.cli.stream import AT_A_TIME, INTERNAL
from liftbridge.cli.values import argument, check_text
from liftbridge.client import GroupInfo, StreamInfo

_ASKED = 1000  # groups in a call; their ids must fit into a request
_PREFIX = "__group:"

Members = Mapping[str, Sequence[str]]
"""Streams by consumer id."""


@dataclass(frozen=True)
class Position:
    """How far a group has come in a partition."""

    stream: str
    partition: int
    handled: int | None
    """Offset of the last message that was handled, None if none was."""
    end: int
    """Offset of the last committed message, -1 if there is none."""

    @property
    def lag(self) -> int | None:
        """Offsets between the two; None when nothing was handled: where the group begins is up to it."""
        return None if self.handled is None else max(0, self.end - self.handled)


def parser() -> argparse.ArgumentParser:
    """The command line of `liftbridge group`."""
    top = Parser(prog="liftbridge group", description="Look at consumer groups.")
    actions = top.add_subparsers(metavar="ACTION", required=True)
    listing = actions.add_parser("list", help="list the groups; needs the activity stream")
    listing.set_defaults(run=lambda options: run(options, _list))
    describe = actions.add_parser("describe", help="members, positions and lag of groups")
    describe.add_argument("group", nargs="+", type=argument(check_text), help="id of a group")
    describe.set_defaults(run=lambda options: run(options, _describe))
    for action in (listing, describe):
        add_connection(action)
    return top


async def members_of_groups(client: lc.Client) -> dict[str, dict[str, list[str]]]:
    """The members of all groups, with the streams they asked for, from the activity stream.

    Raises:
        CommandError: NOT_FOUND, there is no activity stream.
    """
    groups: dict[str, dict[str, list[str]]] = {}
    async for found in events(client, "earliest", "latest"):
        for event in found:
            group, consumer = str(event.detail.get("group_id")), str(event.detail.get("consumer_id"))
            if event.op == "join-consumer-group":
                streams = event.detail["streams"]
                assert isinstance(streams, list)
                groups.setdefault(group, {})[consumer] = streams
            elif event.op == "leave-consumer-group":
                groups.get(group, {}).pop(consumer, None)
    return groups


async def _existing(client: lc.Client, ids: Sequence[str]) -> dict[str, GroupInfo]:
    found: dict[str, GroupInfo] = {}
    for first in range(0, len(ids), _ASKED):
        # One stream is asked for, as none would mean all of them.
        asked = await client.metadata(streams=[INTERNAL[0]], groups=ids[first : first + _ASKED])
        found |= asked.groups
    return found


async def _list(options: argparse.Namespace, client: lc.Client, output: Output) -> None:
    try:
        members = await members_of_groups(client)
    except CommandError as error:
        text = f"groups cannot be listed: {error}. With its id, `liftbridge group describe ID` shows a group"
        raise CommandError(text, error.status) from error
    groups = await _existing(client, sorted(members))
    if output.as_json:
        for name, info in sorted(groups.items()):
            output.document(_document(info, members[name]))
    elif not groups and output.terminal:
        output.line("There are no consumer groups.")
    else:
        rows = [
            (
                name,
                len(members[name]),
                ",".join(_streams(members[name])) or "-",
                info.coordinator,
                info.epoch,
            )
            for name, info in sorted(groups.items())
        ]
        output.table(("GROUP", "MEMBERS", "STREAMS", "COORDINATOR", "EPOCH"), rows)


def _streams(members: Members) -> list[str]:
    return sorted({stream for streams in members.values() for stream in streams})


def _document(info: GroupInfo, members: Members | None) -> dict[str, object]:
    listed = None
    if members is not None:
        listed = [{"consumer": name, "streams": list(streams)} for name, streams in sorted(members.items())]
    return {"group": info.id, "coordinator": info.coordinator, "epoch": info.epoch, "members": listed}


async def _describe(options: argparse.Namespace, client: lc.Client, output: Output) -> None:
    groups = await _existing(client, options.group)
    missing = [name for name in options.group if name not in groups]
    members: dict[str, dict[str, list[str]]] | None = None
    try:
        members = await members_of_groups(client)
    except (CommandError, lc.PermissionDeniedError) as error:
        note(f"members are not known: {error}")
    streams = (await client.metadata()).streams
    for name in dict.fromkeys(options.group):
        if name in groups:
            of_group = None if members is None else members.get(name, {})
            positions = await _positions(client, name, of_group, streams)
            _show(output, groups[name], of_group, positions)
    if missing:
        text = f"there is no group {missing[0]!r}: it lives while it has members; see `liftbridge group list`"
        raise CommandError(text, Exit.NOT_FOUND)


async def _positions(
    client: lc.Client, group: str, members: Members | None, streams: Mapping[str, StreamInfo]
) -> list[Position]:
    """The partitions that members want, and those that the group has a cursor for."""
    wanted = set(_streams(members or {}))
    found: list[Position] = []
    limit = trio.CapacityLimiter(AT_A_TIME)

    async def ask(stream: str, number: int, end: int) -> None:
        async with limit:
            handled = await client.fetch_cursor(_PREFIX + group, stream, number)
        if handled >= 0 or stream in wanted:
            found.append(Position(stream, number, handled if handled >= 0 else None, end))

    try:
        async with trio.open_nursery() as nursery:
            for info in _looked_at(streams, wanted, known=members is not None):
                for number, partition in info.partitions.items():
                    nursery.start_soon(ask, info.name, number, partition.high_watermark)
    except BaseException as error:
        reason = _no_cursors(error)
        if reason is None:
            raise
        note(f"positions are not known: {reason}")
        return []
    return sorted(found, key=lambda position: (position.stream, position.partition))


def _looked_at(streams: Mapping[str, StreamInfo], wanted: set[str], *, known: bool) -> Iterable[StreamInfo]:
    return (info for name, info in streams.items() if name not in INTERNAL and (name in wanted or not known))


def _no_cursors(error: BaseException) -> str | None:
    """Why there are no positions, if that is what an exception says."""
    inner: Sequence[BaseException] = getattr(error, "exceptions", (error,))
    first = inner[0]
    return str(first) if isinstance(first, (lc.NotFoundError, lc.PermissionDeniedError)) else None


def _show(output: Output, info: GroupInfo, members: Members | None, positions: Sequence[Position]) -> None:
    lags = [position.lag for position in positions if position.lag is not None]
    if output.as_json:
        listed = [
            {
                "stream": position.stream,
                "partition": position.partition,
                "position": position.handled,
                "end": position.end,
                "lag": position.lag,
            }
            for position in positions
        ]
        output.document({**_document(info, members), "partitions": listed, "lag": sum(lags)})
        return
    if output.terminal:
        output.line(f"group        {plain(info.id)}")
        output.line(f"coordinator  {plain(info.coordinator)}")
        output.line(f"epoch        {info.epoch}")
        output.line(f"lag          {sum(lags)}\n")
        if members is not None:
            rows = [(name, ",".join(streams) or "-") for name, streams in sorted(members.items())]
            output.table(("MEMBER", "STREAMS"), rows)
            output.line("")
    output.table(
        ("GROUP", "STREAM", "PARTITION", "POSITION", "END", "LAG"),
        [
            (
                info.id,
                position.stream,
                position.partition,
                "-" if position.handled is None else position.handled,
                position.end,
                "-" if position.lag is None else position.lag,
            )
            for position in positions
        ],
    )
