"""Any bytes in a configuration file give a configuration or a ConfigError, and soon."""

import contextlib
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from liftbridge.broker import config_sources
from liftbridge.broker.config import Config, ConfigError, all_keys, load
from liftbridge.broker.config_sources import MAX_FILE_BYTES, MAX_VALUES, from_yaml


def read(data: bytes) -> object:
    try:
        return from_yaml(data, "lift.yaml")
    except ConfigError as error:
        assert "lift.yaml" in str(error)
        return error


@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    read(data)


@given(st.text(st.sampled_from(":-?[]{},&*!|>'\"%@`#~.\n \tab1<\\xuU"), max_size=80))
def test_any_yaml_punctuation(text: str) -> None:
    read(text.encode())


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10) | st.dates()
WORDS = st.sampled_from(sorted({word for key in all_keys() for word in key.split(".")})) | st.sampled_from(
    all_keys()
)
TREES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS | st.text(max_size=5), inner),
    max_leaves=8,
)


@given(tree=TREES)
def test_any_tree(tree: object, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "garbage.yaml"
    path.write_text(yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8")
    with contextlib.suppress(ConfigError):
        assert isinstance(load(str(path), {}, {}), Config)


@given(key=st.sampled_from(all_keys()), value=SCALARS.map(str) | st.lists(st.text(max_size=10), max_size=3))
def test_any_value_of_any_key(key: str, value: object) -> None:
    with contextlib.suppress(ConfigError):
        assert isinstance(load(None, {key: value}, {}), Config)


def refused(data: bytes, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_yaml(data, "lift.yaml")


def test_a_huge_file_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "huge.yaml"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ConfigError, match=r"huge\.yaml: .* at most 64 KiB"):
        load(str(path), {}, {})


def test_aliases_cannot_multiply_without_end() -> None:
    lines = ["a0: &a0 {k: 1, l: 2}"]
    lines += [f"a{n}: &a{n} {{" + ", ".join(f"k{i}: *a{n - 1}" for i in range(9)) + "}" for n in range(1, 20)]
    refused("\n".join(lines).encode(), f"more than {MAX_VALUES} values")
    lines = ["a0: &a0 [" + "x," * 200 + "]"]
    lines += [f"k{n}: *a0" for n in range(100)]
    refused("\n".join(lines).encode(), f"more than {MAX_VALUES} values")


def test_a_few_aliases_are_fine() -> None:
    settings = from_yaml(b"groups: {consumer.timeout: &t 5s, coordinator.timeout: *t}", "lift.yaml")
    assert [setting.value for setting in settings.values()] == ["5s", "5s"]


def test_an_alias_to_what_contains_it_is_refused() -> None:
    refused(b"a: &a {b: *a}", "nested too deeply")


@pytest.mark.parametrize("open_", [b"[", b"{a: ", b"- "])
def test_deep_nesting_is_refused(open_: bytes) -> None:
    refused(open_ * 5_000, r"nested too deeply|not valid YAML|a list holds|mapping of keys")
    refused(b"a: " + b"{a: " * 40 + b"1" + b"}" * 40, "nested too deeply")


def test_a_long_key_cannot_be_multiplied() -> None:
    refused(b"? " + b"k" * 30_000 + b"\n: {a: 1, b: 2}", "unknown configuration key")


@pytest.mark.parametrize(
    "text",
    ["!!python/object/apply:os.system ['touch /tmp/x']", "port: !!python/name:os.system 1", "!foo bar"],
)
def test_tags_construct_nothing(text: str) -> None:
    result = read(text.encode())
    assert isinstance(result, (ConfigError, dict))


def test_the_bound_on_the_file_is_the_one_that_is_documented() -> None:
    assert MAX_FILE_BYTES == 64 * 1024
    text = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert "64 KiB" in text and str(config_sources.MAX_DEPTH) in text
