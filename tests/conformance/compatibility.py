"""Write docs/compatibility.md from conformance_rows and a run of the tests (`make compatibility`).

Nothing about the run is written but its outcome, so that the same outcome gives the same text, and
test_compatibility_table.py can tell whether the committed text is that of a run in which every test passed.
"""

from __future__ import annotations

import sys
from itertools import groupby
from pathlib import Path

import pytest
from conformance_rows import NEEDS_A_CLUSTER, ROWS, Row

FOLDER = Path(__file__).parent
PASS, FAILS, NOT_RUN = "pass", "**fails**", "**not run**"

HEAD = """\
# Compatibility

Written by `make compatibility`, never by hand: the features of the original server, and what the tests in
`tests/conformance` say of each. They start real servers and drive them with the stubs that gufo-liftbridge
was published with, and with nats-py: nothing of this project's client is in between. {passed} of {rows} rows
pass; the others have a reason. Each status code and text that clients compare is an entry of
`tests/conformance/test_statuses.py`; gufo-liftbridge's own tests run against this server as well
(`tests/clients/test_gufo_own_tests.py`).

*Since* is the version of the original that brought a feature. What this server does differently, on purpose,
is told behind the result.
"""


class Outcomes:
    """A pytest plugin: the outcome of each test function, the worst of its parameters'."""

    def __init__(self) -> None:
        self.passed: dict[str, bool] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A phase of a test has ended; one that was skipped shows nothing, so it has not passed."""
        name = report.nodeid.rpartition("::")[2].partition("[")[0]
        self.passed[name] = report.passed and self.passed.get(name, True)


def result(row: Row, passed: dict[str, bool]) -> str:
    """What stands in the last column."""
    if row.reason:
        return row.reason
    outcome = {True: PASS, False: FAILS, None: NOT_RUN}[passed.get(row.test)]
    return f"{outcome}; {row.note}" if row.note else outcome


def document(passed: dict[str, bool]) -> str:
    """The text of docs/compatibility.md."""
    good = sum(not row.reason and passed.get(row.test, False) for row in ROWS)
    lines = [HEAD.format(passed=good, rows=len(ROWS))]
    for area, rows in groupby(ROWS, key=lambda row: row.area):
        lines += [f"## {area}\n", "| feature | since | shown by | result |", "|---|---|---|---|"]
        lines += [f"| {row.feature} | {row.since} | {row.verified} | {result(row, passed)} |" for row in rows]
        lines.append("")
    lines += ["## Status codes that only a cluster can answer\n", *(f"- {line}" for line in NEEDS_A_CLUSTER)]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run the tests of the rows, write the file named on the command line; returns pytest's exit status."""
    outcomes = Outcomes()
    tests = sorted(map(str, FOLDER.glob("test_conformance_*.py")))
    status = pytest.main([*tests, *sys.argv[2:]], plugins=[outcomes])
    Path(sys.argv[1]).write_text(document(outcomes.passed), encoding="utf-8")
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
