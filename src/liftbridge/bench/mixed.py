"""`liftbridge-bench mixed`: publishers with acks and subscribers at once, as fast as they can.

What reading takes from writing, and the other way round: the throughput of both ends and both latencies, to
the ack and to the delivery. The publishers are a closed loop unless `--rate` is given.
"""

from __future__ import annotations

import argparse

from liftbridge.bench import common, e2e, latency, publish, rounds, subscribe
from liftbridge.bench.report import Figure, Result

MESSAGES = 500_000

FIGURES = (
    Figure("published_per_second", "messages/s published"),
    Figure("messages_per_second", "messages/s delivered, all"),
    Figure("megabytes_per_second", "MB/s of payload delivered", 1),
    Figure("server_cpu_us_per_message", "server CPU us/delivery", 3),
    Figure("nats_cpu_us_per_message", "nats-server CPU us/delivery", 3),
    Figure("all_cpu_us_per_message", "CPU us/delivery of all servers", 3),
    Figure("generator_cpu_us_per_message", "load CPU us/delivery", 3),
    Figure("seconds", "seconds", 3),
    Figure("acks", "acks"),
    Figure("delivered", "messages delivered"),
    *latency.figures("ack", "publish to ack"),
    *latency.figures("delivery", "publish to delivery"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this workload."""
    common.add_arguments(parser, messages=MESSAGES, size=256)
    common.add_sync(parser)
    publish.add_load_arguments(parser, window=publish.DEFAULT_WINDOW, publishers=2)
    rounds.add_arguments(parser)
    subscribe.add_subscriber_arguments(parser, subscribers=4)


async def run(options: argparse.Namespace) -> list[Result]:
    """Run the workload; one result for each sync policy and target. Raises BenchError."""
    return await e2e.follow(options, FIGURES)
