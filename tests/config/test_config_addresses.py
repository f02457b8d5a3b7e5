"""Which address is bound and which one clients are told."""

import pytest

from liftbridge.broker.config import load


@pytest.mark.parametrize(
    ("settings", "bind", "advertised"),
    [
        ({}, ("0.0.0.0", 9292), ("localhost", 9292)),
        ({"port": "5050"}, ("0.0.0.0", 5050), ("localhost", 5050)),
        ({"host": "my-host"}, ("my-host", 9292), ("my-host", 9292)),
        ({"host": "my-host", "port": "5050"}, ("my-host", 5050), ("my-host", 5050)),
        ({"listen": "0.0.0.0:9292"}, ("0.0.0.0", 9292), ("0.0.0.0", 9292)),
        ({"listen": "127.0.0.1:5050"}, ("127.0.0.1", 5050), ("127.0.0.1", 5050)),
        ({"listen": "127.0.0.1:5050", "port": "6060"}, ("127.0.0.1", 5050), ("127.0.0.1", 5050)),
        ({"listen": "127.0.0.1:5050", "host": "h"}, ("127.0.0.1", 5050), ("h", 9292)),
        ({"listen": "127.0.0.1:5050", "host": "h", "port": "6060"}, ("127.0.0.1", 5050), ("h", 6060)),
        ({"listen": ":5050"}, ("0.0.0.0", 5050), ("localhost", 5050)),
        ({"listen": "5050"}, ("0.0.0.0", 5050), ("localhost", 5050)),
        ({"listen": ":5050", "host": "h", "port": "6060"}, ("0.0.0.0", 5050), ("h", 6060)),
        ({"listen": "[::1]:5050"}, ("::1", 5050), ("::1", 5050)),
        ({"host": "[::1]"}, ("::1", 9292), ("::1", 9292)),
        # A port of 0 is chosen by the system, and the one that was chosen is advertised.
        ({"port": "0"}, ("0.0.0.0", 0), ("localhost", 31337)),
        ({"listen": "127.0.0.1:0"}, ("127.0.0.1", 0), ("127.0.0.1", 31337)),
        ({"listen": "127.0.0.1:5050", "host": "h", "port": "0"}, ("127.0.0.1", 5050), ("h", 31337)),
    ],
)
def test_addresses(settings: dict[str, object], bind: tuple[str, int], advertised: tuple[str, int]) -> None:
    config = load(None, settings, {})
    assert config.bind_address == bind
    assert config.advertised_address(31337) == advertised
