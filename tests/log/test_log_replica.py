"""Batches from one log into another: as they are, at their offsets, whatever happened to either before."""

import itertools
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from compaction_helpers import UNTHROTTLED
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from log_helpers import (
    BATCH_HEADER,
    MEMORY,
    STREAM,
    Record,
    batch,
    numbered,
    numbers,
    read_all,
    segments,
)

from liftbridge.log import CorruptBatchError, Keyring, Log, LogOptions, ReceivedBatches
from liftbridge.log.inspect import Batch, LogInspector
from liftbridge.log.keys import MasterKey

KEYRING = Keyring(MasterKey.of(b"sixteen bytes ok", "key"), ())
NEVER = (1 << 63) - 1


def open_log(directory: Path, **options: object) -> Log:
    return Log.open(
        directory,
        stream_id=STREAM,
        partition=3,
        options=LogOptions(**{"segment_max_bytes": 2000, **options}),  # type: ignore[arg-type]
        keyring=KEYRING,
    )


def fetch(leader: Log, follower: Log, max_bytes: int = 1000) -> int:
    """One fetch, as the machines have it done; returns how many batches came."""
    payload, described = leader.read_batches(follower.next_offset, follower.last_epoch, max_bytes)
    if not described:
        assert payload == b""
        return 0
    received = ReceivedBatches(payload, described[0][0])
    assert list(received) == described
    assert described[0][0] == follower.next_offset
    follower.append_batches(received, len(described))
    assert follower.next_offset == described[-1][1]
    assert follower.last_epoch == described[-1][2]
    return len(described)


def fetch_all(leader: Log, follower: Log, max_bytes: int = 1000) -> None:
    while fetch(leader, follower, max_bytes):
        pass


def check_same(leader: Log, follower: Log) -> None:
    """What is in both is the same, and they end at the same place."""
    assert (follower.next_offset, follower.last_epoch) == (leader.next_offset, leader.last_epoch)
    start = max(leader.start_offset, follower.start_offset)
    assert read_all(follower, start) == read_all(leader, start)


def test_batches_come_as_they_are(tmp_path):
    leader, follower = open_log(tmp_path / "a"), open_log(tmp_path / "b")
    leader.begin_epoch(7, 0)
    for first in range(0, 200, 10):
        leader.append(numbered(first, 10), 7)
    fetch_all(leader, follower)
    check_same(leader, follower)
    assert numbers(read_all(follower)) == list(range(200))
    assert len(segments(tmp_path / "b")) > 5
    assert follower.epochs == leader.epochs == ((7, 0),)
    follower.close()
    check_same(leader, open_log(tmp_path / "b"))


def test_one_batch_goes_however_large_and_as_many_as_fit(tmp_path):
    leader = open_log(tmp_path / "a", segment_max_bytes=1 << 20)
    sizes = []
    for first in range(0, 100, 10):
        builder = numbered(first, 10)
        sizes.append(builder.size)
        leader.append(builder, 1)
    for limit in (1, sizes[0], sizes[0] + 1, sizes[0] + sizes[1], sum(sizes[:5]) + 1, 1 << 20):
        payload, described = leader.read_batches(0, 0, limit)
        fitting = max(1, sum(total <= limit for total in itertools.accumulate(sizes)))
        assert [size for _, _, _, size in described] == sizes[:fitting]
        assert len(payload) == sum(sizes[:fitting])
    assert leader.read_batches(100, 1, 1 << 20) == (b"", [])


def test_beginnings_of_epochs_are_sent_to_who_does_not_have_them(tmp_path):
    leader = open_log(tmp_path / "a")
    leader.append(numbered(0, 5), 1)
    for epoch in (2, 4, 6):
        leader.begin_epoch(epoch, 4000)
    leader.append(numbered(5, 5), 6)
    leader.begin_epoch(9, 20_000)
    assert [each[:3] for each in leader.read_batches(5, 4, 1 << 20)[1]] == [
        (5, 5, 6),
        (5, 10, 6),
        (10, 10, 9),
    ]
    assert [each[:3] for each in leader.read_batches(5, 6, 1 << 20)[1]] == [(5, 10, 6), (10, 10, 9)]
    assert [each[:3] for each in leader.read_batches(10, 6, 1 << 20)[1]] == [(10, 10, 9)]
    assert leader.read_batches(10, 9, 1 << 20)[1] == []
    for end in range(0, 6, 5):
        follower = open_log(tmp_path / f"b{end}")
        fetch_all(leader, follower, 1)
        check_same(leader, follower)
        assert follower.epochs == leader.epochs


def test_the_beginning_of_an_epoch_in_front_of_an_index_entry_is_sent(tmp_path):
    """The index has no entry for what lies less than 4096 bytes behind the last one, but for the batch behind
    it, at the same offset."""
    leader = open_log(tmp_path / "a", segment_max_bytes=1 << 20)
    whole = batch([Record(b"x" * 3900, 0)]).size
    leader.append(batch([Record(b"x" * (3900 + 4056 - whole), 0)]), 1)
    leader.begin_epoch(2, 0)
    leader.append(numbered(1, 10), 2)
    assert [each[:3] for each in leader.read_batches(1, 1, 1 << 20)[1]] == [(1, 1, 2), (1, 11, 2)]
    assert [each[:3] for each in leader.read_batches(1, 2, 1 << 20)[1]] == [(1, 11, 2)]


def test_every_batch_names_the_one_in_front_of_it(tmp_path):
    leader, follower = (open_log(tmp_path / name, segment_max_bytes=1 << 20) for name in "ab")
    for first in range(0, 100, 10):
        leader.append(numbered(first, 10), 1)
    fetch_all(leader, follower, 3000)
    follower.close()
    chains = [item.chain for item in LogInspector(tmp_path / "b").items() if isinstance(item, Batch)]
    assert chains == ["unchecked", *["good"] * 9]


def test_what_is_synced_here_is_told_not_what_was_synced_there(tmp_path):
    """A batch of the leader's may prove that much is on its disk; in this log it proves what is on this
    disk, or a loss of power would be taken for damage."""
    leader, follower = (open_log(tmp_path / name, segment_max_bytes=1 << 20) for name in "ab")
    for first in range(0, 50, 10):
        leader.append(numbered(first, 10), 1)
        leader.sync()
    fetch_all(leader, follower, 1)
    (file,) = segments(tmp_path / "b")
    content = file.read_bytes()
    told = []
    at = 4096
    while at < len(content):
        told.append(int.from_bytes(content[at + 70 : at + 72], "little"))
        at += int.from_bytes(content[at + 4 : at + 8], "little")
    assert told == [0, 10, 20, 30, 40]  # nothing here is synced: so many records are in front of each


@pytest.mark.parametrize("theirs", [{}, {"compression": "zstd"}, {"encryption": True}])
@pytest.mark.parametrize("ours", [{}, {"compression": "lz4"}, {"encryption": True, "compression": "lz4"}])
def test_whatever_either_log_does_to_bodies(tmp_path, theirs, ours):
    if "encryption" in theirs:
        theirs = {**theirs, "compression": "lz4"}
    leader, follower = open_log(tmp_path / "a", **theirs), open_log(tmp_path / "b", **ours)
    leader.begin_epoch(3, 0)
    for first in range(0, 400, 20):
        leader.append(numbered(first, 20, size=50), 3)
    fetch_all(leader, follower, 3000)
    check_same(leader, follower)
    follower.close()
    follower = open_log(tmp_path / "b", **ours)
    check_same(leader, follower)
    assert follower.offset_at_or_after(1000 * 250) == 250
    if "encryption" in ours:
        stored = b"".join(path.read_bytes() for path in segments(tmp_path / "b"))
        assert b"xxxxxxxx" not in stored


def test_offsets_that_compaction_has_emptied_are_no_gap(tmp_path):
    leader, follower = open_log(tmp_path / "a", compact=True), open_log(tmp_path / "b")
    for round_ in range(30):
        key = b"k%d" % (round_ % 3)
        leader.append(batch(Record(b"v" * 200, 1000 * (10 * round_ + n), key=key) for n in range(10)), 1)
    leader.sync()
    leader.compact(NEVER, leader.next_offset, UNTHROTTLED)
    assert len(read_all(leader)) < 100
    fetch_all(leader, follower)
    check_same(leader, follower)
    for _ in range(2):
        # It is a leader as good as the other one, and outlives its process.
        third = open_log(Path(tempfile.mkdtemp(dir=tmp_path)))
        fetch_all(follower, third)
        check_same(follower, third)
        follower.close()
        follower = open_log(tmp_path / "b")
        check_same(leader, follower)


def test_a_fetch_from_what_retention_has_removed_goes_on_behind_it(tmp_path):
    leader = open_log(tmp_path / "a", retention_max_messages=20)
    follower = open_log(tmp_path / "b")
    for first in range(0, 200, 10):
        leader.append(numbered(first, 10, size=100), 1)
        if first == 50:
            fetch_all(leader, follower)
    leader.sync()
    leader.retain(0, leader.next_offset)
    assert leader.start_offset > 60
    fetch_all(leader, follower)
    check_same(leader, follower)
    assert numbers(read_all(follower, leader.start_offset)) == list(range(leader.start_offset, 200))


def test_a_read_ends_in_front_of_damage_and_then_says_so(tmp_path):
    leader = open_log(tmp_path / "a", segment_max_bytes=1 << 20)
    for first in range(0, 50, 10):
        leader.append(numbered(first, 10), 1)
    (file,) = segments(tmp_path / "a")
    content = bytearray(file.read_bytes())
    content[4096 + 2 * (len(content) - 4096) // 5 + BATCH_HEADER + 3] ^= 1
    file.write_bytes(content)
    payload, described = leader.read_batches(0, 0, 1 << 20)
    assert [each[1] for each in described] == [10, 20]
    assert len(payload) == sum(each[3] for each in described)
    with pytest.raises(CorruptBatchError):
        leader.read_batches(20, 1, 1 << 20)


@pytest.fixture(scope="module")
def sent():
    """What a leader sends."""
    directory = Path(tempfile.mkdtemp(dir=MEMORY))
    leader = open_log(directory / "a", segment_max_bytes=1 << 20)
    for first in range(0, 40, 10):
        leader.append(numbered(first, 10), 1 + first // 20)
    yield leader.read_batches(0, 0, 1 << 20)
    leader.close()
    shutil.rmtree(directory)


@given(data=st.data())
@settings(max_examples=400, deadline=None)
def test_bytes_that_were_changed_are_refused_as_a_whole(sent, data):
    payload, described = sent
    at = data.draw(st.integers(0, len(payload) - 1))
    kind = data.draw(st.sampled_from(["flip", "cut", "zero", "repeat", "insert"]))
    changed = bytearray(payload)
    if kind == "flip":
        changed[at] ^= 1 << data.draw(st.integers(0, 7))
    elif kind == "cut":
        del changed[at : at + data.draw(st.integers(1, 200))]
    elif kind == "zero":
        length = data.draw(st.integers(1, 200))
        changed[at : at + length] = bytes(len(changed[at : at + length]))
    elif kind == "repeat":
        changed[at:at] = changed[: data.draw(st.integers(1, len(changed)))]
    else:
        changed[at:at] = data.draw(st.binary(min_size=1, max_size=100))
    try:
        received = list(ReceivedBatches(bytes(changed), 0))
    except ValueError:
        return
    # What is left is whole batches of those that were sent, or exactly the bytes that were sent.
    assert [each[1:] for each in received] == [each[1:] for each in described[: len(received)]] or (
        [each[1:] for each in received] == [each[1:] for each in described[-len(received) :]]
    )


@pytest.mark.parametrize("data", [b"", bytes(100), b"\xff" * 500])
def test_bytes_that_are_no_batches(data):
    if not data:
        assert len(ReceivedBatches(data, 0)) == 0
        return
    with pytest.raises(ValueError, match="batch 1 of those received"):
        ReceivedBatches(data, 0)


def test_batches_in_front_of_the_place_are_refused(sent):
    with pytest.raises(ValueError, match="does not follow"):
        ReceivedBatches(sent[0], 1)


@pytest.mark.parametrize("offset", [0, 3, 1000, 1 << 40])
@pytest.mark.parametrize("content", [0, 3, 200])
def test_a_log_begins_anew_anywhere(tmp_path, content, offset):
    log = open_log(tmp_path / "a")
    for first in range(0, content, 10):
        log.append(numbered(first, 10), 4)
    log.begin_at(offset)
    for _ in range(2):
        assert (log.start_offset, log.next_offset, log.last_epoch) == (offset, offset, 0)
        assert log.epochs == ()
        assert read_all(log) == []
        log.close()
        log = open_log(tmp_path / "a")
    log.append(numbered(offset, 10) if offset < 1 << 40 else numbered(0, 10), 9)
    assert log.next_offset == offset + 10
    log.close()
    log = open_log(tmp_path / "a")
    assert (log.start_offset, log.next_offset) == (offset, offset + 10)
    assert not log.damage


@dataclass
class _Writes:
    """Which batches may be appended next, and what time it is in records."""

    epoch: int = 1
    time: int = 0


class ReplicaMachine(RuleBasedStateMachine):
    """A leader's log and a follower's: fetches in any portion between appends, epochs, rolls, compactions,
    retention, restarts of both, and truncations of the follower to a place where both agree."""

    @initialize(
        leader=st.sampled_from([{}, {"compression": "lz4"}, {"encryption": True}]),
        follower=st.sampled_from([{}, {"compression": "zstd"}, {"encryption": True}]),
        small=st.sampled_from([300, 2000, 100_000]),
    )
    def start(self, leader, follower, small):
        self.directory = Path(tempfile.mkdtemp(prefix="replica-machine-", dir=MEMORY))
        self.options = {
            "leader": {**leader, "segment_max_bytes": small, "compact": True, "retention_max_messages": 60},
            "follower": {**follower, "segment_max_bytes": 1500},
        }
        self.logs = {name: open_log(self.directory / name, **self.options[name]) for name in self.options}
        self.writes = _Writes()

    def teardown(self):
        for log in getattr(self, "logs", {}).values():
            log.close()
        if hasattr(self, "directory"):
            shutil.rmtree(self.directory)

    @property
    def leader(self):
        return self.logs["leader"]

    @property
    def follower(self):
        return self.logs["follower"]

    @rule(keys=st.lists(st.integers(0, 4), min_size=1, max_size=12), size=st.sampled_from([0, 30, 300]))
    def append(self, keys, size):
        records = []
        for key in keys:
            self.writes.time += 1
            records.append(Record(b"v%d" % self.writes.time + b"-" * size, self.writes.time, key=b"%d" % key))
        self.leader.append(batch(records), self.writes.epoch)

    @rule(step=st.integers(1, 5))
    def begin_epoch(self, step):
        self.writes.epoch = max(self.leader.last_epoch, self.writes.epoch) + step
        self.leader.begin_epoch(self.writes.epoch, self.writes.time)

    @rule(limit=st.sampled_from([1, 200, 1000, 1 << 20]))
    def fetch_some(self, limit):
        fetch(self.leader, self.follower, limit)

    @rule()
    def compact(self):
        self.leader.sync()
        self.leader.compact(NEVER, self.leader.next_offset, UNTHROTTLED)

    @rule()
    def retain(self):
        self.leader.sync()
        self.leader.retain(0, self.leader.next_offset)

    @rule(name=st.sampled_from(["leader", "follower"]))
    def reopen(self, name):
        self.logs[name].close()
        self.logs[name] = open_log(self.directory / name, **self.options[name])
        assert not self.logs[name].damage

    @rule(part=st.floats(0, 1))
    def truncate(self, part):
        start, end = self.follower.start_offset, self.follower.next_offset
        self.follower.truncate(start + round((end - start) * part))

    @precondition(lambda self: self.follower.next_offset < self.leader.start_offset)
    @rule()
    def begin_at(self):
        self.follower.begin_at(self.leader.start_offset)

    @rule()
    def catch_up(self):
        fetch_all(self.leader, self.follower, 700)
        assert (self.follower.next_offset, self.follower.last_epoch) == (
            self.leader.next_offset,
            self.leader.last_epoch,
        )

    @invariant()
    def the_follower_has_the_beginning_of_the_leader(self):
        if not hasattr(self, "logs"):
            return
        start = max(self.leader.start_offset, self.follower.start_offset)
        end = min(self.leader.next_offset, self.follower.next_offset)
        ours = {message.offset: message for message in read_all(self.follower, start, end)}
        for message in read_all(self.leader, start, end):
            assert ours[message.offset] == message
        last = self.follower.last_epoch
        assert dict(self.follower.epochs).keys() <= {*dict(self.leader.epochs), last}


TestReplicaMachine = ReplicaMachine.TestCase
TestReplicaMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
