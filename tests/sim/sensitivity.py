"""How many seeds it takes to find each planted bug.

For each bug a package is put together that has the changed file, and links to all others; a process of its
own runs seeds with it, of the core alone or of whole clusters, the profiles by turns, until one finds
something. Nothing is built, so most bugs take a second.

`python tests/sim/sensitivity.py` prints a table and fails when a bug escapes; `--only NAME` plants one,
`--seeds N` sets where to give up, `--first N` where to begin, `--table FILE` writes the table.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cluster_bugs
import simulated_bugs
from simulated_bugs import Planted

BUGS = simulated_bugs.BUGS + cluster_bugs.BUGS

PACKAGE = Path(__file__).parents[2] / "src" / "liftbridge"
_SEARCH = """
import importlib, json, sys
from liftbridge.sim.seeds import runs
kind, first, count, target, module = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:]
found = importlib.import_module(module).__file__
assert found.startswith(target), found
for result in runs(kind, first, count, None):
    if result.problem:
        print(json.dumps([result.seed - first + 1, result.profile, result.problem]))
        break
"""


@dataclass(frozen=True)
class Outcome:
    """What became of a bug: after so many seeds, None for never, found with this profile as this problem."""

    bug: Planted
    seeds: int | None
    profile: str
    problem: str
    seconds: float


def plant(bug: Planted, target: Path) -> None:
    """A package `liftbridge` in `target` with a bug in it."""
    package = target / "liftbridge"
    (package / bug.folder).mkdir(parents=True)
    for source in PACKAGE.iterdir():
        if source.name not in (bug.folder, "__pycache__"):
            (package / source.name).symlink_to(source)
    for source in (PACKAGE / bug.folder).glob("*.py"):
        text = source.read_text(encoding="utf-8")
        if source.name == bug.file:
            if text.count(bug.old) != 1:
                raise ValueError(f"{bug.name}: its old text occurs {text.count(bug.old)} times in {bug.file}")
            text = text.replace(bug.old, bug.new)
        (package / bug.folder / source.name).write_text(text, encoding="utf-8")


def search(bug: Planted, seeds: int, first: int = 0) -> Outcome:
    """Run seeds from `first` on, at most so many, until the bug is found."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="liftbridge-sim-") as directory:
        target = Path(directory).resolve()
        plant(bug, target)
        environment = {**os.environ, "PYTHONPATH": str(target), "PYTHONDONTWRITEBYTECODE": "1"}
        module = f"liftbridge.{bug.folder}.{bug.file.removesuffix('.py')}"
        command = [sys.executable, "-c", _SEARCH, bug.kind, str(first), str(seeds), str(target), module]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{bug.name}: {done.stderr}")
    seconds = time.monotonic() - started
    if not done.stdout:
        return Outcome(bug, None, "", "", seconds)
    count, profile, problem = json.loads(done.stdout)
    return Outcome(bug, count, profile, problem.strip().splitlines()[-1], seconds)


def table(outcomes: list[Outcome]) -> str:
    """As Markdown."""
    lines = ["| bug | what is wrong | seeds | found by |", "|---|---|---|---|"]
    for each in outcomes:
        found = "**never**" if each.seeds is None else f"{each.seeds}"
        problem = each.problem.split(":")[0][:110].replace("|", "/")
        lines.append(f"| `{each.bug.name}` | {each.bug.what} | {found} | {each.profile}: {problem} |")
    return "\n".join(lines)


def document(outcomes: list[Outcome], first: int) -> str:
    """The file docs/simulated-bugs.md."""
    core = [each for each in outcomes if each.bug.kind == "consensus"]
    clusters = [each for each in outcomes if each.bug.kind == "cluster"]
    return f"""# Bugs that simulated runs find

Written by `make sim-bugs`; what it does is in [CONTRIBUTING.md](../CONTRIBUTING.md#simulation).
Bugs are planted one at a time. The profiles take turns from seed {first} on, so some bugs have to wait for
the profile that can show them.

## Of the consensus core

{_found(core)} were found by runs of the core.

{table(core)}

## Of replication, metadata and the controller

{_found(clusters)} were found by runs of whole clusters. The checks have the names of the invariants in
`src/liftbridge/sim/cluster_checks.py`.

{table(clusters)}
"""


def _found(outcomes: list[Outcome]) -> str:
    return f"{sum(each.seeds is not None for each in outcomes)} of {len(outcomes)}"


def main() -> int:
    parser = argparse.ArgumentParser(description="Plant bugs in the cores; simulated runs must find them.")
    parser.add_argument("--only", metavar="NAME", action="append", help="only this bug; may be repeated")
    parser.add_argument("--seeds", metavar="N", type=int, default=1000, help="give up after so many (1000)")
    parser.add_argument("--first", metavar="N", type=int, default=0, help="begin with this seed (0)")
    parser.add_argument("--jobs", metavar="N", type=int, default=2, help="bugs at a time (2)")
    parser.add_argument("--table", metavar="FILE", type=Path, help="also write the table into this file")
    options = parser.parse_args()
    bugs = [bug for bug in BUGS if options.only is None or bug.name in options.only]
    if not bugs:
        parser.error(f"there is no bug named {', '.join(options.only)}")
    with ThreadPoolExecutor(options.jobs) as pool:
        outcomes = list(pool.map(partial(search, seeds=options.seeds, first=options.first), bugs))
    print(table(outcomes))
    if options.table:
        options.table.write_text(document(outcomes, options.first), encoding="utf-8")
    escaped = [each.bug.name for each in outcomes if each.seeds is None]
    seconds = sum(each.seconds for each in outcomes)
    print(f"{len(outcomes) - len(escaped)} of {len(outcomes)} found, {seconds:.0f} s", file=sys.stderr)
    if escaped:
        print(f"not found: {', '.join(escaped)}", file=sys.stderr)
    return 1 if escaped else 0


if __name__ == "__main__":
    sys.exit(main())
