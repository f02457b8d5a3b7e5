"""Publishers and subscribers at the same time: what `e2e`, `mixed` and `subscribe --tail` have in common.

Subscribers are live before the first message is sent, and each must be delivered every message once. Messages
carry the time that their latency counts from, so it is known for each when it arrived at each subscriber: the
clock is the machine's, and both ends run on it.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import trio

from liftbridge.bench._load import Histogram
from liftbridge.bench.cpu import CpuMeter, cpu_figures
from liftbridge.bench.errors import BenchError
from liftbridge.bench.latency import merged, run_figures
from liftbridge.bench.progress import PROGRESS_SECONDS, Progress
from liftbridge.bench.publishing import Published, publishers
from liftbridge.bench.report import Run
from liftbridge.bench.target import Load, Received, Subscriber, Target

LIVE_SECONDS = 30.0
POLL_SECONDS = 0.002


@dataclass(frozen=True)
class Delivered:
    """What publishers and subscribers did together.

    Attributes:
        published: what the publishers did. received: what each subscriber did. pids: the processes of the
        target. used: their CPU seconds. latency: from when a message was due, or was sent in a closed loop,
        to its arrival, of all subscribers.
    """

    published: Published
    received: list[Received]
    pids: dict[str, int | None]
    used: dict[str, float | None]
    latency: Histogram = field(compare=False)

    @property
    def seconds(self) -> float:
        """From the first message to the last delivery and the last ack."""
        ends = [self.published.end_ns, *(one.end_ns for one in self.received)]
        return (max(ends) - self.published.first_ns) / 1e9

    def figures(self, load: Load) -> Run:
        """The figures that these workloads share; `messages_per_second` are those that were delivered."""
        count = load.messages * len(self.received)
        generator = self.published.cpu_ns + sum(one.cpu_ns for one in self.received)
        figures = cpu_figures(self.pids, self.used, count, generator)
        figures |= {
            "messages_per_second": count / self.seconds,
            "published_per_second": load.messages / self.seconds,
            "megabytes_per_second": count * load.size / self.seconds / 1e6,
            "seconds": self.seconds,
            "acks": self.published.acks,
            "delivered": count,
        }
        if load.stamped:
            figures |= run_figures("delivery", self.latency)
        return figures | run_figures("ack", self.published.latency)


async def deliver(target: Target, load: Load, subscribers: int, window: int, label: str) -> Delivered:
    """Publish a load to a new stream while subscribers follow it.

    Args:
        target: where.
        load: what is published.
        subscribers: how many follow.
        window: their flow-control window in bytes.
        label: what the progress bar says.

    Raises:
        BenchError: something was lost, refused, or delivered twice.
    """
    async with AsyncExitStack() as stack:
        stream = await stack.enter_async_context(target.stream())
        stamped = load.messages if load.stamped else 0
        followers = [
            await stack.enter_async_context(target.subscriber(window, stamped=stamped))
            for _ in range(subscribers)
        ]
        source = await stack.enter_async_context(publishers(target, stream, load))
        received: list[Received] = []
        published: list[Published] = []

        async def follow(follower: Subscriber) -> None:
            received.append(await follower.follow(stream, load.messages))

        async def publish() -> None:
            published.append(await source.run())

        async with trio.open_nursery() as watching:
            async with trio.open_nursery() as nursery:
                for follower in followers:
                    nursery.start_soon(follow, follower)
                await _until_live(followers)
                cpu = CpuMeter(target.server.pids)
                watching.start_soon(_show, followers, load.messages, label)
                nursery.start_soon(publish)
            used = cpu.used()
            watching.cancel_scope.cancel()
    latencies = merged(follower.latency for follower in followers)
    return Delivered(published[0], received, target.server.pids, used, latencies)


async def _until_live(followers: list[Subscriber]) -> None:
    with trio.move_on_after(LIVE_SECONDS):
        # Threads without the GIL see it first; nobody there could set an event.
        while not all(follower.live for follower in followers):  # noqa: ASYNC110
            await trio.sleep(POLL_SECONDS)
        return
    raise BenchError(f"a subscription was not live within {LIVE_SECONDS:.0f} s")


async def _show(followers: list[Subscriber], messages: int, label: str) -> None:
    with Progress(messages * len(followers), label) as bar:
        while True:
            bar.update(sum(follower.messages for follower in followers))
            await trio.sleep(PROGRESS_SECONDS)
