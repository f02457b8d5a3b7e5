"""`liftbridge-bench e2e`: latency from publish to delivery, at a rate.

Each message carries the time at which it was to be sent, so that whatever holds it up counts: a publisher
that comes late as its window is full, NATS, the server, the disk under `always`, the subscriber. `--rate 0`
is a closed loop.
"""

from __future__ import annotations

import argparse

from liftbridge.bench import common, delivery, latency, publish, rounds, subscribe
from liftbridge.bench.report import Figure, Result
from liftbridge.bench.target import Target

RATE = 10_000.0
MESSAGES = 100_000
WINDOW = 1 << 16

FIGURES = (
    *latency.figures("delivery", "publish to delivery"),
    *latency.figures("ack", "publish to ack"),
    Figure("published_per_second", "messages/s published"),
    Figure("messages_per_second", "messages/s delivered"),
    Figure("server_cpu_us_per_message", "server CPU us/delivery", 3),
    Figure("nats_cpu_us_per_message", "nats-server CPU us/delivery", 3),
    Figure("all_cpu_us_per_message", "CPU us/delivery of all servers", 3),
    Figure("generator_cpu_us_per_message", "load CPU us/delivery", 3),
    Figure("seconds", "seconds", 3),
    Figure("delivered", "messages delivered"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this workload."""
    common.add_arguments(parser, messages=MESSAGES, size=256)
    common.add_sync(parser)
    publish.add_load_arguments(parser, window=WINDOW, rate=RATE)
    rounds.add_arguments(parser)
    subscribe.add_subscriber_arguments(parser)


async def run(options: argparse.Namespace) -> list[Result]:
    """Run the workload; one result for each sync policy and target. Raises BenchError."""
    return await follow(options, FIGURES)


async def follow(options: argparse.Namespace, figures: tuple[Figure, ...]) -> list[Result]:
    """Measure publishers and subscribers at once, as this workload and `mixed` do. Raises BenchError."""
    rounds.check(options)
    load = publish.load_of(options, stamped=True)

    async def once(target: Target, _: None, label: str, warm_up: bool) -> rounds.Measured:
        this = load.only(load.messages // publish.WARM_UP_SHARE) if warm_up else load
        delivered = await delivery.deliver(
            target, this, options.subscribers, options.flow_control_window, label
        )
        latencies = {"delivery": delivered.latency}
        if this.acked:
            latencies["ack"] = delivered.published.latency
        return rounds.Measured(delivered.figures(this), latencies)

    settings = publish.settings_of(load) | {"subscribers": options.subscribers}
    return await rounds.measure(options, figures, settings, once, rounds.nothing)
