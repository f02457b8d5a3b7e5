"""Rows, tests and docs/compatibility.md agree: no row without a test or a reason, no test without a row."""

import ast
from collections import Counter
from pathlib import Path

from compatibility import FAILS, NOT_RUN, document
from conformance_rows import ROWS

HERE = Path(__file__).parent
DOCUMENT = HERE.parents[1] / "docs" / "compatibility.md"


def names_of_tests():
    """The names of all test functions of the rows."""
    for file in sorted(HERE.glob("test_conformance_*.py")):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                yield node.name


def test_every_row_has_one_test_or_a_reason():
    expected = Counter(row.test for row in ROWS if not row.reason)
    assert Counter(names_of_tests()) == expected
    assert set(expected.values()) == {1}


def test_the_committed_table_is_that_of_a_run_in_which_every_test_passed():
    everything = dict.fromkeys(names_of_tests(), True)
    assert DOCUMENT.read_text(encoding="utf-8") == document(everything), "run `make compatibility`"


def test_the_table_tells_of_failures():
    names = list(names_of_tests())
    passed = dict.fromkeys(names[1:], True)
    assert document(passed).count(NOT_RUN) == 1
    assert document({**passed, names[0]: False}).count(FAILS) == 1
    for row in ROWS:
        assert "|" not in "".join(row), f"{row.feature}: it would break the table"
