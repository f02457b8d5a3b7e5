"""The YAML configuration file, as an operator or a broken tool may have written it.

Checked: a file is a configuration or is refused with a ConfigError that names the file and is short; nothing
of it is constructed or run; the same file again gives the same.
"""

from __future__ import annotations

from collections.abc import Iterator

from fuzz_targets.memory import scratch
from liftbridge.broker.config import Config, ConfigError, all_keys, load

INSTRUMENTED = (
    "liftbridge.broker.config",
    "liftbridge.broker.config_sources",
    "liftbridge.broker.config_values",
    "yaml",
)
MAX_LENGTH = 1024
WORDS = (
    *(key.encode() for key in all_keys()),
    *(word.encode() for word in sorted({w for k in all_keys() for w in k.split(".")})), b": ", b"\n  ", b"- ",
    b"&a ", b"*a", b"<<: *a", b"!!python/object:os.system", b"? ", b"|\n", b">-\n", b"true", b"1h30m",
    b"0x10", b"1_000", b"!!binary", b"nats://", b"[::1]:9292", b"%YAML 1.1\n", b"---\n", b"...\n",
    b"\xff\xfe",
)  # fmt: skip

ERROR = 1000  # characters, more than any error needs


def seeds() -> Iterator[bytes]:
    """Files as the documentation shows them, and what YAML has besides."""
    yield b"port: 9292\nhost: 127.0.0.1\nlogging:\n  level: debug\nnats.servers:\n  - nats://localhost:4222\n"
    yield b"streams:\n  retention.max.age: 24h\n  sync: {policy: interval, interval: 1s}\nserver.id: a"
    yield b"listen: '[::1]:9292'\ntls.key: k.pem\ntls.cert: c.pem\ntls.client.auth.enabled: true\n"
    yield b"a: &a {port: 1}\nstreams: {<<: *a}\n? [x]\n: y\n"
    yield b"%YAML 1.1\n---\nport: 0x10\nhost: |\n  text\n...\n"
    yield "port: 1".encode("utf-16")


def read(data: bytes) -> Config | str:
    path = scratch() / "liftbridge.yaml"
    path.write_bytes(data)
    try:
        return load(str(path), {}, {})
    except ConfigError as error:
        return str(error)


def run(data: bytes) -> None:
    found = read(data)
    if isinstance(found, str):
        assert 0 < len(found) < ERROR and found.isprintable(), f"an error for nobody: {found!r}"
    assert read(data) == found
