"""`liftbridge sim`: the cores under simulated faults, without a server, a network or a disk.

For whoever wants to see that they hold, or to see again what did not: a kind, a seed and a profile repeat a
run exactly, on any machine with the same version.

Exit status: 0 nothing was found, 1 something was, 2 the command line is wrong.
"""

from __future__ import annotations

import argparse
import json
import sys

from liftbridge.cli.exits import Exit
from liftbridge.cli.session import Parser, add_json
from liftbridge.cli.values import whole
from liftbridge.sim.results import Result
from liftbridge.sim.seeds import KINDS, Sum, runs

_DESCRIPTION = """Run clusters in virtual time while everything goes wrong: messages are lost, late and
doubled, processes are killed, power fails, disks are damaged, members change. `consensus` is the core that
the servers agree by, `cluster` is whole servers with replicas and clients. Prints what must not happen and
has."""
_SHOWN = 60  # events of the trace, unless all are wanted


def parser() -> argparse.ArgumentParser:
    """The command line of `liftbridge sim`."""
    sim = Parser(prog="liftbridge sim", description=_DESCRIPTION)
    sim.add_argument("kind", nargs="?", choices=tuple(KINDS), default="consensus", help="what to run")
    sim.add_argument(
        "--seed", type=whole(0, 2**53), default=0, metavar="N", help="the first seed (default: 0)"
    )
    sim.add_argument("--seeds", type=whole(1), default=1, metavar="M", help="how many (default: 1)")
    sim.add_argument(
        "--profile",
        choices=tuple(dict.fromkeys(name for names in KINDS.values() for name in names)),
        help="what goes wrong (default: the profiles of the kind take turns)",
    )
    sim.add_argument(
        "--trace", action="store_true", help="print the last events, also when nothing was found"
    )
    add_json(sim)
    sim.set_defaults(run=lambda options: _run(sim, options))
    return sim


def _run(parser: Parser, options: argparse.Namespace) -> int:
    if options.profile not in (None, *KINDS[options.kind]):
        parser.error(
            f"there is no profile {options.profile} of {options.kind}: {', '.join(KINDS[options.kind])}"
        )
    total = Sum()
    try:
        for result in runs(options.kind, options.seed, options.seeds, options.profile, trace=options.trace):
            total.add(result)
            if options.json:
                print(json.dumps(_as_json(result)), flush=True)
            elif result.problem:
                print(result.report(None if options.trace else _SHOWN), flush=True)
            elif options.trace:
                print(*result.trace, sep="\n", flush=True)
    except KeyboardInterrupt:
        print("liftbridge: interrupted", file=sys.stderr)
        return Exit.INTERRUPTED
    if not options.json:
        print(total.text())
    return Exit.FAILED if total.problems else Exit.OK


def _as_json(result: Result) -> dict[str, object]:
    document: dict[str, object] = {
        "kind": result.kind,
        "seed": result.seed,
        "profile": result.profile,
        "problem": result.problem or None,
        "events": result.events,
        "acked": result.acked,
        "terms": result.terms,
        **dict(result.counts),
    }
    if result.trace:
        document["trace"] = list(result.trace)
    return document
