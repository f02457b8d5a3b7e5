"""TCP proxies in front of servers and NATS, so that what is between them can be cut, slowed and broken.

Each server listens on a port of its own and has others told the port of its proxy; it reaches NATS through a
proxy that nobody else uses. What happens to bytes depends on who sends them to whom: a `Way` for each ordered
pair, whatever connection they are on, so a link can be cut in one direction only. Who has connected is told
by the owner of the socket, in /proc, as all come from one address; so this needs Linux.

A proxy is not a network: a cut holds bytes back as lost packets do, and gives them out when it is over, as
TCP would send them again. A way that swallows loses them for good, so its connections are reset at the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import threading
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

Address = tuple[str, int]
T = TypeVar("T")

CHUNK_BYTES = 65536
# Chunks that are on their way in one direction of a connection; behind them TCP makes the sender wait.
ON_THEIR_WAY = 64
RESET = struct.pack("ii", 1, 0)


class Way:
    """What happens to bytes from one to another; to be changed by `Proxies` only.

    Attributes:
        open: whether they pass at all now.
        swallows: they are taken, and never arrive.
        delay: seconds that they take.
        rate: bytes that pass in a second, 0 for as many as come.
        passed: bytes that have arrived.
    """

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.open.set()
        self.swallows = False
        self.delay = 0.0
        self.rate = 0
        self.passed = 0


class _Connection:
    """A connection through a proxy: two pumps."""

    def __init__(self, source: str, target: str, writer: asyncio.StreamWriter) -> None:
        self.ends = {source, target}
        self.broken = False  # bytes of it were swallowed
        self._writers = [writer]

    def add(self, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)

    def reset(self) -> None:
        """End it as a machine does that knows nothing of it: with RST."""
        for writer in self._writers:
            sock = writer.get_extra_info("socket")
            if sock is not None and sock.fileno() != -1:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            writer.transport.abort()


class Proxies:
    """All proxies, in a thread of their own; a context manager.

    `pids` tells the process ids of those who may connect, by name; anybody else is "client".
    """

    def __init__(self, pids: Callable[[], dict[str, int]]) -> None:
        self._pids = pids
        self._ways: dict[tuple[str, str], Way] = {}
        self._connections: set[_Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._listeners: list[asyncio.Server] = []
        self._loop = asyncio.SelectorEventLoop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Proxies:
        self._thread.start()
        return self

    def __exit__(self, *args: object) -> None:
        self._call(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    # -- what tests do with them

    def listen(self, target: str, upstream: Callable[[], Address | None], source: str | None = None) -> int:
        """Have a proxy in front of `target`; returns its port.

        `upstream` tells where the target is, None for nowhere. All who connect are `source`, when given.
        """
        return self._call(self._listen(target, upstream, source))

    def cut(self, source: str, target: str) -> None:
        """What one sends to the other does not arrive for now."""
        self._call(self._change(source, target, lambda way: way.open.clear()))

    def slow(self, source: str, target: str, *, delay: float = 0.0, rate: int = 0) -> None:
        """It takes longer; seconds, bytes in a second."""

        def change(way: Way) -> None:
            way.delay, way.rate = delay, rate

        self._call(self._change(source, target, change))

    def swallow(self, source: str, target: str) -> None:
        """What one sends is taken and thrown away: connections stay, half open."""

        def change(way: Way) -> None:
            way.swallows = True

        self._call(self._change(source, target, change))

    def reset(self, one: str, other: str) -> int:
        """Reset the connections between two; returns how many there were."""
        return self._call(self._reset({one, other}))

    def heal(self, source: str, target: str) -> None:
        """All is well again from one to the other."""
        self._call(self._heal(source, target))

    def heal_all(self) -> None:
        """All is well again everywhere."""
        for source, target in list(self._ways):
            self.heal(source, target)

    def passed(self, source: str, target: str) -> int:
        """Bytes that have arrived from one at the other."""
        return self._call(self._look(source, target)).passed

    # -- in the thread

    def _call(self, work: Awaitable[T]) -> T:
        return asyncio.run_coroutine_threadsafe(_awaited(work), self._loop).result(30)

    async def _listen(self, target: str, upstream: Callable[[], Address | None], source: str | None) -> int:
        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._tasks.add(task)
            try:
                await self._serve(reader, writer, target, upstream, source)
            except (asyncio.CancelledError, OSError):
                pass  # the proxies end, or one of the two ends did
            finally:
                self._tasks.discard(task)
                writer.transport.abort()

        listener = await asyncio.start_server(accept, "127.0.0.1", 0)
        self._listeners.append(listener)
        port: int = listener.sockets[0].getsockname()[1]
        return port

    async def _serve(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        target: str,
        upstream: Callable[[], Address | None],
        source: str | None,
    ) -> None:
        if source is None:
            ports = writer.get_extra_info("peername")[1], writer.get_extra_info("sockname")[1]
            source = await asyncio.to_thread(owner, *ports, self._pids())
        connection = _Connection(source, target, writer)
        self._connections.add(connection)
        there, back = self._way(source, target), self._way(target, source)
        try:
            # As a SYN or its answer that is lost: nobody is there yet.
            await there.open.wait()
            await back.open.wait()
            address = upstream()
            if address is None:
                raise ConnectionRefusedError
            upstream_reader, upstream_writer = await asyncio.open_connection(*address)
            connection.add(upstream_writer)
            await asyncio.gather(
                _pump(reader, upstream_writer, there, connection),
                _pump(upstream_reader, writer, back, connection),
            )
        finally:
            connection.reset()
            self._connections.discard(connection)

    def _way(self, source: str, target: str) -> Way:
        return self._ways.setdefault((source, target), Way())

    async def _look(self, source: str, target: str) -> Way:
        return self._way(source, target)

    async def _change(self, source: str, target: str, change: Callable[[Way], None]) -> None:
        change(self._way(source, target))

    async def _reset(self, ends: set[str]) -> int:
        found = [each for each in self._connections if each.ends == ends]
        for connection in found:
            connection.reset()
        return len(found)

    async def _heal(self, source: str, target: str) -> None:
        way = self._way(source, target)
        way.swallows, way.delay, way.rate = False, 0.0, 0
        for connection in [each for each in self._connections if each.ends == {source, target}]:
            if connection.broken:
                connection.reset()
        way.open.set()

    async def _end(self) -> None:
        for listener in self._listeners:
            listener.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _awaited(work: Awaitable[T]) -> T:
    return await work


async def _pump(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: Way, connection: _Connection
) -> None:
    """Carry bytes one way until they end."""
    queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(ON_THEIR_WAY)
    deliver = asyncio.ensure_future(_deliver(queue, writer, way, connection))
    loop = asyncio.get_running_loop()
    try:
        while True:
            data = await reader.read(CHUNK_BYTES)
            putting = asyncio.ensure_future(queue.put((loop.time() + way.delay, data)))
            await asyncio.wait({putting, deliver}, return_when=asyncio.FIRST_COMPLETED)
            if not data or deliver.done():
                putting.cancel() if deliver.done() else await putting
                break
        await deliver
    finally:
        deliver.cancel()


async def _deliver(
    queue: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter, way: Way, connection: _Connection
) -> None:
    loop = asyncio.get_running_loop()
    while True:
        due, data = await queue.get()
        await asyncio.sleep(max(0.0, due - loop.time()))
        if way.rate:
            await asyncio.sleep(len(data) / way.rate)
        await way.open.wait()
        if way.swallows:
            connection.broken = True
            continue
        if not data:
            with contextlib.suppress(OSError):
                writer.write_eof()
            return
        writer.write(data)
        await writer.drain()
        way.passed += len(data)


def owner(port: int, peer_port: int, pids: dict[str, int]) -> str:
    """Whose socket on this machine has this port, and that of its peer; "client" when it is nobody's."""
    inode = _inode(port, peer_port)
    for name, pid in pids.items():
        if f"socket:[{inode}]" in _open_files(pid):
            return name
    return "client"


def _inode(port: int, peer_port: int) -> str:
    with open("/proc/net/tcp") as table:
        for line in table:
            fields = line.split()
            if fields[1].endswith(f":{port:04X}") and fields[2].endswith(f":{peer_port:04X}"):
                return fields[9]
    return ""


def _open_files(pid: int) -> Iterable[str]:
    """What the descriptors of a process are; of one that has ended, nothing."""
    found = set()
    with contextlib.suppress(OSError):
        for entry in os.scandir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                found.add(os.readlink(entry.path))
    return found
