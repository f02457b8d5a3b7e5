"""The sending side of a connection: what waits for the socket, and how it gets there.

What is written during a reader's turn (`liftbridge.sockets`) leaves at its end. All else is sent by the task
`run`, everything that has gathered in one system call, so a burst of answers costs one wake-up; so is what
the socket does not take at once, and whatever goes through TLS.

Invariants: a piece is complete frames, and pieces leave in their order; urgent ones go ahead of the rest.
"""

from collections.abc import Callable, Iterator

import trio

from liftbridge.sockets import AT_ONCE, Turn, send_now

from .limits import Account

_WORTH_A_SEND = 32 * 1024  # bytes for which a system call is cheaper than a copy


class Writer:
    """Sends frames on a transport.

    Args:
        transport: the socket, or TLS on it.
        account: counts the bytes that wait.
        turn: the readers' turns of this event loop.
        on_sent: called when less is waiting than before.
        on_broken: called when the peer cannot be reached any more.
    """

    def __init__(
        self,
        transport: trio.abc.Stream,
        account: Account,
        turn: Turn,
        on_sent: Callable[[], None],
        on_broken: Callable[[], None],
    ) -> None:
        self.size = 0
        """Bytes that wait for the socket."""
        self._transport = transport
        self._socket = transport if isinstance(transport, trio.SocketStream) else None
        self._account = account
        self._turn = turn
        self._on_sent = on_sent
        self._on_broken = on_broken
        self._out: list[bytes] = []
        self._urgent: list[bytes] = []
        self._sending = False
        self._due = trio.lowlevel.ParkingLot()
        self._drained = trio.lowlevel.ParkingLot()
        self._at_once = self._send_at_once  # one object, by which the turn knows it

    def write(self, frames: bytes) -> None:
        """Append complete frames to what is sent."""
        self._append(self._out, frames)

    def write_urgent(self, frames: bytes) -> None:
        """Send complete frames ahead of what is waiting."""
        self._append(self._urgent, frames)

    def _append(self, queue: list[bytes], frames: bytes) -> None:
        queue.append(frames)
        self._count(len(frames))
        if not self._turn.later(self._at_once):
            self._due.unpark()

    async def run(self) -> None:
        """Send until the connection breaks."""
        while True:
            while not self._out and not self._urgent:
                await self._due.park()
            for data in _joined(self._take()):
                self._sending = True
                try:
                    await self._transport.send_all(data)
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    self._on_broken()
                    self._drained.unpark_all()
                    return
                finally:
                    self._sending = False
                self._note_sent(len(data))

    async def wait_drained(self) -> None:
        """Wait until less is waiting, or the connection is broken."""
        await self._drained.park()

    def move_to(self, account: Account) -> None:
        """Count what waits on another account."""
        self._account.unsent -= self.size
        account.unsent += self.size
        self._account = account

    def settle(self) -> None:
        """Take what was not sent off the account; the connection has ended."""
        self._count(-self.size)

    def _send_at_once(self) -> None:
        """The end of a turn."""
        if self._sending:
            return  # the task looks again before it sleeps
        if self._socket is None or self.size > AT_ONCE:
            self._due.unpark()
            return
        batch = self._take()
        data = batch[0] if len(batch) == 1 else b"".join(batch)
        sent = send_now(self._socket, data)
        if sent < len(data):
            self._out = [data[sent:]]
            self._due.unpark()
        if sent:
            self._note_sent(sent)

    def _take(self) -> list[bytes]:
        batch = self._urgent + self._out if self._urgent else self._out
        self._out, self._urgent = [], []
        return batch

    def _note_sent(self, size: int) -> None:
        self._count(-size)
        if self._drained:
            self._drained.unpark_all()
        self._on_sent()

    def _count(self, change: int) -> None:
        self.size += change
        self._account.unsent += change


def _joined(parts: "list[bytes]") -> Iterator[bytes]:
    """Join what is small, so that one system call sends many answers; what is large goes as it is."""
    small: list[bytes] = []
    for part in parts:
        if len(part) < _WORTH_A_SEND:
            small.append(part)
            continue
        if small:
            yield b"".join(small)
            small = []
        yield part
    if small:
        yield b"".join(small)
