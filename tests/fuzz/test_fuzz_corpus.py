"""Every fuzz target over its seeds and the inputs that are kept: the property holds, without a fuzzer.

What a fuzzer has found is in `corpus`, most of it for the coverage it has, and what was a defect once is in
`regressions` (README.md there says what each was).
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest
from fuzz_targets import NAMES

HERE = Path(__file__).parent
CORPUS, REGRESSIONS = HERE / "corpus", HERE / "regressions"
KEPT = 1_200_000  # bytes


def inputs(directory: Path) -> list[Path]:
    return sorted(path for path in directory.glob("*") if path.is_file())


@pytest.mark.parametrize("name", NAMES)
def test_seeds(name):
    target = importlib.import_module(f"fuzz_targets.{name}")
    seeds = list(target.seeds())
    assert seeds
    for seed in seeds:
        assert len(seed) <= target.MAX_LENGTH
        target.run(seed)


@pytest.mark.parametrize("name", NAMES)
def test_noise(name):
    target = importlib.import_module(f"fuzz_targets.{name}")
    for data in (b"", b"\0", bytes(200), b"\xff" * 200, bytes(range(256))):
        target.run(data[: target.MAX_LENGTH])


@pytest.mark.parametrize("name", NAMES)
def test_corpus(name):
    target = importlib.import_module(f"fuzz_targets.{name}")
    for path in inputs(CORPUS / name):
        try:
            target.run(path.read_bytes())
        except Exception as error:  # noqa: PERF203 (which input it was is what one wants to know)
            raise AssertionError(f"{path.relative_to(HERE)} breaks the property") from error


REGRESSED = [path for path in inputs(REGRESSIONS) if path.suffix != ".md"]


@pytest.mark.parametrize("path", REGRESSED, ids=lambda path: path.name)
def test_regressions(path):
    target = importlib.import_module(f"fuzz_targets.{path.name.partition('-')[0]}")
    target.run(path.read_bytes())


def test_every_regression_is_explained():
    table = (REGRESSIONS / "README.md").read_text(encoding="utf-8")
    named = re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)
    assert sorted(named) == sorted(path.name for path in REGRESSED)


def test_the_corpus_is_small_and_has_every_target():
    kept = {directory.name: inputs(directory) for directory in CORPUS.iterdir()}
    assert set(kept) == set(NAMES)
    assert sum(path.stat().st_size for paths in kept.values() for path in paths) <= KEPT
