"""Machines on small logs, for tests of one rule each."""

from __future__ import annotations

import itertools
import uuid
from typing import Any

from replica_log import ReplicaLog

from liftbridge.metadata.model import Guarantees, Partition
from liftbridge.replication.follower import Follower
from liftbridge.replication.leader import Leader
from liftbridge.replication.messages import Batch, Data, Statement

STREAM = uuid.UUID(int=9)
EPOCH = 5
BROKER_EPOCHS = {"a": 1, "b": 2, "c": 3}


def log_of(*batches: tuple[int, int], start: int = 0) -> ReplicaLog:
    """A log of (epoch, number of records) after another, all on disk; 0 records begin an epoch."""
    log = ReplicaLog(start)
    for epoch, count in batches:
        log.append(epoch, *(f"{epoch}-{log.next_offset + at}" for at in range(count)))
    log.sync()
    return log


def partition(isr: tuple[str, ...] = ("a", "b", "c"), **changes: Any) -> Partition:
    """Partition 0 on a, b and c, led by a in epoch 5."""
    values: dict[str, Any] = {
        "id": 0,
        "replicas": ("a", "b", "c"),
        "isr": isr,
        "leader": "a",
        "leader_epoch": EPOCH,
        "epoch": EPOCH,
    }
    return Partition(**{**values, **changes})


def leader(
    log: ReplicaLog,
    isr: tuple[str, ...] = ("a", "b", "c"),
    *,
    min_isr: int = 2,
    synced: bool = False,
    high_watermark: int = -1,
    now: float = 0.0,
    **changes: Any,
) -> Leader:
    """Broker a, leading from where `log` ends."""
    log.append(EPOCH)
    log.sync()
    return Leader(
        "a",
        STREAM,
        partition(isr, **changes),
        Guarantees(min_isr=min_isr, synced=synced),
        log,
        high_watermark=high_watermark,
        broker_epochs=BROKER_EPOCHS,
        max_lag=10.0,
        now=now,
    )


def said(broker: str, next_offset: int, last_epoch: int = EPOCH, **changes: Any) -> Statement:
    """What a follower states: all on disk, and all from offset 0 on."""
    values: dict[str, Any] = {
        "broker": broker,
        "broker_epoch": BROKER_EPOCHS.get(broker, 1),
        "leader_epoch": EPOCH,
        "session": 1,
        "next_offset": next_offset,
        "last_epoch": last_epoch,
        "synced_offset": next_offset,
        "log_start": 0,
    }
    return Statement(**{**values, **changes})


def follower(log: ReplicaLog, *, high_watermark: int = -1, **changes: Any) -> Follower:
    """Broker b, following a, with session 1 begun."""
    machine = Follower(
        "b",
        BROKER_EPOCHS["b"],
        partition(**changes),
        log,
        high_watermark=high_watermark,
        sessions=itertools.count(1),
    )
    machine.begin()
    return machine


def data(*batches: tuple[int, int, int], high_watermark: int = -1, **changes: Any) -> Data:
    """What the leader sends: batches of (first, next offset, epoch)."""
    values: dict[str, Any] = {
        "leader_epoch": EPOCH,
        "session": 1,
        "batches": tuple(Batch(*batch, 100) for batch in batches),
        "high_watermark": high_watermark,
        "log_start": 0,
    }
    return Data(**{**values, **changes})
