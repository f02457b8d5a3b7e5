"""A relay between a client and a server, to lose what the server answers and nothing else.

A server that is killed may have done what it was asked for or not. Behind a relay it has: the test waits
until it sees that with stubs of its own, and then cuts the connection before the client has heard of it.
"""

from __future__ import annotations

import contextlib
import socket
import threading


class Relay:
    """Passes bytes on between whoever connects to `address` and a server."""

    def __init__(self, server: str) -> None:
        host, _, port = server.rpartition(":")
        self._server = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._lock = threading.Lock()
        self._refusing = False
        self._pairs: list[tuple[socket.socket, socket.socket, threading.Event]] = []
        self._sockets: list[socket.socket] = [self._listener]
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    def lose_answers(self) -> None:
        """Drop what the server sends on the connections there are; what it is sent still arrives."""
        with self._lock:
            for _, _, losing in self._pairs:
                losing.set()

    def admit(self) -> None:
        """Relay new connections again."""
        self._refusing = False

    def cut(self, *, refuse: bool = False) -> None:
        """End the connections there are; with `refuse` those that come, too, until `admit`."""
        with self._lock:
            self._refusing = refuse
            pairs, self._pairs = self._pairs, []
        for client, server, losing in pairs:
            losing.set()
            for end in (client, server):
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def _start(self, work, *args) -> None:
        thread = threading.Thread(target=work, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                if self._refusing:
                    client.close()
                    continue
                server = socket.create_connection(self._server)
                pair = client, server, threading.Event()
                with self._lock:
                    self._sockets += [client, server]
                    self._pairs.append(pair)
                self._start(self._pass_on, client, server, threading.Event())
                self._start(self._pass_on, server, client, pair[2])

    def _pass_on(self, source: socket.socket, target: socket.socket, losing: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if not losing.is_set():
                    target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Relay:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join(10)  # from here on there are no more connections
        self.cut()
        for thread in self._threads:
            thread.join(10)
        for end in self._sockets:
            end.close()
