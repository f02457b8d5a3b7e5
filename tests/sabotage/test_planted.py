"""The list of planted bugs fits the code; that the suite catches them is up to `make test-the-tests`."""

from pathlib import Path

import pytest
from planted import BUGS

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "liftbridge"


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_bug_can_be_planted(bug):
    content = (PACKAGE / bug.file).read_text(encoding="utf-8")
    assert content.count(bug.old) == bug.times
    assert bug.new != bug.old


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_its_tests_exist(bug):
    assert bug.tests
    for test in bug.tests:
        path, _, name = test.partition("::")
        text = (ROOT / path).read_text(encoding="utf-8")
        assert not name or f"def {name.partition('[')[0]}(" in text


def test_names_are_unique():
    assert len({bug.name for bug in BUGS}) == len(BUGS)
