"""`liftbridge subscribe`: print the messages of a stream.

Positions are those of the API, with times as people write them. Two things differ from the words of the API,
so that people get what they mean: a range in which there is no message prints nothing, where the server calls
it an error; and in reverse a time to end at is looked at here, message by message, as the server would take
the message before it as well.

Without a stop it waits for more, and goes on behind the last message after a fault, for as long as the client
does. `--follow` does so for ever.

Invariant: what is printed is whole messages, each once, in the order of offsets within a partition.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from datetime import datetime

import trio

from liftbridge import client as lc
from liftbridge.bench.progress import Progress
from liftbridge.cli.exits import CommandError, Exit
from liftbridge.cli.output import Output, as_json, bytes_as_json, bytes_as_text, note, plain, time_as_text
from liftbridge.cli.session import Parser, add_connection, completes, run
from liftbridge.cli.values import argument, check_text, raw_bytes, start_position, stop_position, whole
from liftbridge.client import Message, StartPosition, StatusCode, StopPosition
from liftbridge.client.values import nanoseconds_of

_WATCH = 0.5  # seconds between two looks at whether subscriptions are live
# Those that the server adds; the message says the same in fields of its own.
ADDED_HEADERS = ("subject", "reply")


def parser() -> argparse.ArgumentParser:
    """The command line of `liftbridge subscribe`."""
    top = Parser(
        prog="liftbridge subscribe",
        description="Print the messages of a stream: the old ones, then new ones as they come.",
        epilog="A position is an offset, a time (2026-03-01T12:00:00Z, '5m ago', now), or a word.",
    )
    completes(top.add_argument("stream"), "stream")
    partitions = top.add_mutually_exclusive_group()
    partitions.add_argument(
        "--partition", "-p", type=whole(0), action="append", metavar="N", help="may be repeated (default: 0)"
    )
    partitions.add_argument("--all-partitions", "-a", action="store_true", help="all partitions at once")
    add_positions(top)
    top.add_argument("--reverse", action="store_true", help="from new to old; begins with the newest message")
    top.add_argument("--count", "-n", type=whole(1), metavar="N", help="stop after so many messages")
    top.add_argument("--resume", action="store_true", help="resume the partition if it is paused")
    top.add_argument("--read-replica", action="store_true", help="any in-sync replica may answer")
    chosen = top.add_argument_group("filters", "A message is printed when all of them fit.")
    chosen.add_argument(
        "--key", action="append", metavar="KEY", help="this key; may be repeated: any of them"
    )
    chosen.add_argument(
        "--key-match", metavar="REGEX", help="the key matches, anywhere unless ^ and $ are used"
    )
    chosen.add_argument(
        "--header",
        action="append",
        default=[],
        type=argument(check_text),
        metavar="NAME[=VALUE]",
        help="it has this header; may be repeated: all of them",
    )
    form = top.add_mutually_exclusive_group()
    form.add_argument("--raw", action="store_true", help="print values as they are, each with a newline")
    form.add_argument("--null", "-0", action="store_true", help="the same, each with a NUL byte")
    form.add_argument("--verbose", "-v", action="store_true", help="print times, keys and headers, too")
    add_connection(top)
    top.set_defaults(run=_command)
    return top


def add_positions(parser: argparse.ArgumentParser) -> None:
    """The flags that say where to begin and to end."""
    group = parser.add_argument_group("positions")
    begin = group.add_mutually_exclusive_group()
    begin.add_argument(
        "--from",
        dest="start",
        type=argument(start_position),
        metavar="POSITION",
        help="begin there: an offset, a time, earliest, latest or new (default: earliest)",
    )
    begin.add_argument(
        "--new-only", action="store_const", const="new", dest="start", help="the same as --from new"
    )
    end = group.add_mutually_exclusive_group()
    end.add_argument(
        "--to",
        dest="stop",
        type=argument(stop_position),
        metavar="POSITION",
        help="end there, inclusive: an offset, a time, or latest, the newest message there is now",
    )
    end.add_argument(
        "--until-end", action="store_const", const="latest", dest="stop", help="the same as --to latest"
    )
    end.add_argument(
        "--follow", "-f", action="store_true", help="wait for servers that are away for as long as it takes"
    )


def check_positions(
    options: argparse.Namespace, *, reverse: bool = False
) -> tuple[StartPosition, StopPosition]:
    """Where to begin and to end. Raises CommandError when it makes no sense."""
    start: StartPosition = options.start if options.start is not None else "latest" if reverse else "earliest"
    stop: StopPosition = options.stop
    wrong = ""
    if reverse and options.follow:
        wrong = "--reverse ends at the oldest message, so there is nothing to --follow"
    elif reverse and stop == "latest":
        wrong = "--reverse ends at older messages: give --to an offset or a time, or leave it out"
    elif start == "new" and stop == "latest":
        wrong = "between new messages and the newest one there is none; leave one of --from and --to out"
    elif isinstance(start, (int, datetime)) and isinstance(stop, type(start)):
        backward = start < stop if reverse else start > stop  # type: ignore[operator]
        wrong = "--to lies before --from" if backward else ""
    if isinstance(stop, datetime) and nanoseconds_of(stop) > nanoseconds_of(datetime.now(stop.tzinfo)):
        wrong = "--to lies in the future: wait for it with a subscription that you end, or give an offset"
    if wrong:
        raise CommandError(wrong, Exit.USAGE)
    return start, stop


def _command(options: argparse.Namespace) -> int:
    # With a reason to end of its own, Ctrl-C is an interruption.
    endless = options.stop is None and options.count is None and not options.reverse
    return run(options, _subscribe, endless=endless, outlast=options.follow)


async def _subscribe(options: argparse.Namespace, client: lc.Client, output: Output) -> None:
    start, stop = check_positions(options, reverse=options.reverse)
    partitions = options.partition or [0]
    if options.all_partitions:
        partitions = sorted((await client.stream(options.stream)).partitions)
    form = _form(options, several=len(set(partitions)) > 1)
    printer = _Printer(output, form, _filter(options), options.count)
    reading = _Reading(client, options, start, stop, printer)
    with reading.progress(output):
        async with watching(reading.subscriptions), trio.open_nursery() as readers:
            printer.on_full = readers.cancel_scope.cancel
            for number in sorted(set(partitions)):
                readers.start_soon(reading.read, number)


class _Reading:
    """The partitions that are read, each by a task, into one printer."""

    def __init__(
        self,
        client: lc.Client,
        options: argparse.Namespace,
        start: StartPosition,
        stop: StopPosition,
        printer: _Printer,
    ) -> None:
        self._client = client
        self._options = options
        self._start = start
        self._stop = stop
        self._printer = printer
        self._progress: Progress | None = None
        self._total = self._done = 0
        self.subscriptions: list[lc.Subscription] = []

    def progress(self, output: Output) -> Progress:
        """The bar, for a run that ends and prints where nobody sees it."""
        ends = self._stop is not None or self._options.reverse
        label = f"reading {plain(self._options.stream)}"
        self._progress = Progress(1, label, wanted=ends and not output.terminal)
        return self._progress

    async def read(self, number: int) -> None:
        """Read one partition to its end."""
        reverse = self._options.reverse
        floor = nanoseconds_of(self._stop) if reverse and isinstance(self._stop, datetime) else None
        subscription = self._client.subscribe(
            self._options.stream,
            number,
            start=self._start,
            stop=None if floor is not None else self._stop,
            reverse=reverse,
            resume=self._options.resume,
            read_replica=self._options.read_replica,
        )
        async with aclosing(batches(subscription, self._stop, self.subscriptions)) as found:
            async for batch in found:
                kept = (
                    batch if floor is None else [message for message in batch if message.timestamp >= floor]
                )
                await self._printer.add(kept)
                await self._advance(kept)
                if len(kept) < len(batch):
                    return

    async def _advance(self, batch: Sequence[Message]) -> None:
        self._done += len(batch)
        if self._progress is not None and self._progress.shown and batch:
            if not self._total:
                info = await self._client.stream(self._options.stream)
                self._total = sum(entry.newest_offset + 1 for entry in info.partitions.values())
            self._progress.update(self._done, self._total)


async def batches(
    subscription: lc.Subscription, stop: StopPosition, live: list[lc.Subscription]
) -> AsyncGenerator[list[Message], None]:
    """The messages of a subscription as they arrive; nothing when there are none in its range, and when the
    partition is read-only its end.

    Args:
        subscription: not entered yet.
        stop: where it stops.
        live: gets it while it is read.
    """
    try:
        async with subscription:
            live.append(subscription)
            try:
                while batch := await subscription.batch():
                    yield batch
            finally:
                live.remove(subscription)
    except lc.PartitionReadonlyError:
        return
    except lc.RpcError as error:
        # A range that ends at a time or at the end and has no message in it.
        empty = isinstance(error, lc.InvalidArgumentError) or (
            error.code is StatusCode.INTERNAL and "before the first message" in error.message
        )
        if not empty or not (stop == "latest" or isinstance(stop, datetime)):
            raise


@asynccontextmanager
async def watching(subscriptions: Sequence[lc.Subscription]) -> AsyncIterator[None]:
    """Tell on standard error when subscriptions wait for a server, and when they go on."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_watch, subscriptions)
        yield
        nursery.cancel_scope.cancel()


async def _watch(subscriptions: Sequence[lc.Subscription]) -> None:
    away = False
    while True:
        await trio.sleep(_WATCH)
        waiting = [subscription for subscription in subscriptions if not subscription.live]
        if bool(waiting) != away:
            away = bool(waiting)
            note("no server serves it now; waiting for one" if away else "a server serves it again")


class _Printer:
    """Messages of all partitions, as bytes on standard output."""

    def __init__(
        self,
        output: Output,
        form: Callable[[Message], bytes],
        wanted: Callable[[Message], bool],
        count: int | None,
    ) -> None:
        self._output = output
        self._form = form
        self._wanted = wanted
        self._left = count
        self._turn = trio.Lock()
        self.on_full: Callable[[], None] = lambda: None

    async def add(self, batch: Sequence[Message]) -> None:
        async with self._turn:
            chosen = [message for message in batch if self._wanted(message)]
            if self._left is not None:
                chosen = chosen[: self._left]
                self._left -= len(chosen)
            if chosen:
                await self._output.stream(b"".join(map(self._form, chosen)))
            if self._left == 0:
                self.on_full()


def _filter(options: argparse.Namespace) -> Callable[[Message], bool]:
    keys = None if options.key is None else {raw_bytes(key) for key in options.key}
    headers = [
        (name, raw_bytes(value) if sign else None)
        for name, sign, value in (text.partition("=") for text in options.header)
    ]
    try:
        pattern = None if options.key_match is None else re.compile(raw_bytes(options.key_match))
    except re.error as error:
        raise CommandError(f"--key-match {options.key_match!r}: {error}", Exit.USAGE) from error

    def wanted(message: Message) -> bool:
        if keys is not None and message.key not in keys:
            return False
        if pattern is not None and not pattern.search(message.key):
            return False
        return all(
            name in message.headers and value in (None, message.headers[name]) for name, value in headers
        )

    return wanted


def _form(options: argparse.Namespace, *, several: bool) -> Callable[[Message], bytes]:
    if options.json:
        return lambda message: as_json(message_document(message))
    if options.raw:
        return lambda message: message.value + b"\n"
    if options.null:
        return lambda message: message.value + b"\0"
    if options.verbose:
        return _verbose
    if several:
        return lambda message: f"{message.partition}\t{_short(message)}".encode(errors="backslashreplace")
    return lambda message: _short(message).encode(errors="backslashreplace")


def _short(message: Message) -> str:
    return f"{message.offset}\t{plain(message.subject)}\t{bytes_as_text(message.value)}\n"


def _verbose(message: Message) -> bytes:
    headers = "".join(
        f" {plain(name)}={bytes_as_text(value)}"
        for name, value in sorted(message.headers.items())
        if name not in ADDED_HEADERS
    )
    key = bytes_as_text(message.key) if message.key else "-"
    fields = (
        str(message.partition),
        str(message.offset),
        time_as_text(message.timestamp),
        plain(message.subject),
        key,
        bytes_as_text(message.value),
        headers.strip() or "-",
    )
    return ("\t".join(fields) + "\n").encode(errors="backslashreplace")


def message_document(message: Message) -> dict[str, object]:
    """A message as a JSON object; `liftbridge publish --input json` takes it again."""
    headers = {
        name: bytes_as_json("value", value)
        for name, value in sorted(message.headers.items())
        if name not in ADDED_HEADERS
    }
    document: dict[str, object] = {
        "stream": message.stream,
        "partition": message.partition,
        "offset": message.offset,
        "timestamp": message.timestamp,
        "time": time_as_text(message.timestamp),
        "subject": message.subject,
    }
    if message.reply_subject:
        document["reply"] = message.reply_subject
    if message.key:
        document |= bytes_as_json("key", message.key)
    if headers:
        document["headers"] = {
            name: found["value"] if "value" in found else {"base64": found["value_base64"]}
            for name, found in headers.items()
        }
    return document | bytes_as_json("value", message.value)
