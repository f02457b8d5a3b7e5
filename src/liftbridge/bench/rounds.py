"""Runs a workload on what is measured: warm-up, then rounds, and in each round every target once.

When there are several targets, they are up together and take turns, so that what others do on the machine,
and a machine that gets slower or faster, disturbs all alike. One that has no load costs nothing that counts.
"""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from liftbridge.bench import common, latency
from liftbridge.bench._load import Histogram
from liftbridge.bench.errors import BenchError
from liftbridge.bench.jetstream_target import jetstream
from liftbridge.bench.liftbridge_target import liftbridge
from liftbridge.bench.report import Figure, Result, Run, Settings
from liftbridge.bench.target import Target


@dataclass(frozen=True)
class Measured:
    """One run: its figures, and its latencies by what they are latencies of."""

    figures: Run
    latencies: Mapping[str, Histogram] = field(default_factory=dict)


T = TypeVar("T")

OTHERS = {"jetstream": jetstream}
"""What a workload can be run against, by the name on the command line."""

Once = Callable[[Target, T, str, bool], Awaitable[Measured]]
"""A run of a workload: where, with what was prepared there, its label, whether it only warms up."""


@asynccontextmanager
async def nothing(target: Target) -> AsyncIterator[None]:
    """What is prepared for a workload that needs nothing."""
    yield


async def measure(
    options: argparse.Namespace,
    figures: Sequence[Figure],
    settings: Settings,
    once: Once[T],
    prepare: Callable[[Target], AbstractAsyncContextManager[T]],
    targets: Callable[[argparse.Namespace, str], AbstractAsyncContextManager[list[Target]]] | None = None,
) -> list[Result]:
    """Run a workload as often as the options say.

    Args:
        options: of the command line.
        figures: what each run has.
        settings: what was set, without target and sync policy.
        once: one run.
        prepare: what there is to be on a target during all of its runs.
        targets: starts what is measured with a sync policy; None for the server that the options ask for, and
            what it is compared with.

    Returns:
        A result for each sync policy and target.

    Raises:
        BenchError: there are no figures that can be trusted.
    """
    results = []
    for policy in common.sync_policies(options):
        async with (targets or compared)(options, policy) as running, AsyncExitStack() as stack:
            disks = [await common.disk_speed(target.server) for target in running]
            prepared = [(target, await stack.enter_async_context(prepare(target))) for target in running]
            for target, ready in prepared:
                await once(target, ready, f"warm-up, {target.name}", True)
            rounds = [
                [
                    await once(
                        target,
                        ready,
                        f"{options.command}, {target.name}, sync {target.server.sync}, "
                        f"run {number + 1} of {options.repeat}",
                        False,
                    )
                    for target, ready in prepared
                ]
                for number in range(options.repeat)
            ]
            for target, disk, runs in zip(running, disks, zip(*rounds, strict=True), strict=True):
                setting = {"target": target.name, "sync": target.server.sync, **settings}
                if target.via is not None:
                    setting["via"] = target.via
                results.append(Result(setting, figures, [run.figures for run in runs], disk, _curves(runs)))
    return results


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--against`."""
    parser.add_argument(
        "--against",
        action="append",
        choices=tuple(OTHERS),
        help="run the same against another system, taking turns, and print the ratio",
    )


def check(options: argparse.Namespace) -> None:
    """Raise BenchError if the options cannot be combined with `--against`."""
    if options.against and options.server is not None:
        raise BenchError("--against compares servers with the same sync policy, so it takes no --server")


@asynccontextmanager
async def compared(options: argparse.Namespace, sync: str) -> AsyncIterator[list[Target]]:
    """Start everything that is to be measured, for a block. Raises BenchError."""
    async with AsyncExitStack() as stack:
        running: list[Target] = [await stack.enter_async_context(liftbridge(options, sync))]
        for name in getattr(options, "against", None) or ():
            running.append(await stack.enter_async_context(OTHERS[name](options, sync)))  # noqa: PERF401
        yield running


def _curves(runs: Sequence[Measured]) -> dict[str, Sequence[tuple[float, float]]]:
    """The percentiles of all runs together."""
    return {
        name: latency.curve(latency.merged(run.latencies[name] for run in runs)) for name in runs[0].latencies
    }
