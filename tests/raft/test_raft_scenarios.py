"""Every scenario goes as its file says."""

from __future__ import annotations

import pytest
from scenario import FOLDER, run

FILES = sorted(FOLDER.glob("*.txt"))


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_it_goes_as_written(path):
    text = path.read_text()
    assert run(text) == text


def test_there_are_scenarios():
    assert len(FILES) >= 16
