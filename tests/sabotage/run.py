"""Tests the tests: plants each bug of `planted` in a copy of the repository, and asks the suite.

The copy is what git tracks or would track, in a temporary directory; the C cores are built there once, and
the one that a bug concerns again for that bug. First the tests named must pass as they are. Then each bug is
planted, its tests run until the first that fails, and the bug taken out again.

What counts is a test that fails. One that cannot be collected or ends in an ImportError tells that the bug
broke the build and not a promise, and a process that crashes or hangs takes the suite along before it can
say why: those are "no fair test", and a failure of the run just as a bug that survives.

Invariant: what is imported is the copy. Each run of tests proves that by asking where the package lies.
"""

from __future__ import annotations

import argparse
import functools
import os
import platform
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from planted import BUGS, Bug

ROOT = Path(__file__).parents[2]
PACKAGE = Path("src/liftbridge")
# What is made from the repository. Of C files those of the tests are not, and the others do no harm.
MADE = shutil.ignore_patterns(
    ".git", ".venv*", "build", "dist", "data", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis", "*.so"
)
TEST_SECONDS = 120  # for one test; pytest-timeout fails it then
RUN_SECONDS = 900  # for all tests of a bug; only what hangs in C takes so long
UNFAIR = ("ImportError", "ModuleNotFoundError", "SyntaxError", "NameError", "IndentationError")
_FIXTURE = re.compile(r'^failed on \w+ with "')  # what stands in front of a fixture's error
WHERE = """
import liftbridge._log, liftbridge._wire
for module in (liftbridge, liftbridge._log, liftbridge._wire):
    print(module.__file__)
"""


class UnfairError(Exception):
    """Nothing was learned about the tests; the text says why."""


@dataclass(frozen=True)
class Outcome:
    """What became of a bug: the test that caught it, or why none did."""

    bug: Bug
    caught_by: str
    problem: str
    seconds: float


# ---- copies ----


def copy_repository(target: Path) -> None:
    """Copy what the repository consists of, without what is made from it."""
    if not (ROOT / ".git").exists():  # unpacked from a source distribution
        shutil.copytree(ROOT, target, ignore=MADE)
        return
    listing = ["git", "-C", ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(listing, capture_output=True, check=True).stdout
    for name in map(os.fsdecode, listed.split(b"\0")):
        source = ROOT / name
        if name and source.is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target / name)


class Copy:
    """A copy of the repository, to plant bugs in."""

    def __init__(self, root: Path) -> None:
        self.root = root
        paths = os.pathsep.join([str(root / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
        self.environment = {**os.environ, "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"}

    def build(self, extension: str = "") -> None:
        """Build the C cores in place, or the one named. Raises UnfairError when they cannot be built."""
        command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
        environment = {**self.environment, "LIFTBRIDGE_QUICK_BUILD": extension or "all"}
        done = subprocess.run(command, cwd=self.root, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise UnfairError(f"it does not build: {last_line(done.stderr)}")

    def libraries(self) -> list[Path]:
        """The C cores that have been built."""
        return sorted((self.root / PACKAGE).rglob("*.so"))

    def check_imports(self) -> None:
        """Raises UnfairError unless the copy is what a Python with this environment imports."""
        done = self.python("-c", WHERE)
        if done.returncode:
            raise UnfairError(f"it cannot be imported: {last_line(done.stderr)}")
        for path in done.stdout.splitlines():
            if not Path(path).is_relative_to(self.root / "src"):
                raise UnfairError(f"{path} was imported, not the copy in {self.root}")

    def python(self, *arguments: str, timeout: float | None = None) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *arguments]
        process = subprocess.Popen(
            command,
            cwd=self.root,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        try:
            out, err = process.communicate(timeout=timeout)
        except BaseException:
            os.killpg(process.pid, 9)  # with the servers and workers that the tests have started
            process.communicate()
            raise
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    def first_failure(self, tests: Iterable[str]) -> str:
        """Run tests until one fails, and return it; "" when all pass. Raises UnfairError."""
        self.check_imports()
        report = self.root / "report.xml"
        report.unlink(missing_ok=True)
        try:
            done = self.python(
                *("-m", "pytest", "-x", "-rN", f"--timeout={TEST_SECONDS}", f"--junit-xml={report}", *tests),
                timeout=RUN_SECONDS,
            )
        except subprocess.TimeoutExpired:
            raise UnfairError(f"the tests hang: after {RUN_SECONDS} s they had not ended") from None
        if done.returncode == 0:
            return ""
        if done.returncode != 1 or not report.exists():
            raise UnfairError(f"pytest ended with {done.returncode}: {last_line(done.stdout + done.stderr)}")
        return failure_in(report)

    def try_bug(self, bug: Bug) -> Outcome:
        """Plant a bug, see which test catches it, and take it out again."""
        started = time.monotonic()
        file = self.root / PACKAGE / bug.file
        content = file.read_text(encoding="utf-8")
        libraries = {path: path.read_bytes() for path in self.libraries()} if bug.extension else {}
        caught_by = problem = ""
        try:
            file.write_text(planted(content, bug), encoding="utf-8")
            if bug.extension:
                self.build(bug.extension)
            caught_by = self.first_failure(bug.tests)
            problem = "" if caught_by else "SURVIVES"
        except UnfairError as error:
            problem = f"no fair test: {error}"
        finally:
            file.write_text(content, encoding="utf-8")
            for path, library in libraries.items():
                # A file of its own: a process of before may still have the other one mapped.
                path.unlink()
                path.write_bytes(library)
        return Outcome(bug, caught_by, problem, time.monotonic() - started)


def planted(content: str, bug: Bug) -> str:
    """The content of a file with a bug in it. Raises UnfairError when the list does not fit the file."""
    found = content.count(bug.old)
    if found != bug.times:
        raise UnfairError(f"its old text occurs {found} times in {bug.file}, not {bug.times}")
    return content.replace(bug.old, bug.new)


def failure_in(report: Path) -> str:
    """The id of the test that failed. Raises UnfairError when what failed is no test."""
    for case in ElementTree.parse(report).iter("testcase"):
        for kind in ("failure", "error"):
            found = case.find(kind)
            if found is None:
                continue
            message = _FIXTURE.sub("", found.get("message", ""))
            name = f"{case.get('classname', '').rpartition('.')[2]}.py::{case.get('name')}"
            if message.startswith("collection failure") or message.startswith(UNFAIR):
                raise UnfairError(f"{name}: {message.splitlines()[0]}")
            return name
    raise UnfairError("pytest tells of a failure, and its report of none")


def last_line(text: str) -> str:
    """The last line that says something."""
    return next((line for line in reversed(text.splitlines()) if line.strip()), "it says nothing")


# ---- the run ----


def run(bugs: list[Bug], jobs: int, work: Path) -> list[Outcome]:
    """Try bugs in so many copies; raises UnfairError when the tests fail without any."""
    first = Copy(work / "copy0")
    say("copying and building")
    copy_repository(first.root)
    first.build()
    tests = sorted({test for bug in bugs for test in bug.tests})
    say(f"running the tests of {len(bugs)} bugs without any of them")
    if failed := first.first_failure(tests):
        raise UnfairError(f"{failed} fails without any bug")
    copies = [first]
    for number in range(1, min(jobs, len(bugs))):
        # Times and all, so that nothing counts as changed.
        shutil.copytree(first.root, work / f"copy{number}")
        copies.append(Copy(work / f"copy{number}"))
    free: queue.SimpleQueue[Copy] = queue.SimpleQueue()
    for copy in copies:
        free.put(copy)
    with ThreadPoolExecutor(len(copies)) as pool:
        return list(pool.map(functools.partial(try_in_free_copy, free), bugs))


def try_in_free_copy(free: queue.SimpleQueue[Copy], bug: Bug) -> Outcome:
    """There are as many threads as copies, so there is one."""
    copy = free.get()
    try:
        outcome = copy.try_bug(bug)
    finally:
        free.put(copy)
    say(f"{bug.name}: {outcome.problem or outcome.caught_by} ({outcome.seconds:.0f} s)")
    return outcome


_saying = threading.Lock()


def say(text: str) -> None:
    with _saying:
        print(text, file=sys.stderr, flush=True)


def table(outcomes: list[Outcome]) -> str:
    """The outcomes as a table in Markdown."""
    lines = ["| bug | what is wrong | file | caught by | seconds |", "|---|---|---|---|---|"]
    for each in outcomes:
        caught = f"`{each.caught_by}`" if each.caught_by else f"**{each.problem}**"
        cells = (f"`{each.bug.name}`", each.bug.what, f"`{each.bug.file}`", caught, f"{each.seconds:.0f}")
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def document(outcomes: list[Outcome]) -> str:
    """The file docs/planted-bugs.md."""
    caught = sum(1 for each in outcomes if each.caught_by)
    made_with = f"CPython {platform.python_version()} on {platform.system()}"
    return f"""# Planted bugs

Written by `make test-the-tests` ({made_with}); what it does is in
[CONTRIBUTING.md](../CONTRIBUTING.md#testing-the-tests). Of {len(outcomes)} planted bugs the suite has caught
{caught}. The seconds include building the C core that has the bug.

{table(outcomes)}
"""


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Plant bugs in a copy of the repository; the suite must catch them."
    )
    parser.add_argument("--only", metavar="NAME", action="append", help="only this bug; may be repeated")
    parser.add_argument("--list", action="store_true", help="print the bugs and end")
    parser.add_argument("--jobs", metavar="N", type=int, default=2, help="copies to work in at once (2)")
    parser.add_argument("--table", metavar="FILE", type=Path, help="also write the table into this file")
    arguments = parser.parse_args()
    if arguments.list:
        for bug in BUGS:
            print(f"{bug.name:<24} {bug.file:<24} {bug.what}")
        return 0
    if unknown := set(arguments.only or ()) - {bug.name for bug in BUGS}:
        parser.error(f"there is no bug named {', '.join(sorted(unknown))}; --list names all")
    if arguments.jobs < 1:
        parser.error("--jobs must be at least 1")
    bugs = [bug for bug in BUGS if arguments.only is None or bug.name in arguments.only]
    with tempfile.TemporaryDirectory(prefix="liftbridge-sabotage-") as work:
        try:
            outcomes = run(bugs, arguments.jobs, Path(work).resolve())
        except UnfairError as error:
            say(f"nothing was tested: {error}")
            return 1
    print(table(outcomes))
    if arguments.table:
        arguments.table.write_text(document(outcomes), encoding="utf-8")
    escaped = [each.bug.name for each in outcomes if not each.caught_by]
    say(f"{len(outcomes) - len(escaped)} of {len(outcomes)} bugs were caught")
    if escaped:
        say("not caught: " + ", ".join(escaped))
    return 1 if escaped else 0


if __name__ == "__main__":
    sys.exit(main())
