"""What consensus asks of the journal: votes, entries that take the place of others, snapshots of a leader."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from journals import CLUSTER, NODE, entry, filled, numbered, read, snapshot_of, state_of

from liftbridge.broker.journal import Journal, JournalError, Recovered
from liftbridge.raft import Entry, HardState


def recovered_from(directory: Path) -> Recovered:
    journal, recovered = Journal.open(directory)
    journal.close()
    return recovered


def fresh(directory: Path, **options: object) -> Journal:
    return Journal.create(directory, CLUSTER, NODE, **options)  # type: ignore[arg-type]


def test_term_and_vote_are_found_again_and_outlive_snapshots(tmp_path):
    journal = fresh(tmp_path / "metadata")
    assert recovered_from(tmp_path / "metadata").hard_state == HardState(0, None)
    journal.save(HardState(3, None))
    journal.save(HardState(3, 2**64 - 1), [entry(1, term=3)])
    journal.save(None, [entry(2, term=3)])
    journal.write_snapshot(snapshot_of(2, b"x|y", term=3))
    journal.close()
    assert recovered_from(tmp_path / "metadata").hard_state == HardState(3, 2**64 - 1)


def test_an_entry_takes_the_place_of_all_that_was_there(tmp_path):
    journal = filled(tmp_path / "metadata", numbered(5))
    journal.save(HardState(2, None), [entry(3, b"other 3", term=2)])
    assert journal.last_index == 3
    journal.save(None, [entry(4, b"other 4", term=2)])
    journal.close()
    assert state_of(tmp_path / "metadata") == (4, [*numbered(2), b"other 3", b"other 4"])
    assert read(tmp_path / "metadata", 1, 4) == [(2, b"operation 2"), (3, b"other 3"), (4, b"other 4")]


def test_what_a_snapshot_leaves_behind_it_goes_into_the_new_journal(tmp_path):
    directory = tmp_path / "metadata"
    journal = filled(directory, numbered(5))
    journal.write_snapshot(snapshot_of(3, b"|".join(numbered(3))))
    assert journal.last_index == 5
    journal.save(HardState(2, 9), [entry(5, b"other 5", term=2)])
    journal.close()
    assert state_of(directory) == (5, [*numbered(4), b"other 5"])
    # The snapshot is not needed for it while the journal before is there.
    (directory / f"snapshot-{3:020}").unlink()
    assert state_of(directory) == (5, [*numbered(4), b"other 5"])
    assert recovered_from(directory).hard_state == HardState(2, 9)


def test_a_snapshot_of_the_leader_takes_the_place_of_the_log(tmp_path):
    directory = tmp_path / "metadata"
    journal = filled(directory, numbered(3))
    journal.save(HardState(4, 5))
    journal.install(snapshot_of(9, b"|".join(numbered(9)), term=4))
    assert journal.last_index == 9
    journal.save(None, [entry(10, term=4)])
    journal.close()
    assert state_of(directory) == (10, numbered(10))
    assert recovered_from(directory).hard_state == HardState(4, 5)


@pytest.mark.parametrize(("term", "kept"), [(1, 5), (2, 3)])
def test_a_snapshot_keeps_what_follows_the_same_entry_only(tmp_path, term, kept):
    directory = tmp_path / "metadata"
    journal = filled(directory, numbered(5))
    journal.install(snapshot_of(3, b"|".join(numbered(3)), term=term))
    assert journal.last_index == kept
    journal.close()
    assert state_of(directory) == (kept, numbered(kept))


def test_a_log_begins_with_the_first_members(tmp_path):
    fresh(tmp_path / "metadata", entries=[entry(1)]).close()
    recovered = recovered_from(tmp_path / "metadata")
    assert (recovered.entries, recovered.hard_state) == ([entry(1)], HardState(1, None))


def test_votes_and_entries_of_one_call_are_found_together_or_not_at_all(tmp_path):
    directory = tmp_path / "metadata"
    journal = filled(directory, numbered(1))
    path = directory / f"journal-{0:020}"
    before = path.stat().st_size
    journal.save(HardState(2, 5), [entry(2, b"x" * 700, term=2), entry(3, b"y" * 700, term=2)])
    journal.close()
    whole = path.read_bytes()
    for lost in range(before, len(whole), 512):
        path.write_bytes(whole[:lost] + bytes(512) + whole[lost + 512 :])
        recovered = recovered_from(directory)
        assert (recovered.hard_state, len(recovered.entries)) == (HardState(0, None), 1)
    path.write_bytes(whole)
    assert recovered_from(directory).hard_state == HardState(2, 5)


def test_entries_that_do_not_fit_into_one_record_are_stored_in_several(tmp_path):
    directory = tmp_path / "metadata"
    journal = fresh(directory)
    entries = [entry(index, bytes([index]) * (12 << 20)) for index in range(1, 5)]
    journal.save(HardState(1, 3), entries)
    journal.close()
    recovered = recovered_from(directory)
    assert (recovered.hard_state, recovered.entries) == (HardState(1, 3), entries)


def test_a_journal_of_another_node_is_refused(tmp_path):
    filled(tmp_path / "one", numbered(5), snapshot_after=(3,)).close()
    other = Journal.create(tmp_path / "two", CLUSTER, NODE + 1, entries=[entry(at) for at in range(1, 5)])
    other.write_snapshot(snapshot_of(4, b"a|b|c|d"))
    other.close()
    shutil.copy(tmp_path / "two" / f"journal-{4:020}", tmp_path / "one")
    with pytest.raises(JournalError, match="was written by node 4e"):
        Journal.open(tmp_path / "one")


class CrashError(Exception):
    """Stands for the death of the process at a step: nothing after it is run."""


def crashes(directory: Path, prepare, act, check) -> set[str]:
    """Crash at every step of `act`, on what `prepare` made of a journal; the steps there were."""
    steps: set[str] = set()
    for failing in range(100):
        shutil.rmtree(directory, ignore_errors=True)
        journal = fresh(directory)
        prepare(journal)
        seen = 0

        def hook(step: str, failing: int = failing) -> None:
            nonlocal seen
            seen += 1
            steps.add(step)
            if seen > failing:
                raise CrashError(step)

        journal._hook = hook
        try:
            act(journal)
        except CrashError:
            check(recovered_from(directory))
            # What was found goes on.
            again, found = Journal.open(directory)
            last = again.last_index + 1
            again.save(None, [entry(last, term=9)])
            again.close()
            assert recovered_from(directory).entries == [*found.entries, entry(last, term=9)]
        else:
            journal.close()
            assert failing > 0
            return steps
    raise AssertionError("it does not end")


def prepared(journal: Journal) -> None:
    journal.save(HardState(1, None), [entry(index) for index in range(1, 6)])
    journal.write_snapshot(snapshot_of(2, b"two"))
    journal.save(HardState(3, 5))


@pytest.mark.parametrize(("index", "term", "kept"), [(20, 3, 0), (4, 3, 0), (4, 1, 1)])
def test_a_crash_while_a_snapshot_is_installed_leaves_the_old_log_or_the_new(tmp_path, index, term, kept):
    old = Recovered(HardState(3, 5), snapshot_of(2, b"two"), [entry(3), entry(4), entry(5)])
    tail = [entry(5)][:kept]
    new = Recovered(HardState(3, 5), snapshot_of(index, b"new", term), tail)
    found: list[Recovered] = []

    def check(recovered: Recovered) -> None:
        assert recovered in (old, new)
        found.append(recovered)

    steps = crashes(
        tmp_path / "metadata",
        prepared,
        lambda journal: journal.install(snapshot_of(index, b"new", term)),
        check,
    )
    assert {"journal renamed", "snapshot written", "snapshot renamed", "old file deleted"} <= steps
    assert old in found
    assert new in found


def test_a_crash_while_a_snapshot_is_taken_loses_nothing(tmp_path):
    def check(recovered: Recovered) -> None:
        index = recovered.snapshot.meta.index
        assert index in (2, 4)
        assert recovered.hard_state == HardState(3, 5)
        assert recovered.entries == [entry(at) for at in range(index + 1, 6)]

    crashes(
        tmp_path / "metadata",
        prepared,
        lambda journal: journal.write_snapshot(snapshot_of(4, b"four")),
        check,
    )


def test_a_journal_whose_snapshot_is_gone_is_an_error_once_it_was_used(tmp_path):
    directory = tmp_path / "metadata"
    journal = fresh(directory)
    prepared(journal)
    journal.install(snapshot_of(20, b"new", term=3))
    journal.save(HardState(4, 6))
    journal.close()
    (directory / f"snapshot-{20:020}").unlink()
    with pytest.raises(JournalError, match="follows a snapshot that is not there"):
        Journal.open(directory)


@settings(max_examples=60, stateful_step_count=40, suppress_health_check=list(HealthCheck))
class JournalMachine(RuleBasedStateMachine):
    """The journal against a list."""

    @initialize()
    def begin(self) -> None:
        import tempfile

        self.root = tempfile.TemporaryDirectory()
        self.directory = Path(self.root.name) / "metadata"
        self.journal = fresh(self.directory)
        self.hard = HardState(0, None)
        self.log: list[Entry] = []  # from index 1; before `start` only terms matter
        self.start = 0

    @rule(count=st.integers(1, 4), back=st.integers(0, 3), new_term=st.booleans(), vote=st.booleans())
    def store(self, count: int, back: int, new_term: bool, vote: bool) -> None:
        back = min(back, len(self.log) - self.start)
        term = max(self.hard.term, 1) + (1 if new_term or back else 0)
        hard = HardState(term, 7 if vote else None) if term != self.hard.term else None
        del self.log[len(self.log) - back :]
        first = len(self.log) + 1
        entries = [entry(index, b"%d in %d" % (index, term), term) for index in range(first, first + count)]
        self.journal.save(hard, entries)
        self.hard = hard or self.hard
        self.log += entries

    @precondition(lambda self: len(self.log) > self.start)
    @rule(data=st.data())
    def take(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(self.start + 1, len(self.log)))
        self.journal.write_snapshot(snapshot_of(index, b"s%d" % index, self.log[index - 1].term))
        self.start = index

    @rule(ahead=st.integers(1, 3))
    def install(self, ahead: int) -> None:
        term = self.hard.term or 1
        index = len(self.log) + ahead
        self.journal.install(snapshot_of(index, b"s%d" % index, term))
        self.log += [entry(at, b"", term) for at in range(len(self.log) + 1, index + 1)]
        self.start = index

    @rule()
    def reopen(self) -> None:
        self.journal.close()
        self.journal, recovered = Journal.open(self.directory)
        assert recovered.hard_state == self.hard
        assert recovered.entries == self.log[self.start :]
        if self.start:
            assert recovered.snapshot is not None
            assert recovered.snapshot.state == b"s%d" % self.start
            assert recovered.snapshot.meta.term == self.log[self.start - 1].term
        else:
            assert recovered.snapshot is None

    @invariant()
    def ends_as_expected(self) -> None:
        assert self.journal.last_index == len(self.log)

    def teardown(self) -> None:
        if hasattr(self, "root"):
            self.reopen()
            self.journal.close()
            self.root.cleanup()


TestJournalMachine = JournalMachine.TestCase
