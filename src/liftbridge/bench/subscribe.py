"""`liftbridge-bench subscribe`: a stream is read by clients that count, from its beginning or at its end.

*Replay*, first message to last: the stream is filled first, which is not measured; what is replayed is in the
page cache then, as what is read soon after it was written is. The clock runs from the first request until the
last message has been received by all.

*Tail* (`--tail`): the subscribers are at the end, and publishers publish. The clock runs from the first
message until all have received all; what the publishers cost the server is in its CPU time.
"""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager

import trio

from liftbridge.bench import common, delivery, publish, replay, rounds
from liftbridge.bench.cpu import CpuMeter, cpu_figures
from liftbridge.bench.jetstream_subscriber import KINDS
from liftbridge.bench.progress import PROGRESS_SECONDS, Progress
from liftbridge.bench.report import Figure, Result
from liftbridge.bench.target import Load, Received, Subscriber, Target

# Large enough that the server never waits for it on one machine.
DEFAULT_WINDOW = 16 << 20
FILL_WINDOW = 8192

FIGURES = (
    Figure("messages_per_second", "messages/s, all subscribers"),
    Figure("megabytes_per_second", "MB/s of payload", 1),
    Figure("server_cpu_us_per_message", "server CPU us/message", 3),
    Figure("all_cpu_us_per_message", "CPU us/message of all servers", 3),
    Figure("generator_cpu_us_per_message", "subscriber CPU us/message", 3),
    Figure("seconds", "seconds", 3),
    Figure("wire_bytes_per_message", "bytes/message on the wire", 1),
    Figure("bytes_per_data_frame", "bytes/DATA frame"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this workload."""
    common.add_arguments(parser)
    parser.set_defaults(sync="never")
    rounds.add_arguments(parser)
    parser.add_argument("--tail", action="store_true", help="follow the stream while publishers publish")
    parser.add_argument(
        "--publishers", type=common.positive, default=1, help="with --tail: connections that publish (1)"
    )
    add_subscriber_arguments(parser, "--window")


def add_subscriber_arguments(
    parser: argparse.ArgumentParser, window: str = "--flow-control-window", subscribers: int = 1
) -> None:
    """Add the options that say who subscribes."""
    parser.add_argument(
        "--subscribers",
        type=common.positive,
        default=subscribers,
        help=f"connections with a subscription each ({subscribers})",
    )
    parser.add_argument(
        window,
        type=_window,
        default=DEFAULT_WINDOW,
        help=f"HTTP/2 flow-control window in bytes ({DEFAULT_WINDOW}; {replay.HTTP2_WINDOW} is HTTP/2's own)",
    )
    parser.add_argument(
        "--jetstream-consumer",
        choices=KINDS,
        default=KINDS[0],
        help=f"with --against jetstream: the kind of its ordered consumers ({KINDS[0]})",
    )


async def run(options: argparse.Namespace) -> list[Result]:
    """Run the workload; one result for each target. Raises BenchError."""
    rounds.check(options)
    load = Load(options.messages, options.size, publishers=options.publishers, window=FILL_WINDOW)
    settings = {
        "messages": options.messages,
        "size": options.size,
        "subscribers": options.subscribers,
        "partitions": 1,
        "window": options.window,
    }

    async def replayed(target: Target, stream: str, label: str, warm_up: bool) -> rounds.Measured:
        async with AsyncExitStack() as stack:
            subscribers = [
                await stack.enter_async_context(target.subscriber(options.window))
                for _ in range(options.subscribers)
            ]
            cpu = CpuMeter(target.server.pids)
            received = await _replay(subscribers, stream, options.messages, label)
            used = cpu.used()
        seconds = (max(one.end_ns for one in received) - min(one.begin_ns for one in received)) / 1e9
        return _measured(options, target, received, seconds, used)

    async def followed(target: Target, _: None, label: str, warm_up: bool) -> rounds.Measured:
        this = load.only(load.messages // publish.WARM_UP_SHARE) if warm_up else load
        done = await delivery.deliver(target, this, options.subscribers, options.window, label)
        return _measured(options, target, done.received, done.seconds, done.used)

    @asynccontextmanager
    async def filled(target: Target) -> AsyncIterator[str]:
        async with target.stream() as stream:
            await publish.store(target, stream, load, f"filling the stream, {target.name}")
            yield stream

    if options.tail:
        settings |= {"tail": True, "publishers": options.publishers}
        return await rounds.measure(options, FIGURES, settings, followed, rounds.nothing)
    return await rounds.measure(options, FIGURES, settings, replayed, filled)


async def _replay(subscribers: list[Subscriber], stream: str, messages: int, label: str) -> list[Received]:
    received: list[Received] = []

    async def one(subscriber: Subscriber) -> None:
        received.append(await subscriber.run(stream, messages))

    async with trio.open_nursery() as watching:
        watching.start_soon(_show, subscribers, messages, label)
        async with trio.open_nursery() as nursery:
            for subscriber in subscribers:
                nursery.start_soon(one, subscriber)
        watching.cancel_scope.cancel()
    return received


async def _show(subscribers: list[Subscriber], messages: int, label: str) -> None:
    with Progress(messages * len(subscribers), label) as bar:
        while True:
            bar.update(sum(subscriber.messages for subscriber in subscribers))
            await trio.sleep(PROGRESS_SECONDS)


def _measured(
    options: argparse.Namespace,
    target: Target,
    received: list[Received],
    seconds: float,
    used: Mapping[str, float | None],
) -> rounds.Measured:
    count = options.messages * options.subscribers
    data_bytes = sum(one.data_bytes for one in received)
    data_frames = sum(one.data_frames for one in received)
    return rounds.Measured(
        {
            **cpu_figures(target.server.pids, used, count, sum(one.cpu_ns for one in received)),
            "messages_per_second": count / seconds,
            "megabytes_per_second": count * options.size / seconds / 1e6,
            "seconds": seconds,
            "wire_bytes_per_message": data_bytes / count,
            "bytes_per_data_frame": data_bytes / data_frames if data_frames else None,
        }
    )


def _window(text: str) -> int:
    window = int(text.replace("_", ""))
    if not replay.HTTP2_WINDOW <= window < 1 << 31:
        raise argparse.ArgumentTypeError(f"a window lies between {replay.HTTP2_WINDOW} and {2**31 - 1} bytes")
    return window
