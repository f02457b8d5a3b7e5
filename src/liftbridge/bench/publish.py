"""`liftbridge-bench publish`: messages that are acked, one at a time or many in flight, over NATS or gRPC.

The clock runs from the publisher's first message to its last ack; without acks, until the server reports the
last message as committed. Every ack is checked: each message has exactly one, none is negative, and their
offsets are those of so many different messages. Afterwards the server must have stored as many as were
published, no more and no fewer.

Latency runs to the ack: from when a message was sent, or with `--rate` from when it was to be sent. The
second is what a user sees whose messages come when they come; the first leaves out the time that messages
wait for a server which has fallen behind, as nothing is sent meanwhile (coordinated omission).
"""

from __future__ import annotations

import argparse

import trio

from liftbridge.bench import common, latency, rounds
from liftbridge.bench.cpu import CpuMeter, cpu_figures
from liftbridge.bench.errors import BenchError
from liftbridge.bench.messages import POLICIES
from liftbridge.bench.progress import PROGRESS_SECONDS, Progress
from liftbridge.bench.publishing import Published, Publishers, publishers
from liftbridge.bench.report import Figure, Result
from liftbridge.bench.stored import check_stored, settle
from liftbridge.bench.target import Load, Target

DEFAULT_WINDOW = 1024
MAX_WINDOW = 1 << 20
PIPELINED_MESSAGES = 1_000_000
SYNCHRONOUS_MESSAGES = 20_000
WARM_UP_SHARE = 10

FIGURES = (
    Figure("messages_per_second", "messages/s"),
    Figure("megabytes_per_second", "MB/s of payload", 1),
    Figure("server_cpu_us_per_message", "server CPU us/message", 3),
    Figure("nats_cpu_us_per_message", "nats-server CPU us/message", 3),
    Figure("all_cpu_us_per_message", "CPU us/message of all servers", 3),
    Figure("generator_cpu_us_per_message", "publisher CPU us/message", 3),
    Figure("seconds", "seconds", 3),
    Figure("acks", "acks"),
    Figure("lost", "messages lost"),
    *latency.figures("ack", "ack latency"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this workload."""
    common.add_arguments(parser, size=256)
    parser.set_defaults(messages=None)
    common.add_sync(parser)
    rounds.add_arguments(parser)
    add_load_arguments(parser, window=DEFAULT_WINDOW)


def add_load_arguments(
    parser: argparse.ArgumentParser, window: int, rate: float = 0.0, publishers: int = 1
) -> None:
    """Add the options that say how messages are published."""
    parser.add_argument(
        "--publishers",
        type=common.positive,
        default=publishers,
        help=f"connections that publish ({publishers})",
    )
    parser.add_argument(
        "--window",
        type=_window,
        default=window,
        help=f"messages of a publisher that may wait for their acks ({window}); 1 publishes one at a time",
    )
    parser.add_argument(
        "--via",
        choices=("nats", "grpc"),
        default="nats",
        help="nats: publish envelopes with an ack inbox (default); "
        "grpc: PublishAsync, or with --window 1 the unary Publish",
    )
    parser.add_argument("--ack-policy", choices=tuple(POLICIES), default="leader", help="(leader)")
    add_rate(parser, "as fast as acks come", rate)


def add_rate(parser: argparse.ArgumentParser, without: str, rate: float = 0.0) -> None:
    """Add `--rate`; `without` says what is done without one."""
    parser.add_argument(
        "--rate",
        type=_rate,
        default=rate,
        help="messages a second, all publishers together: an open loop, in which each message has a time at "
        "which it is to be sent, and latency counts from there "
        f"({f'{rate:.0f}; 0: ' if rate else ''}{without})",
    )


def rate_of(load: Load) -> str:
    """What is told of the rate of a load."""
    if load.rate:
        return f"{load.rate:,.0f}/s, open loop"
    return "closed loop" if load.acked else "as fast as it is taken"


def load_of(options: argparse.Namespace, *, stamped: bool = False) -> Load:
    """The load that the options describe."""
    default = SYNCHRONOUS_MESSAGES if options.window == 1 else PIPELINED_MESSAGES
    return Load(
        messages=default if options.messages is None else options.messages,
        size=options.size,
        publishers=options.publishers,
        window=options.window,
        via=options.via,
        policy=options.ack_policy,
        rate=options.rate,
        stamped=stamped,
    )


def settings_of(load: Load) -> dict[str, str | int | bool]:
    """What is told of a load in a result."""
    return {
        "via": load.via,
        "acks": load.policy,
        "messages": load.messages,
        "size": load.size,
        "publishers": load.publishers,
        "window": load.window,
        "rate": rate_of(load),
        "partitions": 1,
    }


async def run(options: argparse.Namespace) -> list[Result]:
    """Run the workload; one result for each sync policy and target. Raises BenchError."""
    rounds.check(options)
    load = load_of(options)

    async def once(target: Target, _: None, label: str, warm_up: bool) -> rounds.Measured:
        return await run_once(target, load.only(load.messages // WARM_UP_SHARE) if warm_up else load, label)

    return await rounds.measure(options, FIGURES, settings_of(load), once, rounds.nothing)


async def run_once(target: Target, load: Load, label: str) -> rounds.Measured:
    """Publish to a new stream. Raises BenchError."""
    async with target.stream() as stream, publishers(target, stream, load) as source:
        cpu = CpuMeter(target.server.pids)
        published = await watched(source, load, label)
        end_ns, stored = published.end_ns, load.messages
        if load.policy == "none":
            stored, committed_ns = await settle(target, stream, load.messages, label)
            end_ns = max(end_ns, committed_ns)
        used = cpu.used()
        await check_stored(target, stream, load.messages, stored)
    if not stored:
        raise BenchError("the server stored nothing; does --nats name the NATS server that it uses?")
    seconds = (end_ns - published.first_ns) / 1e9
    figures = cpu_figures(target.server.pids, used, stored, published.cpu_ns)
    figures |= {
        "messages_per_second": stored / seconds,
        "megabytes_per_second": stored * load.size / seconds / 1e6,
        "seconds": seconds,
        "sent_seconds": (published.sent_ns - published.first_ns) / 1e9,
        "published_seconds": (published.end_ns - published.first_ns) / 1e9,
        "acks": published.acks,
        "stored": stored,
        "lost": load.messages - stored,
    }
    figures |= latency.run_figures("ack", published.latency)
    return rounds.Measured(figures, {"ack": published.latency} if load.acked else {})


async def store(target: Target, stream: str, load: Load, label: str) -> None:
    """Publish an acked load to an empty stream, and nothing else. Raises BenchError."""
    async with publishers(target, stream, load) as source:
        await watched(source, load, label)
    await check_stored(target, stream, load.messages, load.messages)


async def watched(source: Publishers, load: Load, label: str) -> Published:
    """Publish with a progress bar. Raises BenchError."""
    published: list[Published] = []
    async with trio.open_nursery() as nursery:

        async def publish() -> None:
            published.append(await source.run())
            nursery.cancel_scope.cancel()

        nursery.start_soon(publish)
        with Progress(load.messages, label) as bar:
            while True:
                bar.update(source.done)
                await trio.sleep(PROGRESS_SECONDS)
    return published[0]


def _window(text: str) -> int:
    window = common.positive(text)
    if window > MAX_WINDOW:
        raise argparse.ArgumentTypeError(f"a window has at most {MAX_WINDOW} messages")
    return window


def _rate(text: str) -> float:
    rate = float(text.replace("_", ""))
    if not 0 <= rate <= 1e8:
        raise argparse.ArgumentTypeError("a rate lies between 0 (none) and 100,000,000 messages a second")
    return rate
