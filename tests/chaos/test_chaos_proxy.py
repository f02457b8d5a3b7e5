"""Proxies do to connections what faults say, on real sockets."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading

import pytest

from chaos.proxy import Proxies

PATIENCE = 20.0


@pytest.fixture
def echo():
    """Where a server listens that sends back what it gets."""
    listener = socket.create_server(("127.0.0.1", 0))

    def answer(connection: socket.socket) -> None:
        with connection:
            try:
                while data := connection.recv(65536):
                    connection.sendall(data)
            except OSError:
                pass

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield listener.getsockname()
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()


@pytest.fixture
def proxies():
    with Proxies(lambda: {"me": os.getpid()}) as made:
        yield made


def connect(port):
    return socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)


def ask(connection, data=b"x"):
    connection.sendall(data)
    found = b""
    while len(found) < len(data):
        found += connection.recv(65536)
    return found


def silent(connection):
    """Whether nothing comes for a while."""
    connection.settimeout(0.2)
    try:
        connection.recv(1)
    except TimeoutError:
        return True
    finally:
        connection.settimeout(PATIENCE)
    return False


def test_all_goes_through_and_it_is_known_whose_it_is(proxies, echo):
    with connect(proxies.listen("it", lambda: echo)) as connection:
        data = os.urandom(3_000_000)
        sender = threading.Thread(target=connection.sendall, args=(data,))
        sender.start()
        found = bytearray()
        while len(found) < len(data):
            found += connection.recv(65536)
        sender.join()
        assert found == data
        assert proxies.passed("me", "it") == proxies.passed("it", "me") == len(data)


def test_another_process_is_another_source(proxies, echo):
    port = proxies.listen("it", lambda: echo)
    code = f"import socket; c = socket.create_connection(('127.0.0.1', {port})); c.send(b'x'); c.recv(1)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=PATIENCE)
    assert proxies.passed("client", "it") == 1
    assert proxies.passed("me", "it") == 0


@pytest.mark.parametrize("way", [("me", "it"), ("it", "me")])
def test_what_is_cut_comes_when_the_cut_is_over(proxies, echo, way):
    with connect(proxies.listen("it", lambda: echo)) as connection:
        ask(connection)
        proxies.cut(*way)
        connection.sendall(b"later")
        assert silent(connection)
        arrived = proxies.passed("me", "it")
        assert arrived == (1 if way == ("me", "it") else 6)
        proxies.heal(*way)
        assert connection.recv(5) == b"later"


def test_nobody_connects_over_a_cut(proxies, echo):
    proxies.cut("it", "me")
    with connect(proxies.listen("it", lambda: echo)) as connection:
        connection.sendall(b"x")
        assert silent(connection)
        assert proxies.passed("me", "it") == 0
        proxies.heal_all()
        assert connection.recv(1) == b"x"


def test_what_is_swallowed_is_lost_and_the_connection_with_it(proxies, echo):
    with connect(proxies.listen("it", lambda: echo)) as connection:
        ask(connection)
        proxies.swallow("me", "it")
        connection.sendall(b"lost")
        assert silent(connection)
        proxies.heal("me", "it")
        with pytest.raises(ConnectionResetError):
            connection.recv(1)


def test_reset(proxies, echo):
    port = proxies.listen("it", lambda: echo)
    with connect(port) as connection:
        ask(connection)
        assert proxies.reset("it", "me") == 1
        with pytest.raises(ConnectionResetError):
            connection.recv(1)
    with connect(port) as connection:
        ask(connection)


def test_slow_ways_keep_the_order(proxies, echo):
    with connect(proxies.listen("it", lambda: echo)) as connection:
        proxies.slow("me", "it", delay=0.1, rate=1_000_000)
        data = bytes(range(256)) * 200
        assert ask(connection, data) == data


def test_nobody_there(proxies):
    with connect(proxies.listen("it", lambda: None)) as connection, pytest.raises(ConnectionResetError):
        connection.recv(1)
