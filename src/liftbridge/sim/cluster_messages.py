"""What travels in a simulated cluster, besides the messages of consensus.

Messages are values that nobody changes. Those of replication carry a link, which is what a connection is: a
number that the follower gives, and numbers of the messages in each direction.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

from liftbridge.metadata.control import Heard, Position
from liftbridge.metadata.errors import MetadataError
from liftbridge.metadata.state import Outcome
from liftbridge.replication.messages import Statement, ToFollower
from liftbridge.sim.replica_log import Stored

# (stream UUID, partition id)
Where: TypeAlias = "tuple[uuid.UUID, int]"


class Beat(NamedTuple):
    """A broker tells who decides that it is there; `sent` is the time of its clock."""

    broker: str
    broker_epoch: int
    sent: int
    leaving: bool


class BeatAnswer(NamedTuple):
    """And is told what that is worth, to somebody who has applied as much."""

    broker_epoch: int
    sent: int
    heard: Heard
    applied: int


class Question(NamedTuple):
    """Who decides asks for positions."""

    partitions: Sequence[Where]


class Positions(NamedTuple):
    """And is told."""

    broker: str
    broker_epoch: int
    positions: Mapping[Where, Position]


class Propose(NamedTuple):
    """A broker wants an operation carried out."""

    number: int
    data: bytes


class Proposed(NamedTuple):
    """And is told what came of it; `outcome` is None when the other one does not decide."""

    number: int
    outcome: Outcome | MetadataError | None


class ToLeader(NamedTuple):
    """A follower states where it is."""

    where: Where
    link: int
    number: int
    statement: Statement


class FromLeader(NamedTuple):
    """A leader answers, or sends batches."""

    where: Where
    link: int
    number: int
    message: ToFollower
    batches: Sequence[Stored]


class Publish(NamedTuple):
    """A client's message, as NATS brings it to whoever has subscribed.

    Attributes:
        number: of the attempt.
        records: what to append, each with a number of its own.
        policy: "leader", "all" or "none".
        expected: the offset that it must get, -1 for any.
    """

    where: Where
    number: int
    records: tuple[int, ...]
    policy: str
    expected: int


class Ack(NamedTuple):
    """What became of it: the offset of its first record, or why not."""

    number: int
    offset: int
    refused: str


class Fetch(NamedTuple):
    """A client wants what is committed, from an offset on."""

    where: Where
    number: int
    offset: int


class Fetched(NamedTuple):
    """What there is: `records` are epochs and records from `offset` on."""

    number: int
    offset: int
    log_start: int
    records: Sequence[tuple[int, int]]
    follower: bool


class FetchCursor(NamedTuple):
    """A client wants the newest record of a producer, as a cursor is the newest message of a key."""

    where: Where
    number: int
    producer: int


class Cursor(NamedTuple):
    """The newest record of that producer, 0 for none."""

    number: int
    record: int
