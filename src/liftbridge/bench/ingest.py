"""`liftbridge-bench ingest`: plain NATS messages into one partition, as fast as they are taken or at a rate.

The clock runs from the first message until the server reports the last one as committed, which under the sync
policy `always` means on disk. The publishers want no acks, so nothing holds them back but NATS: a server that
is too slow loses messages, and how many is part of the result. With `--rate` each message has a time at which
it is to be sent, whatever the server does.

A message is lost when it is not stored once the server has stored nothing more for ten seconds.
"""

from __future__ import annotations

import argparse

from liftbridge.bench import ceiling, common, publish, rounds
from liftbridge.bench.report import Figure, Result
from liftbridge.bench.target import Load, Target

WARM_UP_MESSAGES = 100_000

FIGURES = (
    Figure("messages_per_second", "messages/s"),
    Figure("megabytes_per_second", "MB/s of payload", 1),
    Figure("server_cpu_us_per_message", "server CPU us/message", 3),
    Figure("nats_cpu_us_per_message", "nats-server CPU us/message", 3),
    Figure("all_cpu_us_per_message", "CPU us/message of all servers", 3),
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
    rounds.add_arguments(parser)
    parser.add_argument(
        "--publishers",
        type=common.positive,
        default=2,
        help="connections that publish (2); a nats-server spends one core on each",
    )
    publish.add_rate(parser, "as fast as NATS takes them")
    parser.add_argument(
        "--no-ceiling",
        action="store_true",
        help="do not measure before each run how fast NATS alone delivers the same messages",
    )


async def run(options: argparse.Namespace) -> list[Result]:
    """Run the workload; one result for each sync policy and target. Raises BenchError."""
    rounds.check(options)
    load = Load(
        options.messages,
        options.size,
        publishers=options.publishers,
        via="plain",
        policy="none",
        rate=options.rate,
    )

    async def once(target: Target, _: None, label: str, warm_up: bool) -> rounds.Measured:
        if warm_up:
            return await publish.run_once(target, load.only(WARM_UP_MESSAGES), label)
        alone = None if options.no_ceiling or load.rate else await ceiling.measure(target, load)
        measured = await publish.run_once(target, load, label)
        return rounds.Measured({**measured.figures, "nats_alone_messages_per_second": alone})

    settings: dict[str, str | int | bool] = {
        "messages": load.messages,
        "size": load.size,
        "publishers": load.publishers,
        "partitions": 1,
        "acks": "none",
        "rate": publish.rate_of(load),
    }
    return await rounds.measure(options, FIGURES, settings, once, rounds.nothing)
