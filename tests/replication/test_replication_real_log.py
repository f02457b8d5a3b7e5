"""The machines on logs as they are on disk."""

from __future__ import annotations

from replication_cases import BROKER_EPOCHS, STREAM, follower, partition

from liftbridge.log import BatchBuilder, Log, LogOptions
from liftbridge.metadata.model import Guarantees
from liftbridge.replication.follower import Follower, Truncate
from liftbridge.replication.leader import Leader
from liftbridge.replication.messages import Accepted, LogView


def open_log(directory) -> Log:
    return Log.open(directory, stream_id=STREAM, partition=0, options=LogOptions())


def numbered(first: int, count: int) -> BatchBuilder:
    builder = BatchBuilder()
    for number in range(first, first + count):
        builder.add_record(
            value=b"%d" % number, timestamp=1000 * number, subject=b"s", reply=b"", key=None, headers=b""
        )
    return builder


def leading(log, epoch: int) -> Leader:
    log.begin_epoch(epoch, 0)
    return Leader(
        "a",
        STREAM,
        partition(leader_epoch=epoch, epoch=epoch),
        Guarantees(min_isr=2, synced=True),
        log,
        high_watermark=-1,
        broker_epochs=BROKER_EPOCHS,
        max_lag=10.0,
        now=0.0,
    )


def agree(leader: Leader, machine: Follower, log) -> list[int]:
    """State positions and cut the follower's log off until the leader accepts; the offsets of the cuts."""
    cuts = []
    statement = machine.begin()
    while True:
        answer = leader.state(statement, 1.0)
        if isinstance(answer, Accepted):
            machine.receive(answer)
            return cuts
        action = machine.receive(answer)
        assert isinstance(action, Truncate), action
        log.truncate(action.offset)
        cuts.append(action.offset)
        statement = machine.begin()


def test_two_logs_agree_after_as_many_questions_as_epochs_differ(tmp_path):
    one, other = open_log(tmp_path / "one"), open_log(tmp_path / "other")
    view: LogView = one  # a log is what the machines look at
    for log in (one, other):
        log.begin_epoch(2, 0)
        log.append(numbered(0, 5), 2)
    # Epoch 3 led by the one, epoch 4 by the other, and neither told anybody.
    one.begin_epoch(3, 5000)
    one.append(numbered(5, 2), 3)
    other.append(numbered(5, 1), 2)
    other.begin_epoch(4, 6000)
    other.append(numbered(6, 4), 4)
    leader = leading(one, 5)
    machine = follower(other)
    assert agree(leader, machine, other) == [6, 5]
    assert other.epochs == ((2, 0),)
    assert (other.next_offset, other.synced_offset) == (5, 5)
    place = leader.send_from("b")
    assert place is not None
    assert (place.next_offset, place.last_epoch) == (view.next_offset - 2, 2)
    one.close()
    other.close()


def test_the_beginning_of_an_epoch_that_nobody_else_has_goes_alone(tmp_path):
    one, other = open_log(tmp_path / "one"), open_log(tmp_path / "other")
    for log in (one, other):
        log.begin_epoch(2, 0)
        log.append(numbered(0, 5), 2)
    other.begin_epoch(4, 5000)
    leader = leading(one, 5)
    machine = follower(other)
    assert agree(leader, machine, other) == [5]
    assert (other.next_offset, other.last_epoch) == (5, 2)
    one.close()
    other.close()


def test_what_is_on_disk_is_told_and_counts(tmp_path):
    one, other = open_log(tmp_path / "one"), open_log(tmp_path / "other")
    for log in (one, other):
        log.begin_epoch(2, 0)
        log.append(numbered(0, 5), 2)
    leader = leading(one, 5)
    one.sync()
    machine = follower(other)
    agree(leader, machine, other)
    leader.state(follower(other).begin(), 1.0)
    assert leader.commit() == -1
    other.sync()
    statement = machine.progress()
    assert statement is not None
    leader.state(statement, 1.0)
    assert leader.followers["b"].position(durable=True) == 5
    one.close()
    other.close()
