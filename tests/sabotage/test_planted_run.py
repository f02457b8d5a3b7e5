"""How `run.py` judges: by tests that fail, in the code that has the bug, and by nothing else."""

from pathlib import Path

import pytest
from planted import Bug
from run import Copy, UnfairError, planted

PACKAGE = Path(__file__).parents[2] / "src" / "liftbridge"


@pytest.fixture
def copy(tmp_path):
    """A copy of nothing but the package, by name."""
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "liftbridge").symlink_to(PACKAGE)
    return Copy(tmp_path)


def write_tests(copy, text):
    (copy.root / "test_it.py").write_text(text)
    return ["test_it.py"]


def test_the_first_failure_counts(copy):
    text = "def test_a(): pass\ndef test_b(): assert 1 > 2\ndef test_c(): raise OSError\n"
    assert copy.first_failure(write_tests(copy, text)) == "test_it.py::test_b"


def test_none_is_none(copy):
    assert copy.first_failure(write_tests(copy, "def test_a(): pass\n")) == ""


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("import nothing_of_this_name\ndef test_a(): pass\n", "pytest ended with 2"),
        ("def test_a(): import nothing_of_this_name\n", "ModuleNotFoundError"),
        ("import pytest\n@pytest.fixture\ndef f(): wrong\ndef test_a(f): pass\n", "NameError"),
        ("import os\ndef test_a(): os.abort()\n", "pytest ended with -6"),
        ("", "pytest ended with 5"),
    ],
)
def test_what_is_no_failure_of_a_test_does_not_count(copy, text, problem):
    with pytest.raises(UnfairError, match=problem):
        copy.first_failure(write_tests(copy, text))


def test_another_package_than_the_copy_does_not_count(tmp_path):
    copy = Copy(tmp_path)
    with pytest.raises(UnfairError, match="not the copy"):
        copy.first_failure(write_tests(copy, "def test_a(): assert 1 > 2\n"))


@pytest.mark.parametrize("content", ["", "old old", "other"])
def test_a_bug_that_does_not_fit_its_file_is_not_planted(content):
    with pytest.raises(UnfairError, match="old text occurs"):
        planted(content, Bug("b", "w", "f.py", "old", "new", ("test_it.py",)))
