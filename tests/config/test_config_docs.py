"""docs/configuration.md names every key, with the default that the server really has."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from liftbridge.broker.config import all_keys, load
from liftbridge.cli.flags import help_text

DOCUMENT = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| `([a-z.]+)` \| [a-z:]+ \| (.+?) \|", DOCUMENT, re.MULTILINE)


def test_every_key_has_one_row() -> None:
    assert sorted(key for key, _ in ROWS) == sorted(all_keys())


@pytest.mark.parametrize(("key", "default"), ROWS)
def test_the_documented_default_is_the_real_one(key: str, default: str) -> None:
    plain = load(None, {}, {})
    if default.startswith("`"):
        assert replace(load(None, {key: default.strip("`")}, {}), warnings=()) == plain
    else:
        assert default in ("none", "random")
        section, _, field = key.partition(".")
        value = (
            getattr(plain, key) if not field else getattr(getattr(plain, section), field.replace(".", "_"))
        )
        assert value in (None, ())


def test_every_flag_is_in_the_table() -> None:
    documented = set(re.findall(r"^\| (?:`--[^|]*)", DOCUMENT, re.MULTILINE))
    names = {name for row in documented for name in re.findall(r"--([a-z-]+)", row)}
    assert names == set(re.findall(r"^  (?:-\S+, )?--([a-z-]+)", help_text(), re.MULTILINE))


def test_the_example_loads(tmp_path: Path) -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", DOCUMENT, re.DOTALL)
    assert yaml.safe_load(example)
    path = tmp_path / "example.yaml"
    path.write_text(example)
    config = load(str(path), {}, {})
    assert config.streams.retention_max_age == 72 * 3600 * 10**9
    assert config.warnings == ()
