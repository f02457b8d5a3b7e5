"""Master keys: which a server starts with, and what it says without one."""

from pathlib import Path

import pytest

from liftbridge.broker.config import Config, ConfigError, load

KEY = "sixteen bytes ok"
OLD = "an old key of 32 bytes, all text"
VARIABLE = "LIFTBRIDGE_ENCRYPTION_KEY"
ON = {"streams.encryption": True}


def test_encryption_is_on_with_a_key() -> None:
    config = load(None, ON, {VARIABLE: KEY})
    assert config.streams.encryption
    assert config.keyring is not None
    assert config.keyring.active.secret == KEY.encode()
    assert (config.keyring_problem, config.warnings) == ("", ())


@pytest.mark.parametrize("environ", [{}, {VARIABLE: ""}, {VARIABLE: "too short"}, {VARIABLE: "x" * 24}])
def test_encryption_without_a_usable_key_is_refused(environ: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"streams.encryption: true needs.*invalid AES key size"):
        load(None, ON, environ)


def test_a_key_alone_encrypts_nothing_but_lets_streams_ask_for_it() -> None:
    config = load(None, {}, {VARIABLE: KEY})
    assert not config.streams.encryption
    assert config.keyring is not None
    assert config.warnings == ()


def test_without_a_key_and_without_encryption_nothing_is_said() -> None:
    config = load(None, {}, {})
    assert config.keyring is None
    assert "invalid AES key size" in config.keyring_problem
    assert config.warnings == ()


def test_a_key_that_cannot_be_used_is_warned_about() -> None:
    config = load(None, {}, {VARIABLE: "too short"})
    assert config.keyring is None
    (warning,) = config.warnings
    assert "invalid AES key size: 9 bytes" in warning
    assert "too short" not in warning


def with_old_keys(path: Path, content: bytes, environ: dict[str, str]) -> Config:
    path.write_bytes(content)
    return load(None, {"streams.encryption.old.keys.file": str(path)}, environ)


def test_old_keys_come_from_the_file(tmp_path: Path) -> None:
    config = with_old_keys(tmp_path / "old", OLD.encode() + b"\n", {VARIABLE: KEY})
    old = load(None, {}, {VARIABLE: OLD}).keyring
    assert config.keyring is not None and old is not None
    assert old.active.id in config.keyring
    assert config.keyring.active.secret == KEY.encode()


def test_old_keys_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"^streams.encryption.old.keys.file cannot .*, line 2: invalid AES"
    ):
        with_old_keys(tmp_path / "old", OLD.encode() + b"\nshort\n", {VARIABLE: KEY})
    with pytest.raises(ConfigError, match=r"^streams.encryption.old.keys.file cannot .*No such file"):
        load(None, {"streams.encryption.old.keys.file": str(tmp_path / "none")}, {VARIABLE: KEY})


def test_old_keys_without_an_active_one_have_no_effect(tmp_path: Path) -> None:
    (warning,) = with_old_keys(tmp_path / "old", OLD.encode(), {}).warnings
    assert "streams.encryption.old.keys.file" in warning


def test_no_key_is_in_the_repr(tmp_path: Path) -> None:
    config = with_old_keys(tmp_path / "old", OLD.encode(), {VARIABLE: KEY})
    assert KEY not in repr(config)
    assert OLD not in repr(config)
