"""The documents name what there is: files, make targets, links."""

import re
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "liftbridge"
MADE = {".c", ".so", ".pyc"}
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/**/*.md")])
LINK = re.compile(r"(?<!!)\[[^\]\n]*\]\(([^)\s]+)\)")
CODE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
TARGET = re.compile(r"^([a-z][a-z-]*):(?!=)", re.MULTILINE)


def files_of_the_package():
    """Every source file, as the path below src/liftbridge."""
    return {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and path.suffix not in MADE
    }


def named_in_the_table():
    """Every file in the table of ARCHITECTURE.md: what stands in code marks in the first column."""
    table = (
        (ROOT / "ARCHITECTURE.md")
        .read_text(encoding="utf-8")
        .split("## Files and layers")[1]
        .split("\n## ")[0]
    )
    rows = [line for line in table.splitlines() if line.startswith("| `")]
    return [name for row in rows for name in re.findall(r"`([^`]+)`", row.split("|")[1])]


def anchors(text):
    """The anchors of a document's headings, as code hosts make them."""
    headings = re.findall(r"^#+ (.+)$", CODE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_architecture_names_every_file_once_and_no_other():
    named = named_in_the_table()
    assert sorted(named) == sorted(files_of_the_package())


def test_every_file_named_in_passing_exists():
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    mentioned = set(re.findall(r"`((?:\w+/)*\w+\.(?:pyx|pxd|pyi|py|h|proto))`", text))
    assert len(mentioned) > 50, "the pattern finds no names any more"
    missing = [name for name in mentioned if not (PACKAGE / name).exists() and not (ROOT / name).exists()]
    assert missing == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_make_targets_exist(document):
    targets = set(TARGET.findall((ROOT / "Makefile").read_text(encoding="utf-8")))
    assert {"build", "run", "test", "check", "proto", "bench", "wheel", "clean"} <= targets
    text = document.read_text(encoding="utf-8")
    used = re.findall(r"(?:`|\$ )make ((?:[A-Z]+=\S+ )*)([a-z]+(?: [a-z]+)*)(?:`|$|  )", text, re.MULTILINE)
    named = {name for _, names in used for name in names.split()}
    assert named <= targets


def test_the_readme_names_the_way_in():
    assert "make run" in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(document):
    text = document.read_text(encoding="utf-8")
    for link in LINK.findall(CODE.sub("", text)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = unquote(link).partition("#")
        target = document.parent / path if path else document
        assert target.exists(), f"{link} leads nowhere"
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), f"{link}: there is no such heading"


def test_the_printed_commands_are_those_of_the_readme(monkeypatch):
    """What `liftbridge dev` prints, when `make run` starts it, is what the README shows."""
    from argparse import Namespace

    from liftbridge.broker.app import Addresses
    from liftbridge.cli import dev

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("sys.argv", [".venv/bin/liftbridge", "dev"])
    monkeypatch.setenv("PATH", "")
    addresses = Addresses("one", "127.0.0.1", 9292, ("nats://127.0.0.1:4222",))
    printed = dev.welcome(addresses, Namespace(data_dir="./data", nodes=1))
    assert printed.strip() in (ROOT / "README.md").read_text(encoding="utf-8")
