"""Stored metadata: operations and snapshots, as a journal damaged or written by a stranger would bring them.

Checked: bytes are an operation or an OperationError; an operation has one stored form, which decodes to it
again; the state takes it or refuses it with a MetadataError and is as before; every state that can be reached
has a snapshot from which the same state comes, and goes on the same.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator

from fuzz_targets.script import Script, written
from liftbridge.metadata import operations
from liftbridge.metadata.broker_operations import (
    DrainBroker,
    Ended,
    FenceBroker,
    RegisterBroker,
    UnfenceBroker,
    UnregisterBroker,
    WithdrawReplicas,
)
from liftbridge.metadata.errors import MetadataError
from liftbridge.metadata.model import StreamSettings
from liftbridge.metadata.operations import OperationError
from liftbridge.metadata.placement import Placement
from liftbridge.metadata.replica_operations import (
    AlterIsr,
    ChangeLeaders,
    IsrChange,
    LeaderChange,
    Reassignment,
    ReassignPartitions,
)
from liftbridge.metadata.state import ClusterState, SnapshotError
from liftbridge.proto import internal_pb2

INSTRUMENTED = ("liftbridge.metadata",)
MAX_LENGTH = 2048
ID = uuid.UUID(int=7)
WORDS = (
    ID.bytes, b"\x0a\6orders", b"\x0a\1g", b"\x12\1c", b"\x22\x10" + ID.bytes, b"\x08\1\x10\1",
    b"\x3a\3\n\1b",
)  # fmt: skip

OPERATION, SNAPSHOT, RAW = range(3)


def seeds() -> Iterator[bytes]:
    """The life of a stream and of a group, then a snapshot of it."""
    done = [
        operations.CreateStream(
            "orders",
            "shop.orders",
            "",
            ID,
            1,
            StreamSettings(),
            tuple(Placement(("b",), "b") for _ in range(2)),
        ),
        operations.JoinGroup("g", "c", ("orders",), "b"),
        operations.PauseStream("orders", ID, (1,), True, 2),
        operations.ResumeStream("orders", ID, (), 3),
        operations.SetStreamReadonly("orders", ID, (0,), True, 4),
        operations.ChangeGroupCoordinator("g", "d", 2),
        operations.LeaveGroup("g", "c", 2),
        operations.DeleteStream("orders", ID),
    ]
    bodies = [internal_pb2.Operation.FromString(operation.encode()) for operation in done]
    yield written(*(part for body in bodies for part in (OPERATION, int(body.kind), body.body)))
    yield written(*(part for operation in done for part in (RAW, operation.encode())))
    state = ClusterState()
    for index, operation in enumerate(done[:5], 1):
        state.apply(index, operation)
    brokers = [
        operations.decode(operation.encode())
        for operation in (
            RegisterBroker("b", uuid.UUID(int=1), ("b:1",), "r", 1, Ended.CLEAN),
            UnfenceBroker("b", 1),
            operations.CreateStream("orders", "o", "", ID, 1, StreamSettings(), (Placement(("b",), "b"),)),
            AlterIsr((IsrChange(ID, 0, 3, "b", 3, (("b", 1),)),)),
            ChangeLeaders((LeaderChange(ID, 0, 4, "b"),)),
            ReassignPartitions((Reassignment(ID, 0, 5, ("b",)),)),
            WithdrawReplicas("b", 1, ((ID, 0),)),
            DrainBroker("b", 1),
            FenceBroker("b", 1, ((ID, 0, "b"),)),
            UnregisterBroker("b", 1),
        )
    ]
    yield written(*(part for operation in brokers for part in (RAW, operation.encode())))
    yield written(SNAPSHOT, state.snapshot(), OPERATION, int(bodies[-1].kind), bodies[-1].body)


def run(data: bytes) -> None:
    script = Script(data)
    state = ClusterState()
    while script:
        kind = script.number() % 3
        if kind == SNAPSHOT:
            state = restored(state, script.string())
            continue
        if kind == OPERATION:
            number, body = script.number(), script.string()
            stored = internal_pb2.Operation(version=1, kind=number % 64, body=body).SerializeToString()
        else:
            stored = script.string()
        take(state, stored)
    again = ClusterState()
    again.restore(state.snapshot())
    assert again.snapshot() == state.snapshot()


def restored(state: ClusterState, data: bytes) -> ClusterState:
    before = state.snapshot()
    try:
        state.restore(data)
    except SnapshotError:
        assert state.snapshot() == before, "a snapshot that was refused has changed something"
    return state


def take(state: ClusterState, stored: bytes) -> None:
    try:
        operation = operations.decode(stored)
    except OperationError as error:
        assert str(error)
        return
    assert operations.decode(operation.encode()) == operation
    before = state.snapshot()
    twin = ClusterState()
    twin.restore(before)
    index = state.applied_index + 1
    try:
        state.apply(index, operation)
    except MetadataError:
        assert state.snapshot() == before, "an operation that was refused has changed something"
    else:
        twin.apply(index, operation)
        assert twin.snapshot() == state.snapshot(), "a state from a snapshot goes another way"
