"""`liftbridge stream`: create, list, look at, delete, pause, resume, and make read-only.

There is no call that resumes a partition. What resumes it without writing into its log is a subscription that
asks for that; so `resume` opens one at the end of the partition and closes it as soon as it is live.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable

import trio

from liftbridge import client as lc
from liftbridge.cli.exits import CommandError, Exit
from liftbridge.cli.output import Output, plain, time_as_text
from liftbridge.cli.session import Parser, add_connection, completes, run
from liftbridge.cli.values import MAX_OFFSET, argument, duration, whole
from liftbridge.client import PartitionInfo, StreamInfo
from liftbridge.metadata.validation import ACTIVITY_STREAM, CURSORS_STREAM, SETTING_WORDS

INTERNAL = (ACTIVITY_STREAM, CURSORS_STREAM)
AT_A_TIME = 16  # calls to leaders

_NUMBERS = (
    ("--retention-max-bytes", whole(0, MAX_OFFSET), "N", "keep so many bytes of a partition, 0 for all"),
    (
        "--retention-max-messages",
        whole(0, MAX_OFFSET),
        "N",
        "keep so many messages of a partition, 0 for all",
    ),
    (
        "--retention-max-age",
        argument(duration),
        "DURATION",
        "keep messages for so long, such as 7d; 0s for ever",
    ),
    ("--cleaner-interval", argument(duration), "DURATION", "how often old messages are looked for"),
    ("--segment-max-bytes", whole(0, MAX_OFFSET), "N", "begin a new file at this size"),
    ("--segment-max-age", argument(duration), "DURATION", "begin a new file after so long"),
    (
        "--auto-pause-time",
        argument(duration),
        "DURATION",
        "pause a partition that is idle for so long, 0s for never",
    ),
    ("--min-isr", whole(0), "N", "replicas that must be in sync for messages to be committed"),
)
_SWITCHES = (
    ("--compact-enabled", "keep only the newest message of each key"),
    ("--auto-pause-disable-if-subscribers", "do not pause while somebody subscribes"),
    ("--optimistic-concurrency-control", "check the offset that a publisher expects"),
    ("--encryption", "encrypt it on disk"),
)


def parser() -> argparse.ArgumentParser:
    """The command line of `liftbridge stream`."""
    top = Parser(prog="liftbridge stream", description="Create, look at and change streams.")
    actions = top.add_subparsers(metavar="ACTION", required=True)
    _add_create(actions.add_parser("create", help="create a stream on a NATS subject"))

    listing = actions.add_parser("list", help="list the streams")
    listing.add_argument("--all", action="store_true", help="the server's own streams, too")
    _finish(listing, _list)

    info = actions.add_parser("info", help="show a stream and its partitions")
    _add_name(info)
    _finish(info, _info)

    delete = actions.add_parser("delete", help="delete a stream and its messages")
    _add_name(delete)
    delete.add_argument("--yes", "-y", action="store_true", help="do not ask, even on a terminal")
    delete.set_defaults(run=_delete_command)
    add_connection(delete)

    pause = actions.add_parser("pause", help="record nothing until a publish or a subscription resumes it")
    _add_name(pause)
    _add_partitions(pause)
    pause.add_argument(
        "--resume-all", action="store_true", help="a publish to one partition resumes all that are paused"
    )
    _finish(pause, _pause)

    resume = actions.add_parser("resume", help="resume what is paused")
    _add_name(resume)
    _add_partitions(resume)
    _finish(resume, _resume)

    readonly = actions.add_parser("readonly", help="refuse new messages")
    _add_name(readonly)
    _add_partitions(readonly)
    readonly.add_argument("--off", action="store_true", help="accept messages again")
    _finish(readonly, _readonly)
    return top


def _add_create(create: argparse.ArgumentParser) -> None:
    create.add_argument("name")
    create.add_argument("--subject", help="NATS subject to record, wildcards allowed (default: the name)")
    create.add_argument("--partitions", type=whole(1), default=1, metavar="N", help="(default: 1)")
    create.add_argument(
        "--replication-factor",
        type=whole(-1),
        default=1,
        metavar="N",
        help="copies, -1 for one on every server",
    )
    create.add_argument("--group", default="", help="load-balance group (NATS queue group)")
    settings = create.add_argument_group("settings", "What is left out is as the server has it.")
    for flag, kind, metavar, text in _NUMBERS:
        settings.add_argument(flag, type=kind, metavar=metavar, help=text)
    for flag, text in _SWITCHES:
        settings.add_argument(flag, action=argparse.BooleanOptionalAction, help=text)
    settings.add_argument("--compression", choices=SETTING_WORDS["compression"], help="how it is stored")
    settings.add_argument(
        "--sync-policy", choices=SETTING_WORDS["sync_policy"], help="when messages are forced to disk"
    )
    _finish(create, _create)


def _finish(action: argparse.ArgumentParser, work: object) -> None:
    action.set_defaults(run=lambda options: run(options, work))  # type: ignore[arg-type]
    add_connection(action)


def _add_name(action: argparse.ArgumentParser) -> None:
    completes(action.add_argument("name", help="name of the stream"), "stream")


def _add_partitions(action: argparse.ArgumentParser) -> None:
    action.add_argument(
        "--partition",
        "-p",
        type=whole(0),
        action="append",
        default=[],
        metavar="N",
        help="only this one; may be repeated (default: all)",
    )


async def _create(options: argparse.Namespace, client: lc.Client, output: Output) -> None:
    flags = [flag for flag, *_ in (*_NUMBERS, *_SWITCHES)] + ["--compression", "--sync-policy"]
    names = [flag[2:].replace("-", "_") for flag in flags]
    subject = options.subject if options.subject is not None else options.name
    await client.create_stream(
        options.name,
        subject,
        partitions=options.partitions,
        replication_factor=options.replication_factor,
        group=options.group,
        **{name: getattr(options, name) for name in names},
    )
    output.told(
        f"stream {plain(options.name)} records {plain(subject)}",
        {"stream": options.name, "subject": subject, "partitions": options.partitions},
    )


async def _list(options: argparse.Namespace, client: lc.Client, output: Output) -> None:
    found = (await client.metadata()).streams.values()
    streams = sorted(
        (info for info in found if options.all or info.name not in INTERNAL), key=lambda info: info.name
    )
    if output.as_json:
        for info in streams:
            output.document(
                {
                    "stream": info.name,
                    "subject": info.subject,
                    "partitions": len(info.partitions),
                    "messages": messages_of(info),
                    "state": state_of(info.partitions.values()),
                    "created": info.creation_timestamp,
                }
            )
    elif not streams and output.terminal:
        output.line("There are no streams; `liftbridge stream create NAME` makes one.")
    else:
        rows = [
            (
                info.name,
                info.subject,
                len(info.partitions),
                messages_of(info),
                state_of(info.partitions.values()),
                time_as_text(info.creation_timestamp),
            )
            for info in streams
        ]
        output.table(("STREAM", "SUBJECT", "PARTITIONS", "OFFSETS", "STATE", "CREATED"), rows)


def messages_of(info: StreamInfo) -> int:
    """How many offsets of a stream are taken: messages ever stored, whatever retention has removed."""
    return sum(partition.newest_offset + 1 for partition in info.partitions.values())


def state_of(partitions: Iterable[PartitionInfo]) -> str:
    """What is special about partitions: `paused`, `readonly`, both, or `open`; `partly` if it is not all."""
    known = list(partitions)
    words = []
    for word, count in (
        ("paused", sum(partition.paused for partition in known)),
        ("readonly", sum(partition.readonly for partition in known)),
    ):
        if count:
            words.append(word if count == len(known) else f"partly {word}")
    return ", ".join(words) or "open"


async def _info(options: argparse.Namespace, client: lc.Client, output: Output) -> None:
    info = await client.stream(options.name)
    partitions = await exact_partitions(client, info)
    if output.as_json:
        output.document(
            {
                "stream": info.name,
                "subject": info.subject,
                "created": info.creation_timestamp,
                "partitions": [_partition_document(partition) for partition in partitions],
            }
        )
        return
    output.line(f"stream   {plain(info.name)}")
    output.line(f"subject  {plain(info.subject)}")
    output.line(f"created  {time_as_text(info.creation_timestamp)}\n")
    rows = [
        (
            partition.id,
            partition.high_watermark,
            partition.newest_offset,
            state_of([partition]),
            partition.leader or "-",
            f"{len(partition.isr)}/{len(partition.replicas)}",
            time_as_text(partition.received.latest),
        )
        for partition in partitions
    ]
    output.table(("PARTITION", "COMMITTED", "NEWEST", "STATE", "LEADER", "IN SYNC", "LAST RECEIVED"), rows)


async def exact_partitions(client: lc.Client, info: StreamInfo) -> list[PartitionInfo]:
    """The partitions of a stream as their leaders know them; as the server asked first does, where a leader
    cannot be asked: it is paused, away, or does not talk to this client."""
    found = dict(info.partitions)
    limit = trio.CapacityLimiter(AT_A_TIME)

    async def ask(number: int) -> None:
        async with limit:
            try:
                found[number] = await client.partition(info.name, number)
            except lc.RpcError:
                return

    async with trio.open_nursery() as nursery:
        for number, partition in info.partitions.items():
            if not partition.paused:
                nursery.start_soon(ask, number)
    return [found[number] for number in sorted(found)]


def _partition_document(partition: PartitionInfo) -> dict[str, object]:
    return {
        "partition": partition.id,
        "high_watermark": partition.high_watermark,
        "newest_offset": partition.newest_offset,
        "paused": partition.paused,
        "readonly": partition.readonly,
        "leader": partition.leader,
        "replicas": sorted(partition.replicas),
        "isr": sorted(partition.isr),
        "last_received": partition.received.latest,
    }


def _delete_command(options: argparse.Namespace) -> int:
    # Asked before there is a connection, which nobody keeps alive while a person thinks.
    if not options.yes and not options.json and sys.stdin.isatty() and sys.stderr.isatty():
        sys.stderr.write(f"Delete stream {plain(options.name)} and all its messages? [y/N] ")
        sys.stderr.flush()
        try:
            answer = sys.stdin.readline()
        except KeyboardInterrupt:
            return Exit.INTERRUPTED
        if answer.strip().lower() not in ("y", "yes"):
            sys.stderr.write("Nothing was deleted.\n")
            return Exit.FAILED
    return run(options, _delete)


async def _delete(options: argparse.Namespace, client: lc.Client, output: Output) -> None:
    await client.delete_stream(options.name)
    output.told(f"stream {plain(options.name)} is deleted", {"stream": options.name, "deleted": True})


async def _pause(options: argparse.Namespace, client: lc.Client, output: Output) -> None:
    await client.pause_stream(options.name, options.partition, resume_all=options.resume_all)
    output.told(f"{_what(options)} paused", _changed(options, paused=True))


async def _resume(options: argparse.Namespace, client: lc.Client, output: Output) -> None:
    info = await client.stream(options.name)
    wanted = options.partition or sorted(info.partitions)
    for number in wanted:
        if number not in info.partitions:
            text = f"stream {options.name!r} has no partition {number}; `liftbridge stream info` shows them"
            raise CommandError(text, Exit.NOT_FOUND)
    paused = [number for number in wanted if info.partitions[number].paused]
    for number in paused:
        async with client.subscribe(options.name, number, start="new", resume=True):
            pass
    text = f"{_what(options)} resumed" if paused else f"nothing of stream {plain(options.name)} was paused"
    output.told(text, {"stream": options.name, "partitions": wanted, "resumed": paused})


async def _readonly(options: argparse.Namespace, client: lc.Client, output: Output) -> None:
    await client.set_readonly(options.name, options.partition, readonly=not options.off)
    text = f"{_what(options)} {'writable' if options.off else 'read-only'}"
    output.told(text, _changed(options, readonly=not options.off))


def _what(options: argparse.Namespace) -> str:
    if not options.partition:
        return f"stream {plain(options.name)} is"
    numbers = ", ".join(str(number) for number in options.partition)
    verb = "s {} of stream {} are" if len(options.partition) > 1 else " {} of stream {} is"
    return "partition" + verb.format(numbers, plain(options.name))


def _changed(options: argparse.Namespace, **state: bool) -> dict[str, object]:
    return {"stream": options.name, "partitions": options.partition or "all", **state}
