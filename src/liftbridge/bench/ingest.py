"""`liftbridge-bench ingest`: plain NATS messages into one partition, as fast as the publishers send them.

The clock runs from the publisher's first byte until the server reports the last message as committed, which
under the sync policy `always` means on disk. The publisher wants no acks, so nothing holds it back but
NATS: a server that is too slow loses messages, and how many is part of the result.

A message is lost when it is not stored once the server has stored nothing more for `SETTLE_SECONDS`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Awaitable, Callable

import trio

from liftbridge.bench import ceiling, common, streams
from liftbridge.bench.cpu import CpuMeter
from liftbridge.bench.errors import BenchError
from liftbridge.bench.progress import Progress
from liftbridge.bench.publisher import Published, publishers
from liftbridge.bench.report import Figure, Result, Run
from liftbridge.bench.server import ServerUnderTest

SETTLE_SECONDS = 10.0
WARM_UP_MESSAGES = 100_000
# The server is asked often only when the end is near, as answering costs it time.
POLL_MIN_SECONDS = 0.001
POLL_MAX_SECONDS = 0.1

FIGURES = (
    Figure("messages_per_second", "messages/s"),
    Figure("megabytes_per_second", "MB/s of payload", 1),
    Figure("server_cpu_us_per_message", "server CPU us/message", 3),
    Figure("nats_cpu_us_per_message", "nats-server CPU us/message", 3),
    Figure("generator_cpu_us_per_message", "publisher CPU us/message", 3),
    Figure("seconds", "seconds", 3),
    Figure("published_seconds", "seconds until NATS had all", 3),
    Figure("nats_alone_messages_per_second", "messages/s of NATS alone"),
    Figure("lost", "messages lost"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this workload."""
    common.add_arguments(parser)
    common.add_sync(parser)
    parser.add_argument(
        "--publishers",
        type=common.positive,
        default=2,
        help="connections that publish (2); a nats-server spends one core on each",
    )
    parser.add_argument(
        "--no-ceiling",
        action="store_true",
        help="do not measure before each run how fast NATS alone delivers the same messages",
    )


async def run(options: argparse.Namespace) -> list[Result]:
    """Run the workload; one result for each sync policy. Raises BenchError."""
    results = []
    for policy in common.sync_policies(options):
        async with common.server_under_test(options, policy) as server:
            results.append(await _measure(options, server))
    return results


async def _measure(options: argparse.Namespace, server: ServerUnderTest) -> Result:
    disk = await common.disk_speed(server)
    async with streams.connect(server) as api:
        runs: list[Run] = []
        warm_up = min(options.messages, WARM_UP_MESSAGES)
        await _run_once(api, server, warm_up, options.size, "warm-up", options.publishers)
        for number in range(options.repeat):
            label = f"ingest, sync {server.sync}, run {number + 1} of {options.repeat}"
            alone = (
                None
                if options.no_ceiling
                else await ceiling.measure(server.nats, options.messages, options.size, options.publishers)
            )
            figures = await _run_once(api, server, options.messages, options.size, label, options.publishers)
            runs.append({**figures, "nats_alone_messages_per_second": alone})
    settings = {
        "sync": server.sync,
        "messages": options.messages,
        "size": options.size,
        "publishers": options.publishers,
        "partitions": 1,
        "acks": "none",
    }
    return Result(settings, FIGURES, runs, disk)


async def _run_once(
    api: streams.Streams, server: ServerUnderTest, messages: int, size: int, label: str, publisher_count: int
) -> Run:
    async with api.temporary() as stream:
        return await fill(api, server, stream, messages, size, label, publisher_count)


async def fill(
    api: streams.Streams,
    server: ServerUnderTest,
    stream: str,
    messages: int,
    size: int,
    label: str,
    publisher_count: int = 1,
) -> Run:
    """Publish messages to an empty stream and wait until it has stored what it will.

    Args:
        api: where to ask.
        server: the server under test.
        stream: the stream, which is its subject as well.
        messages: how many.
        size: bytes in each.
        label: what the progress bar says.
        publisher_count: how many publishers share the messages.

    Returns:
        The figures of `FIGURES`.

    Raises:
        BenchError: more was stored than published, or nothing.
    """
    async with publishers(server.nats, stream, messages, size, publisher_count) as source:
        cpu = CpuMeter(server.pids)
        published: Published | None = None

        async def publish() -> None:
            nonlocal published
            published = await source.finished()

        await source.go()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(publish)
            with Progress(messages, label) as bar:
                stored, committed_ns = await until_stored(
                    lambda: api.offsets(stream), messages, lambda: published is not None, bar
                )
            used = cpu.used()
    assert published is not None, "the nursery waited for the publisher"
    newest = (await api.offsets(stream))[1]
    if newest >= messages:
        raise BenchError(f"{messages} messages were published, but {newest + 1} are stored")
    if not stored:
        raise BenchError("the server stored nothing; does --nats name the NATS server that it uses?")
    return _figures(messages, size, stored, committed_ns, published, used)


def _figures(
    messages: int,
    size: int,
    stored: int,
    committed_ns: int,
    published: Published,
    used: dict[str, float | None],
) -> Run:
    seconds = (committed_ns - published.first_byte_ns) / 1e9
    used = used | {"generator": published.cpu_ns / 1e9}
    figures: dict[str, float | None] = {
        f"{name}_cpu_us_per_message": None if cpu is None else cpu * 1e6 / stored
        for name, cpu in used.items()
    }
    return figures | {
        "messages_per_second": stored / seconds,
        "megabytes_per_second": stored * size / seconds / 1e6,
        "seconds": seconds,
        "published_seconds": (published.accepted_ns - published.first_byte_ns) / 1e9,
        "stored": stored,
        "lost": messages - stored,
    }


async def until_stored(
    offsets: Callable[[], Awaitable[tuple[int, int]]],
    messages: int,
    finished: Callable[[], bool],
    bar: Progress,
) -> tuple[int, int]:
    """Ask until everything is committed, or nothing more comes.

    Args:
        offsets: asks for high watermark and newest offset.
        messages: how many are everything.
        finished: whether all were published; before that, silence is no loss.
        bar: shows how far it is.

    Returns:
        How many messages are committed, and when that was known first, in monotonic ns.
    """
    start = time.monotonic_ns()
    stored, changed = 0, start
    idle_since = trio.current_time()
    while stored < messages:
        high_watermark, _ = await offsets()
        now = time.monotonic_ns()
        if high_watermark + 1 > stored:
            stored, changed = high_watermark + 1, now
            bar.update(stored)
            idle_since = trio.current_time()
        elif not finished():
            idle_since = trio.current_time()
        elif trio.current_time() - idle_since > SETTLE_SECONDS:
            break
        rest = (messages - stored) * (now - start) / 1e9 / stored if stored else 0.0
        await trio.sleep(min(POLL_MAX_SECONDS, max(POLL_MIN_SECONDS, rest / 2)))
    return stored, changed
