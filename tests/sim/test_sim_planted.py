"""The bugs for simulated runs fit the code, and some of them are found here; `make sim-bugs` plants all."""

from __future__ import annotations

import pytest
import sensitivity
from sensitivity import BUGS

QUICK = (
    "commits-alone",
    "cut-to-the-watermark",
    "same-epoch-again",
    "nobody-asked",
    "vote-not-stored",
    "old-term-by-counting",
    "two-changes-at-once",
    "snapshot-acked-early",
)


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_it_can_be_planted(bug):
    content = (sensitivity.PACKAGE / bug.folder / bug.file).read_text(encoding="utf-8")
    assert content.count(bug.old) == 1
    assert bug.new != bug.old


def test_their_names_are_unique():
    assert len({bug.name for bug in BUGS}) == len(BUGS)


@pytest.mark.parametrize("name", QUICK)
def test_it_is_found(name):
    bug = next(bug for bug in BUGS if bug.name == name)
    outcome = sensitivity.search(bug, seeds=60)
    assert outcome.seeds is not None, f"60 seeds do not find that {bug.what}"


def test_the_table_tells_what_escapes():
    bug = BUGS[0]
    text = sensitivity.table([sensitivity.Outcome(bug, None, "", "", 1.0)])
    assert f"| `{bug.name}` | {bug.what} | **never** |" in text
