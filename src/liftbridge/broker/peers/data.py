"""A data link: what followers on one broker state, and what leaders on another send them.

The follower gives credit; the leader sends as far as it has some (`replication.credit`). So the reading tasks
of both ends never wait for those who use the link: what they hold is bounded, at the follower by the credit
it gave and one more batch, at the leader by one statement of each partition. That is why heartbeats come
through while a disk is slow.

Invariant: a leader that sends beyond the credit loses the link.
"""

from __future__ import annotations

import uuid

import trio

from liftbridge.replication import credit
from liftbridge.replication.codec import MAX_ALIASES, CodecError, FollowerCodec, Key, LeaderCodec
from liftbridge.replication.messages import Answer, Data, Statement, ToFollower

from . import bounds
from .lanes import HEARTBEAT
from .link import Link
from .model import LinkError, Own
from .pipe import One, framed, prefix


def _joined(records: list[bytes]) -> bytes:
    """Messages with as many records as fit in a piece, ready to be sent."""
    whole = b"".join(records)
    if len(whole) <= bounds.MAX_PIECE:
        return framed(whole)
    messages: list[bytes] = []
    some: list[bytes] = []
    size = 0
    for record in records:
        if some and size + len(record) > bounds.MAX_PIECE:
            messages.append(framed(b"".join(some)))
            some, size = [], 0
        some.append(record)
        size += len(record)
    messages.append(framed(b"".join(some)))
    return b"".join(messages)


class FollowLink(Link):
    """The follower's end.

    Attributes:
        leader: server id of the broker at the other end.
    """

    def __init__(self, messages: One, own: Own, other: Own, window: int) -> None:
        super().__init__(messages, other)
        self.leader = other.server_id
        self._own = own.server_id
        self._window = window
        self._codec = FollowerCodec(own.server_id)
        self._receipts = credit.Receipts(window)
        self._outstanding = 0  # bytes that came and were not given back
        self._statements: dict[Key, Statement] = {}
        self._forgotten: list[Key] = []
        self._come: list[tuple[Key, ToFollower, bytes]] = []
        self._arrived = trio.Event()
        self._due = trio.Event()
        self._newest: dict[Key, int] = {}  # where in `_come` the newest of a partition is

    def send(self, key: Key, statement: Statement) -> None:
        """State where a log is; a newer statement takes the place of one that still waits."""
        assert statement.broker == self._own, statement
        self._statements[key] = statement
        self._due.set()

    def forget(self, key: Key) -> None:
        """The partition has nothing to do with the link any more: what still comes for it is dropped."""
        self._statements.pop(key, None)
        if not self._codec.knows(key):
            return
        self._forgotten.append(key)
        self._due.set()
        if self._newest.pop(key, None) is not None:
            self._receipts.dealt_with(sum(len(payload) for of, _, payload in self._come if of == key))
            self._come = [item for item in self._come if item[0] != key]
            self._newest = {item[0]: index for index, item in enumerate(self._come)}

    def dealt_with(self, size: int) -> None:
        """So many bytes of batches were appended or dropped."""
        self._receipts.dealt_with(size)
        self._due.set()

    async def receive(self) -> list[tuple[Key, ToFollower, bytes]]:
        """All that has come, at least one, in order: the batches of a Data, else no bytes. Raises LinkError
        when the link is lost."""
        while not self._come:
            self._check_open()
            self._arrived = trio.Event()
            await self._arrived.wait()
        come, self._come = self._come, []
        self._newest.clear()
        return come

    def _ended(self) -> None:
        self._arrived.set()

    async def _write(self) -> None:
        while True:
            with trio.move_on_after(bounds.HEARTBEAT_SECONDS) as scope:
                await self._due.wait()
            self._due = trio.Event()
            records = self._records(idle=scope.cancelled_caught)
            if records:
                await self._pipe.send(_joined(records))
            elif scope.cancelled_caught:
                await self._pipe.send(HEARTBEAT)

    def _records(self, *, idle: bool) -> list[bytes]:
        """What is to be sent; `idle`: nothing has happened for a while."""
        codec = self._codec
        forgotten, self._forgotten = self._forgotten, []
        records = [codec.forget(key) for key in forgotten]
        statements, self._statements = self._statements, {}
        records += [codec.statement(key, statement) for key, statement in statements.items()]
        granted = self._receipts.grant(idle=idle or bool(records) or not self._come)
        if granted:
            self._outstanding -= granted
            records.append(codec.grant(granted))
        return records

    async def _read(self) -> None:
        described: tuple[Key, ToFollower] | None = None
        payload = 0
        while True:
            for message in await self._receive():
                if payload:
                    self._take_payload(described, payload, message)
                    described, payload = None, 0
                elif message:
                    described, payload = self._take(message)
            if self._come:
                self._arrived.set()

    def _take(self, message: bytes) -> tuple[tuple[Key, ToFollower] | None, int]:
        """A description; returns the data whose batches come next, and how many bytes they have."""
        try:
            told = self._codec.decode(message)
        except CodecError as error:
            raise LinkError(str(error)) from error
        if told.payload > bounds.MAX_PAYLOAD_BYTES:
            raise LinkError(f"a leader sends {told.payload} bytes at once")
        described = None
        if told.payload_for is not None:
            assert told.payload_for == len(told.messages) - 1, "nothing comes behind a description"
            described = told.messages.pop()
        for key, said in told.messages:
            self._add(key, said, b"")
        if told.payload:
            if self._outstanding >= self._window:
                raise LinkError(f"a leader sends beyond its credit: {self._outstanding} of {self._window}")
            self._outstanding += told.payload
        return described, told.payload

    def _take_payload(self, described: tuple[Key, ToFollower] | None, size: int, payload: bytes) -> None:
        if len(payload) != size:
            raise LinkError(f"{len(payload)} bytes of batches where {size} were described")
        if described is None:
            self.dealt_with(size)  # of a partition that was forgotten
        else:
            self._add(*described, payload)

    def _add(self, key: Key, said: ToFollower, payload: bytes) -> None:
        index = self._newest.get(key)
        if index is not None and isinstance(said, Data) and not said.batches:
            waiting = self._come[index][1]
            if isinstance(waiting, Data) and not waiting.batches and waiting.session == said.session:
                self._come[index] = (key, said, b"")  # says all that the other one says
                return
        if len(self._come) >= bounds.MAX_COME:
            raise LinkError(f"{len(self._come)} messages of a leader wait already")
        self._newest[key] = len(self._come)
        self._come.append((key, said, payload))


class LeadLink(Link):
    """The leader's end.

    Attributes:
        broker: server id of the followers' broker.
        incarnation: of that broker's run.
        turns: whose turn it is to send, and the credit; grants are in it as they come.
    """

    def __init__(self, messages: One, other: Own, window: int, quantum: int) -> None:
        super().__init__(messages, other)
        self.broker = other.server_id
        self.incarnation: uuid.UUID = other.incarnation
        self.turns: credit.Link[Key] = credit.Link(window, quantum)
        self._on_way = 0  # bytes that were sent and not given back
        self._codec = LeaderCodec(other.server_id)
        self._statements: dict[Key, Statement] = {}
        self._forgotten: list[Key] = []
        self._answers: dict[Key, Answer] = {}
        self._arrived = trio.Event()
        self._news = False
        self._due = trio.Event()
        self._sending = trio.Lock()
        self._in_a_row = 0  # what was sent since others could run

    async def receive(self) -> list[tuple[Key, Statement]]:
        """The newest statement of each partition that has stated something. None of them if there is credit
        again, or if partitions were forgotten. Raises LinkError when the link is lost."""
        while not self._news:
            self._check_open()
            self._arrived = trio.Event()
            await self._arrived.wait()
        self._news = False
        statements, self._statements = self._statements, {}
        return list(statements.items())

    def take_forgotten(self) -> list[Key]:
        """Partitions that the follower has forgotten since the last call. They have no turns any more."""
        forgotten, self._forgotten = self._forgotten, []
        return forgotten

    def send(self, key: Key, answer: Answer) -> None:
        """Answer a statement; a newer answer takes the place of one that still waits. Dropped when the
        follower has forgotten the partition."""
        if self._codec.knows(key):
            self._answers.pop(key, None)
            self._answers[key] = answer
            self._due.set()

    async def send_data(self, key: Key, data: Data, payload: bytes | memoryview) -> None:
        """Send data with the bytes of its batches, behind the answers that wait; returns when the connection
        has taken it all, and lets others run not each time but often. The credit is not looked at, and
        `turns.sent` is the caller's.

        When the follower has forgotten the partition nothing is sent, and the credit is given back. A caller
        that is cancelled in the middle loses the link. Raises LinkError.
        """
        size = len(payload)
        assert size == sum(batch.size for batch in data.batches), "the batches are not what is described"
        assert size <= bounds.MAX_PAYLOAD_BYTES, size
        if self._sending.locked():
            await self._sending.acquire()
        else:
            self._sending.acquire_nowait()  # without the pass of the run loop that `acquire` always takes
        try:
            self._check_open()
            await self._send_encoded(key, data, payload, size)
        finally:
            self._sending.release()

    async def _send_encoded(self, key: Key, data: Data, payload: bytes | memoryview, size: int) -> None:
        records = self._encoded_answers()
        described = self._codec.data(key, data)
        if described:
            records.append(described)
            self._on_way += size
        else:
            self.turns.grant(size)
            size = 0
        if not records:
            return
        head = _joined(records)
        if not size:
            await self._send(head)
        elif size <= bounds.INLINE_BYTES:
            await self._send(b"".join((head, prefix(size), payload)))
        else:
            # Two writes, so that the batches are not copied here.
            await self._send(head + prefix(size), payload)

    async def _send(self, *parts: bytes | memoryview) -> None:
        if len(parts) == 1 and self._pipe.send_at_once(bytes(parts[0])):
            # What is sent in one pass of the run loop leaves in one system call; others have to run, too.
            self._in_a_row += bounds.COST_OF_A_SEND + len(parts[0])
            if self._in_a_row >= bounds.MAX_IN_A_ROW:
                self._in_a_row = 0
                await trio.lowlevel.checkpoint()
            return
        self._in_a_row = 0
        whole = False
        try:
            for part in parts:
                await self._pipe.send(part)
            whole = True
        finally:
            if not whole:
                self.lose("sending was ended in the middle")

    def forget(self, key: Key) -> None:
        """This broker has nothing to do with the partition any more; its turn and its answer are dropped."""
        self.turns.withdraw(key)
        self._answers.pop(key, None)

    def _ended(self) -> None:
        self._arrived.set()

    def _encoded_answers(self) -> list[bytes]:
        answers, self._answers = self._answers, {}
        return [self._codec.answer(key, answer) for key, answer in answers.items()]

    async def _write(self) -> None:
        while True:
            with trio.move_on_after(bounds.HEARTBEAT_SECONDS):
                await self._due.wait()
            self._due = trio.Event()
            async with self._sending:
                records = self._encoded_answers()
                await self._pipe.send(_joined(records) if records else HEARTBEAT)

    async def _read(self) -> None:
        while True:
            for message in await self._receive():
                if message:
                    self._take(message)
            if self._news:
                self._arrived.set()

    def _take(self, message: bytes) -> None:
        try:
            heard = self._codec.decode(message)
        except CodecError as error:
            raise LinkError(str(error)) from error
        for key in heard.forgotten:
            self._statements.pop(key, None)
            self.forget(key)
        self._forgotten += heard.forgotten
        if len(self._forgotten) > MAX_ALIASES:
            raise LinkError(f"a follower forgets partitions faster than it is heard: {len(self._forgotten)}")
        self._statements.update(heard.statements)
        if heard.granted:
            self._on_way -= heard.granted
            if self._on_way < 0:
                raise LinkError(f"a follower gives {-self._on_way} bytes of credit back that it did not get")
            self.turns.grant(heard.granted)
        self._news = True
