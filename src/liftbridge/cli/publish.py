"""`liftbridge publish`: one message, or all of a file or a pipe.

By default the name is a NATS subject, and whatever streams record it get the message; with `--stream` it is
the name of a stream, which allows partitions and many messages in flight; with `--nats` the server is left
out and a plain NATS message is sent, as any NATS client could.

A failure ends it: what was sent before is waited for, and the error says which line failed and how many
messages are stored, refused, and of unknown fate. Nothing is sent twice unless `--at-least-once` allows it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import stat
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial

import trio

from liftbridge import client as lc
from liftbridge.bench.progress import Progress
from liftbridge.cli import publish_nats
from liftbridge.cli.exits import CommandError, Exit, explain
from liftbridge.cli.output import Output, as_json, note, plain
from liftbridge.cli.publish_input import FORMS, Common, Numbered, Source
from liftbridge.cli.session import Parser, add_connection, completes, ending, run
from liftbridge.cli.values import MAX_OFFSET, argument, check_text, header, raw_bytes, whole
from liftbridge.client import Ack, AckPolicy, Outgoing, Partitioner, PublishFuture, RoundRobin, by_key

_ACKS = {"leader": AckPolicy.LEADER, "all": AckPolicy.ALL, "none": AckPolicy.NONE}
_PARTITIONERS: dict[str, Callable[[], Partitioner]] = {"key": lambda: by_key, "round-robin": RoundRobin}
_SLICES = 20  # of a second, in which a rate is kept
_QUEUE = 16  # batches whose acks are waited for, beside what the publisher bounds


def parser() -> argparse.ArgumentParser:
    """The command line of `liftbridge publish`."""
    top = Parser(
        prog="liftbridge publish",
        description="Publish a message on a NATS subject or to a stream. Without VALUE, the lines of "
        "standard input.",
    )
    top.add_argument("name", type=argument(check_text), help="NATS subject, or with --stream a stream")
    top.add_argument("value", nargs="?", help="the message; left out, messages are read")
    top.add_argument("--stream", "-s", action="store_true", help="NAME is a stream")
    where = top.add_argument_group("to a stream")
    where.add_argument("--partition", "-p", type=whole(0), metavar="N", help="(default: 0)")
    where.add_argument("--partitioner", choices=_PARTITIONERS, help="what chooses the partition")
    where.add_argument(
        "--expected-offset", type=whole(0, MAX_OFFSET), metavar="N", help="store it only at this offset"
    )
    where.add_argument(
        "--at-least-once", action="store_true", help="send again when no ack came; may store it twice"
    )
    what = top.add_argument_group("messages")
    what.add_argument("--key", "-k", metavar="KEY", help="the key")
    what.add_argument(
        "--key-separator",
        metavar="TEXT",
        help="what comes before this in a line is the key, the rest the value",
    )
    what.add_argument(
        "--header",
        action="append",
        default=[],
        type=argument(header),
        metavar="NAME=VALUE",
        help="may be repeated",
    )
    completes(
        what.add_argument("--file", metavar="FILE", help="read messages from FILE; - is standard input"),
        "file",
    )
    what.add_argument(
        "--input",
        choices=FORMS,
        help="what is read: lines (default), records that end with NUL, JSON objects as `subscribe --json` "
        "prints them, or the whole as one message",
    )
    what.add_argument("--rate", type=float, metavar="N", help="messages in a second, at most")
    what.add_argument("--ack", choices=_ACKS, default="leader", help="what is waited for (default: leader)")
    plain_nats = top.add_argument_group("without a Liftbridge server")
    plain_nats.add_argument("--nats", metavar="URL", help="send plain NATS messages to this NATS server")
    completes(plain_nats.add_argument("--nats-creds", metavar="FILE", help="credentials for it"), "file")
    add_connection(top)
    top.set_defaults(run=_command)
    return top


def _command(options: argparse.Namespace) -> int:
    return ending(options, partial(_check, options)) or _publish(options)


def _publish(options: argparse.Namespace) -> int:
    if options.nats is not None:
        return ending(options, lambda: trio.run(_to_nats, options))
    return run(options, _to_stream if options.stream else _to_subject)


def _check(options: argparse.Namespace) -> None:
    for name in ("partition", "partitioner", "expected_offset", "at_least_once"):
        if getattr(options, name) and not options.stream:
            flag = "--" + name.replace("_", "-")
            raise CommandError(f"{flag} goes with --stream: a subject has no partitions", Exit.USAGE)
    wrong = ""
    if options.value is not None and (options.file is not None or options.input is not None):
        wrong = "there is a VALUE on the command line, so nothing is read: leave it or --file and --input out"
    elif options.expected_offset is not None and options.value is None and options.input != "whole":
        wrong = "--expected-offset is of one message: give its VALUE, or --input whole"
    elif options.partition is not None and options.partitioner is not None:
        wrong = "--partition says where messages go, so there is nothing for a --partitioner to choose"
    elif options.rate is not None and not options.rate > 0:
        wrong = f"--rate {options.rate:g}: nothing would ever be sent; give it more than 0"
    elif options.key_separator is not None and (not options.key_separator or options.key is not None):
        wrong = "--key-separator needs a text, and no --key beside it"
    elif options.nats is not None and (options.stream or options.key is not None or options.header):
        wrong = "a plain NATS message has neither stream nor key nor headers here: leave --nats or them out"
    elif options.nats is not None and "@" in options.nats:
        wrong = "everybody on this machine can see a secret in --nats: put it into a file, --nats-creds"
    if wrong:
        raise CommandError(wrong, Exit.USAGE)


# -- to a stream ---------------------------------------------------------------------------------------


async def _to_stream(options: argparse.Namespace, client: lc.Client, output: Output) -> None:
    partitioner: Partitioner | None = _PARTITIONERS[options.partitioner]() if options.partitioner else None
    if options.expected_offset is not None:
        async for batch in _messages(options):
            message = batch[0].message
            ack = await client.publish(
                options.name,
                message.value,
                key=message.key,
                headers=message.headers,
                partition=message.partition,
                partitioner=partitioner,
                ack_policy=_ACKS[options.ack],
                expected_offset=options.expected_offset,
                at_least_once=options.at_least_once,
            )
            _tell(output, ack, options.name)
        return
    await _in_flight(options, client, output, partitioner)


async def _in_flight(
    options: argparse.Namespace, client: lc.Client, output: Output, partitioner: Partitioner | None
) -> None:
    """Publish whatever is read with many messages on their way, and tell what became of them."""
    tally = Tally(output, options.name, single=options.value is not None)
    sent, settled = trio.open_memory_channel[tuple[list[Numbered], list[PublishFuture]]](_QUEUE)
    publishing = client.publisher(
        options.name,
        ack_policy=_ACKS[options.ack],
        partitioner=partitioner,
        at_least_once=options.at_least_once,
    )
    async with publishing as publisher, trio.open_nursery() as nursery:
        nursery.start_soon(tally.settle, settled)
        async with sent, aclosing(_messages(options)) as batches:
            while batch := await tally.while_well(batches):
                futures = await publisher.send_batch([entry.message for entry in batch])
                await sent.send((batch, futures))
    tally.end()


@dataclass
class Tally:
    """What became of the messages of a run."""

    output: Output
    name: str
    single: bool = False
    stored: int = 0
    refused: int = 0
    unknown: int = 0
    unsettled: int = 0
    """Sent with the policy NONE: nobody tells."""
    first: tuple[int, lc.LiftbridgeError] | None = None
    wrong_input: CommandError | None = None
    _reading: trio.CancelScope | None = None

    async def while_well(self, batches: AsyncIterator[list[Numbered]]) -> list[Numbered]:
        """The next messages to publish; none at the end of the input, or as soon as one has failed.

        Only the reading is broken off by a failure: what is handed to the publisher is handed to `settle`.
        """
        batch: list[Numbered] = []
        if self.first is None:
            with trio.CancelScope() as self._reading:
                try:
                    batch = await anext(batches, [])
                except CommandError as error:
                    self.wrong_input = error
            self._reading = None
        return batch if self.first is None else []

    async def settle(
        self, batches: trio.MemoryReceiveChannel[tuple[list[Numbered], list[PublishFuture]]]
    ) -> None:
        """Take what becomes of each message; the first failure ends the reading."""
        async for entries, futures in batches:
            acks: list[Ack] = []
            for entry, future in zip(entries, futures, strict=True):
                try:
                    self.count(await future, acks)
                except lc.LiftbridgeError as error:
                    self.failed(entry.number, error)
                    if self._reading is not None:
                        self._reading.cancel()
            await self.tell(acks)

    def count(self, ack: Ack | None, acks: list[Ack]) -> None:
        """A message was stored, or with the policy NONE sent."""
        if ack is None:
            self.unsettled += 1
        else:
            self.stored += 1
            acks.append(ack)

    def failed(self, number: int, error: lc.LiftbridgeError) -> None:
        """A message was not stored, or nobody knows."""
        self.first = self.first or (number, error)
        if isinstance(error, lc.UnknownOutcomeError):
            self.unknown += 1
        else:
            self.refused += 1

    async def tell(self, acks: Sequence[Ack]) -> None:
        """Print acks: all of them as JSON, that of a single message to people."""
        if self.output.as_json and acks:
            await self.output.stream(b"".join(as_json(_document(ack)) for ack in acks))
        elif self.single:
            for ack in acks:
                _tell(self.output, ack, self.name)
        await trio.lowlevel.checkpoint()

    def end(self) -> None:
        """Say how it went. Raises CommandError when a message failed or the input was wrong."""
        if self.first is not None:
            number, error = self.first
            status, text = explain(error) or (Exit.FAILED, str(error))
            if not self.single:
                text = f"message {number}: {text} ({self._counts()})"
            raise CommandError(text, status)
        if self.wrong_input is not None:
            raise CommandError(f"{self.wrong_input} ({self._counts()})", self.wrong_input.status)
        if not self.single and self.output.terminal and not self.output.as_json:
            self.output.line(self._counts())

    def _counts(self) -> str:
        parts = [f"{self.stored} stored"]
        if self.unsettled:
            parts = [f"{self.unsettled} sent"]
        if self.refused:
            parts.append(f"{self.refused} not stored")
        if self.unknown:
            parts.append(f"{self.unknown} perhaps stored")
        return ", ".join(parts)


def _tell(output: Output, ack: Ack | None, name: str) -> None:
    if ack is None:
        output.document({"stream": name, "sent": True})
        return
    if output.terminal:
        # A publish to a subject does not tell the partition.
        place = f", partition {ack.partition}" if ack.partition > 0 else ""
        output.line(f"stored in {plain(ack.stream)}{place} at offset {ack.offset}")
    output.document(_document(ack))


def _document(ack: Ack) -> dict[str, object]:
    document: dict[str, object] = {"stream": ack.stream, "offset": ack.offset, "subject": ack.subject}
    if ack.partition >= 0:
        document["partition"] = ack.partition
    return document | {"timestamp": ack.reception_timestamp}


# -- to a subject --------------------------------------------------------------------------------------


async def _to_subject(options: argparse.Namespace, client: lc.Client, output: Output) -> None:
    """One call a message: there is none for many, and their order is to be kept."""
    tally = Tally(output, options.name, single=options.value is not None)
    try:
        async for batch in _messages(options):
            for entry in batch:
                acks: list[Ack] = []
                tally.count(await _call(options, client, entry.message), acks)
                await tally.tell(acks)
    except lc.LiftbridgeError as error:
        number = tally.stored + tally.unsettled + 1
        if isinstance(error, lc.DeadlineExceededError):
            text = (
                f"no ack came for what was published on {options.name!r}; perhaps no stream records the "
                "subject (`liftbridge stream list`), or what records it is paused or read-only"
            )
            error = lc.DeadlineExceededError(error.code, text)
        tally.failed(number, error)
    except CommandError as error:
        tally.wrong_input = error
    tally.end()


async def _call(options: argparse.Namespace, client: lc.Client, message: Outgoing) -> Ack | None:
    return await client.publish_to_subject(
        options.name,
        message.value,
        key=message.key,
        headers=message.headers,
        ack_policy=_ACKS[options.ack],
    )


# -- to NATS -------------------------------------------------------------------------------------------


async def _to_nats(options: argparse.Namespace) -> None:
    tally = Tally(Output(as_json=options.json), options.name, single=options.value is not None)
    values = ([entry.message.value for entry in batch] async for batch in _messages(options))
    sent = await publish_nats.publish(options.nats, options.nats_creds, options.name, values)
    if not tally.single and tally.output.terminal:
        tally.output.line(f"{sent} sent")
    tally.output.document({"subject": options.name, "sent": sent})


# -- messages ------------------------------------------------------------------------------------------


async def _messages(options: argparse.Namespace) -> AsyncGenerator[list[Numbered], None]:
    """Batches of messages at the rate that is wanted, with a bar for a file."""
    headers: Mapping[str, bytes] = dict(options.header)
    separator = None if options.key_separator is None else raw_bytes(options.key_separator)
    common = Common(raw_bytes(options.key or ""), headers, options.partition, separator)
    if options.value is not None:
        yield [Numbered(1, common.outgoing(raw_bytes(options.value), "VALUE"))]
        return
    name = "standard input" if options.file in (None, "-") else options.file
    with _opened(options.file) as descriptor:
        if os.isatty(descriptor):
            note("reading messages from the terminal, a line each; Ctrl-D ends them")
        found = os.fstat(descriptor)
        size = found.st_size if stat.S_ISREG(found.st_mode) else 0
        source = Source(descriptor, name, options.input or "lines", common)
        pace = _Pace(options.rate)
        with Progress(size, f"publishing {plain(name)}", wanted=size > 0) as progress:
            async for batch in source.batches():
                async for part in pace.parts(batch):
                    yield part
                progress.update(source.bytes_read)


@contextlib.contextmanager
def _opened(file: str | None) -> Iterator[int]:
    if file in (None, "-"):
        yield sys.stdin.fileno()
        return
    assert file is not None
    try:
        descriptor = os.open(file, os.O_RDONLY)
    except OSError as error:
        raise CommandError(f"{file}: {error.strerror}; check the path", Exit.USAGE) from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


class _Pace:
    """Parts of batches, at a rate: message n is not before n / rate."""

    def __init__(self, rate: float | None) -> None:
        self._rate = rate
        self._size = max(1, int((rate or 0) / _SLICES))
        self._began: float | None = None
        self._count = 0

    async def parts(self, batch: list[Numbered]) -> AsyncIterator[list[Numbered]]:
        """Parts of a batch, each when it is due."""
        if self._rate is None:
            yield batch
            return
        if self._began is None:
            self._began = trio.current_time()
        for first in range(0, len(batch), self._size):
            part = batch[first : first + self._size]
            await trio.sleep_until(self._began + self._count / self._rate)
            self._count += len(part)
            yield part
