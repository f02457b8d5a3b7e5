"""The command `liftbridge-bench`.

Exit status: 0 done, 1 there are no figures or messages were lost (the reason is on standard error), 2 the
command line is wrong.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Awaitable, Callable, Sequence

import purerpc
import trio

from liftbridge.bench import (
    e2e,
    ingest,
    machine,
    mixed,
    output,
    publish,
    recover,
    replicate,
    report,
    sockets,
    subscribe,
)
from liftbridge.bench.errors import BenchError

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup

STOPPED = "stopped"

Workload = Callable[[argparse.Namespace], Awaitable[list[report.Result]]]


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    top = argparse.ArgumentParser(
        prog="liftbridge-bench",
        description="Measure a Liftbridge server: by default one that is started for it and gone afterwards.",
    )
    commands = top.add_subparsers(dest="command", required=True)
    for name, module, text in (
        ("publish", publish, "messages with acks, synchronous or pipelined, over NATS or gRPC"),
        ("ingest", ingest, "plain NATS messages into one partition"),
        ("subscribe", subscribe, "replay of a stream, or its tail, by clients that count"),
        ("e2e", e2e, "latency from publish to delivery, at a rate"),
        ("mixed", mixed, "publishers and subscribers at once"),
        ("replicate", replicate, "messages acked by all of three replicas, beside one"),
        ("recover", recover, "start of a server that was killed"),
    ):
        command = commands.add_parser(
            name,
            help=text,
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(command)
        command.set_defaults(workload=module.run)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    options = parser().parse_args(arguments)
    # Before the load: the load average, among others, is to be that of the others.
    described = machine.describe()
    try:
        output.check(options)
        sockets.allow_many()  # there may be thousands of subscribers
        results = trio.run(_run, options.workload, options)
        output.write(options, described, results)
    except (Exception, BaseExceptionGroup, KeyboardInterrupt) as error:
        reason, status = _reason(error)
        if reason is None:
            raise
        print(f"liftbridge-bench: {reason}", file=sys.stderr)
        return status
    return _verdict(results)


async def _run(workload: Workload, options: argparse.Namespace) -> list[report.Result]:
    return await workload(options)


def _verdict(results: Sequence[report.Result]) -> int:
    # What another system loses is in the table; it is no fault of the server under test.
    ours = [
        result for result in results if result.settings.get("target") == results[0].settings.get("target")
    ]
    lost = sum(run.get("lost") or 0 for result in ours for run in result.runs)
    if lost:
        print(f"liftbridge-bench: {lost:,.0f} messages were lost", file=sys.stderr)
    return 1 if lost else 0


def _reason(error: BaseException) -> tuple[str | None, int]:
    """What to print for an exception that is no defect of ours, and the exit status; None for a defect."""
    if isinstance(error, BaseExceptionGroup):
        found = [_reason(inner) for inner in error.exceptions]
        if (STOPPED, 130) in found:
            return STOPPED, 130
        # The server's end explains the calls that failed with it.
        known = [reason for reason in found if reason[0] is not None]
        ends = [
            reason
            for reason, inner in zip(found, error.exceptions, strict=True)
            if isinstance(inner, BenchError)
        ]
        return (ends or known or found)[0]
    if isinstance(error, KeyboardInterrupt):
        return STOPPED, 130
    if isinstance(error, BenchError):
        return str(error), 1
    if isinstance(error, purerpc.RpcFailedError):
        return f"the server refuses a call: {error.status.status_code.name}: {error.status.status_message}", 1
    if isinstance(error, trio.TooSlowError):
        return "the server does not answer", 1
    if isinstance(error, OSError):
        return str(error), 1
    return None, 1


if __name__ == "__main__":
    sys.exit(main())
