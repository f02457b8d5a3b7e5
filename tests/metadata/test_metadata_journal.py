"""The journal on real files: crashes at every step, damage at every byte, disks that refuse."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from journals import CLUSTER, NODE, append, filled, numbered, read, snapshot, state_of

from liftbridge.broker.journal import KEPT_JOURNALS, Journal, JournalDamagedError, JournalError

SECTOR = 512
# A journal begins with its header and a record of what was in the one before it.
FIRST = 2 * SECTOR
# Of a record, and of the item in it.
OVERHEAD = 24 + 21


class CrashError(Exception):
    """Stands for the death of the process at a step: nothing after it is run."""


def test_what_was_appended_is_found_again(tmp_path):
    payloads = [b"", b"x", b"y" * 5000, *numbered(3)]
    filled(tmp_path / "metadata", payloads).close()
    assert state_of(tmp_path / "metadata") == (6, payloads)


def test_appending_goes_on_after_opening(tmp_path):
    filled(tmp_path / "metadata", numbered(2)).close()
    for index in (3, 4):
        journal, _ = Journal.open(tmp_path / "metadata")
        append(journal, index, b"operation %d" % index)
        journal.close()
    assert state_of(tmp_path / "metadata") == (4, numbered(4))


def test_a_journal_is_created_once(tmp_path):
    assert not Journal.exists(tmp_path / "metadata")
    filled(tmp_path / "metadata", []).close()
    assert Journal.exists(tmp_path / "metadata")
    with pytest.raises(JournalError, match="already"):
        Journal.create(tmp_path / "metadata", CLUSTER, NODE)
    with pytest.raises(JournalError, match="holds no metadata journal"):
        Journal.open(tmp_path)


def test_old_files_go_when_two_snapshots_are_newer(tmp_path):
    directory = tmp_path / "metadata"
    filled(directory, numbered(9), snapshot_after=(2, 4, 7)).close()
    assert sorted(path.name for path in directory.iterdir()) == [
        f"journal-{4:020}",
        f"journal-{7:020}",
        f"snapshot-{4:020}",
        f"snapshot-{7:020}",
    ]
    assert state_of(directory) == (9, numbered(9))


@pytest.mark.parametrize("after", range(10))
def test_operations_can_be_read_while_the_journal_is_open(tmp_path, after):
    directory = tmp_path / "metadata"
    journal = filled(directory, numbered(3))
    journal.keep_after = 0
    for index in range(4, 10):
        append(journal, index, f"operation {index}".encode())
        if index in {5, 7}:
            snapshot(journal, b"|".join(numbered(index)))
    for last in range(after, 10):
        expected = list(enumerate(numbered(9), 1))[after:last]
        assert read(directory, after, last) == expected
    journal.close()
    assert state_of(directory) == (9, numbered(9))


def test_operations_that_are_gone_or_damaged_are_missing(tmp_path):
    directory = tmp_path / "metadata"
    filled(directory, numbered(9), snapshot_after=(2, 4, 7)).close()
    assert [index for index, _ in read(directory, 0, 9)] == [5, 6, 7, 8, 9]
    path = directory / f"journal-{4:020}"
    content = bytearray(path.read_bytes())
    content[FIRST + SECTOR + 26] ^= 1
    path.write_bytes(content)
    assert [index for index, _ in read(directory, 3, 9)] == [5, 8, 9]


def test_what_somebody_has_yet_to_read_outlives_snapshots_within_bounds(tmp_path):
    directory = tmp_path / "metadata"
    journal = filled(directory, numbered(1))
    journal.keep_after = 3
    for index in range(2, 30):
        append(journal, index, f"operation {index}".encode())
        snapshot(journal, b"|".join(numbered(index)))
        if index > 3:
            assert read(directory, 0, index)[0][0] == max(4, index - KEPT_JOURNALS)
    journal.keep_after = 29
    append(journal, 30, b"operation 30")
    snapshot(journal, b"|".join(numbered(30)))
    assert read(directory, 0, 30) == [(30, b"operation 30")]
    journal.close()
    assert state_of(directory) == (30, numbered(30))


def test_a_snapshot_is_due_after_entries_or_bytes(tmp_path):
    journal = filled(tmp_path / "metadata", numbered(2))
    journal.snapshot_entries = 3
    assert not journal.snapshot_due
    append(journal, 3, b"operation 3")
    assert journal.snapshot_due
    snapshot(journal, b"|".join(numbered(3)))
    assert not journal.snapshot_due
    journal.snapshot_bytes = 2000
    append(journal, 4, b"x" * 2000)
    assert journal.snapshot_due
    journal.close()


@pytest.mark.parametrize("snapshots", [(), (3,), (2, 3)])
def test_one_damaged_snapshot_costs_nothing(tmp_path, snapshots):
    directory = tmp_path / "metadata"
    filled(directory, numbered(5), snapshot_after=snapshots).close()
    if snapshots:
        newest = directory / f"snapshot-{snapshots[-1]:020}"
        newest.write_bytes(newest.read_bytes()[:-1] + b"?")
    assert state_of(directory) == (5, numbered(5))


def test_a_damaged_snapshot_does_not_push_out_a_good_one(tmp_path):
    directory = tmp_path / "metadata"
    filled(directory, numbered(5), snapshot_after=(2, 4)).close()
    damaged = directory / f"snapshot-{4:020}"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    journal, _ = Journal.open(directory)
    snapshot(journal, b"|".join(numbered(5)))
    journal.close()
    newest = directory / f"snapshot-{5:020}"
    newest.write_bytes(newest.read_bytes()[:-1] + b"?")
    assert state_of(directory) == (5, numbered(5))


def test_two_damaged_snapshots_are_an_error_that_names_the_newer(tmp_path):
    directory = tmp_path / "metadata"
    filled(directory, numbered(9), snapshot_after=(2, 4, 7)).close()
    for path in directory.glob("snapshot-*"):
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(JournalDamagedError, match=f"snapshot-{7:020}"):
        Journal.open(directory)


# ------------------------------------------------------------------------------------------ crashes


def crash_points(
    tmp_path: Path, payloads: list[bytes], snapshots: tuple[int, ...]
) -> list[tuple[str, Path, int]]:
    """Copy the directory at every step of a run; each with the step's name and the finished appends."""
    points: list[tuple[str, Path, int]] = []
    finished = 0
    directory = tmp_path / "live"

    def look(step: str) -> None:
        copy = tmp_path / f"copy-{len(points)}"
        if directory.exists():
            shutil.copytree(directory, copy)
        else:
            copy.mkdir()
        points.append((step, copy, finished))

    journal = Journal.create(directory, CLUSTER, NODE, hook=look)
    for index, payload in enumerate(payloads, 1):
        append(journal, index, payload)
        finished = index
        if index in snapshots:
            snapshot(journal, b"|".join(payloads[:index]))
    journal.close()
    return points


def test_a_crash_at_any_step_loses_nothing_that_was_finished(tmp_path):
    payloads = numbered(7)
    points = crash_points(tmp_path, payloads, (2, 4, 5))
    steps = {step for step, _, _ in points}
    assert {"record written", "snapshot renamed", "journal renamed", "old file deleted"} <= steps
    for step, directory, finished in points:
        if not Journal.exists(directory):
            assert finished == 0, step
            Journal.create(directory, CLUSTER, NODE).close()
        last, found = state_of(directory)
        assert finished <= last <= finished + 1, step
        assert found == payloads[:last], step
        # Recovery is not a one-time chance, and the journal can be used afterwards.
        journal, _ = Journal.open(directory)
        append(journal, last + 1, b"after the crash")
        journal.close()
        assert state_of(directory) == (last + 1, [*payloads[:last], b"after the crash"]), step


@pytest.mark.parametrize("failing", range(30))
def test_an_exception_at_any_step_leaves_a_directory_that_opens(tmp_path, failing):
    directory = tmp_path / "metadata"
    steps = 0
    finished = 0

    def fail(step: str) -> None:
        nonlocal steps
        steps += 1
        if steps == failing + 1:
            raise CrashError(step)

    payloads = numbered(4)
    with pytest.raises(CrashError):
        journal = Journal.create(directory, CLUSTER, NODE, hook=fail)
        for index, payload in enumerate(payloads, 1):
            append(journal, index, payload)
            finished = index
            if index == 2:
                snapshot(journal, b"|".join(payloads[:2]))
        # More steps than this would mean that the parametrization reaches too far.
        assert failing >= 20
        raise CrashError("the run has fewer steps")
    if Journal.exists(directory):
        last, found = state_of(directory)
        assert finished <= last <= finished + 1
        assert found == payloads[:last]
    else:
        assert finished == 0


# ------------------------------------------------------------------------------------------- damage


def outcome(directory: Path) -> list[bytes] | None:
    """The payloads found, None when start-up refuses with an error that names a file of the directory."""
    try:
        return state_of(directory)[1]
    except JournalError as error:
        assert str(directory) in str(error)
        return None


def test_a_journal_cut_at_any_byte_holds_a_prefix(tmp_path):
    directory = tmp_path / "metadata"
    payloads = [b"a" * 600, b"b" * 30, b"c" * 480]
    filled(directory, payloads).close()
    path = directory / f"journal-{0:020}"
    whole = path.read_bytes()
    starts = [FIRST, FIRST + 2 * SECTOR, FIRST + 3 * SECTOR, FIRST + 5 * SECTOR]
    assert len(whole) == starts[-1]
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        found = outcome(directory)
        if found is None:
            assert size < 56, "only a header can be missing"
        else:
            assert found == payloads[: len(found)]
            # Every record whose payload is there whole is found.
            assert len(found) == sum(
                start + OVERHEAD + len(payload) <= size
                for start, payload in zip(starts, payloads, strict=False)
            )


def test_a_flipped_byte_is_damage_wherever_it_matters(tmp_path):
    directory = tmp_path / "metadata"
    payloads = [b"a" * 40, b"b" * 480, b"c" * 20]
    filled(directory, payloads).close()
    path = directory / f"journal-{0:020}"
    whole = path.read_bytes()
    starts = [(SECTOR, b""), (FIRST, payloads[0]), (FIRST + 512, payloads[1]), (FIRST + 1536, payloads[2])]
    checked = [range(56), *(range(start, start + OVERHEAD + len(payload)) for start, payload in starts)]
    matters = {position for covered in checked for position in covered}
    # Of the filler, some.
    for position in sorted(matters | set(range(0, len(whole), 31))):
        for changed in {whole[position] ^ 1, whole[position] ^ 0xFF, 0} - {whole[position]}:
            path.write_bytes(whole[:position] + bytes([changed]) + whole[position + 1 :])
            assert outcome(directory) == (None if position in matters else payloads), position
            assert path.read_bytes()[position] == changed, "damage is left as it is"


def test_the_error_names_file_and_position(tmp_path):
    directory = tmp_path / "metadata"
    filled(directory, numbered(3)).close()
    path = directory / f"journal-{0:020}"
    whole = path.read_bytes()
    at = FIRST + SECTOR
    path.write_bytes(whole[: at + 6] + b"?" + whole[at + 7 :])
    with pytest.raises(JournalDamagedError) as caught:
        Journal.open(directory)
    assert (caught.value.path, caught.value.position) == (path, at)
    assert str(path) in str(caught.value)
    assert f"byte {at}" in str(caught.value)


@pytest.mark.parametrize("present", range(4))
def test_sectors_that_were_never_written_are_an_unfinished_record(tmp_path, present):
    """What a power cut leaves when the file had grown already: zeros in place of some sectors."""
    directory = tmp_path / "metadata"
    payloads = [*numbered(2), b"x" * 1400]
    filled(directory, payloads).close()
    path = directory / f"journal-{0:020}"
    whole = bytearray(path.read_bytes())
    start = FIRST + 2 * SECTOR
    assert len(whole) == start + 3 * SECTOR
    for sector in range(3):
        if sector >= present or present == 3:
            whole[start + sector * SECTOR : start + (sector + 1) * SECTOR] = bytes(SECTOR)
        if present == 3:
            break  # the first one only
    path.write_bytes(whole)
    assert state_of(directory) == (2, payloads[:2])
    assert path.stat().st_size == start
    assert state_of(directory) == (2, payloads[:2])


def test_a_hole_before_a_valid_record_is_damage(tmp_path):
    directory = tmp_path / "metadata"
    filled(directory, numbered(3)).close()
    path = directory / f"journal-{0:020}"
    whole = bytearray(path.read_bytes())
    whole[FIRST + SECTOR : FIRST + 2 * SECTOR] = bytes(SECTOR)
    path.write_bytes(whole)
    with pytest.raises(JournalDamagedError):
        Journal.open(directory)
    assert path.read_bytes() == whole


def test_a_missing_file_is_noticed(tmp_path):
    directory = tmp_path / "metadata"
    filled(directory, numbered(9), snapshot_after=(2, 4, 7)).close()
    (directory / f"journal-{4:020}").unlink()
    # The newest snapshot does not need it.
    assert state_of(directory) == (9, numbered(9))
    (directory / f"journal-{7:020}").unlink()
    with pytest.raises(JournalError, match="lacks the journal that follows index 7"):
        Journal.open(directory)


def test_a_journal_that_ends_early_before_another_is_noticed(tmp_path):
    directory = tmp_path / "metadata"
    filled(directory, numbered(9), snapshot_after=(2, 4, 7)).close()
    (directory / f"snapshot-{7:020}").unlink()
    assert state_of(directory) == (9, numbered(9))
    path = directory / f"journal-{4:020}"
    whole = path.read_bytes()
    path.write_bytes(whole[: FIRST + 2 * SECTOR])
    with pytest.raises(
        JournalError, match="follows a snapshot that is not there, and what is before it ends with entry 6"
    ):
        Journal.open(directory)
    # Only the newest journal can end with an unfinished record.
    path.write_bytes(whole[: FIRST + 2 * SECTOR + 10])
    with pytest.raises(JournalDamagedError):
        Journal.open(directory)
    assert path.read_bytes() == whole[: FIRST + 2 * SECTOR + 10]


def test_files_and_records_in_the_wrong_place_are_noticed(tmp_path):
    directory = tmp_path / "metadata"
    filled(directory, numbered(4), snapshot_after=(2,)).close()
    journals = {base: directory / f"journal-{base:020}" for base in (0, 2)}
    kept = {base: path.read_bytes() for base, path in journals.items()}
    journals[2].write_bytes(kept[0])
    with pytest.raises(JournalDamagedError, match="it is the journal that follows index 0"):
        Journal.open(directory)
    # The first record once more, in place of the second.
    first, second, end = SECTOR, 2 * SECTOR, 3 * SECTOR
    journals[2].write_bytes(kept[2][:second] + kept[2][first:second] + kept[2][end:])
    with pytest.raises(JournalDamagedError, match="it holds record 1 where 2 was expected"):
        Journal.open(directory)
    journals[2].write_bytes(kept[2])
    snapshot = directory / f"snapshot-{2:020}"
    snapshot.rename(directory / f"snapshot-{4:020}")
    # Whatever the name says, it is not the snapshot of index 4; the older journals make up for it.
    assert state_of(directory) == (4, numbered(4))


def test_files_of_another_cluster_are_refused(tmp_path):
    filled(tmp_path / "one", numbered(5), snapshot_after=(3,)).close()
    other = Journal.create(tmp_path / "two", uuid.UUID(int=8), NODE)
    for index in range(1, 4):
        append(other, index, b"other")
    snapshot(other, b"other|other|other")
    other.close()
    shutil.copy(tmp_path / "two" / f"journal-{3:020}", tmp_path / "one")
    with pytest.raises(JournalError, match="belongs to cluster"):
        Journal.open(tmp_path / "one")


def test_another_format_version_is_named(tmp_path):
    filled(tmp_path / "metadata", []).close()
    path = tmp_path / "metadata" / f"journal-{0:020}"
    header = bytearray(path.read_bytes())
    header[8:12] = (3).to_bytes(4, "little")
    path.write_bytes(header)
    with pytest.raises(JournalError, match="format version 3"):
        Journal.open(tmp_path / "metadata")


@given(data=st.binary(max_size=3000))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_file_of_anything_is_a_clear_error(tmp_path, data):
    shutil.rmtree(tmp_path / "metadata", ignore_errors=True)
    filled(tmp_path / "metadata", numbered(2)).close()
    path = tmp_path / "metadata" / f"journal-{0:020}"
    path.write_bytes(data)
    assert outcome(tmp_path / "metadata") is None
    filled(tmp_path / "fresh", numbered(2)).close()
    shutil.rmtree(tmp_path / "metadata")
    shutil.move(tmp_path / "fresh", tmp_path / "metadata")
    with path.open("ab") as file:
        file.write(data)
    assert outcome(tmp_path / "metadata") in (numbered(2), None)


# ---------------------------------------------------------------------------------- disks that refuse

FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from journals import CLUSTER, NODE, append, snapshot
from liftbridge.broker.journal import Journal, JournalError

directory = Path(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
journal = Journal.create(directory, CLUSTER, NODE)
append(journal, 1, b"operation 1")
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (1536 + 700, hard))
for _ in range(3):
    try:
        append(journal, 2, b"x" * 4000)
    except JournalError as error:
        assert "could not be written" in str(error), error
    else:
        raise AssertionError("it was written")
    assert journal.failed is None
try:
    snapshot(journal, b"y" * 4000)
except JournalError as error:
    assert "no snapshot" in str(error), error
else:
    raise AssertionError("the snapshot was written")
assert journal.failed is None
append(journal, 2, b"operation 2")
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
append(journal, 3, b"operation 3")
snapshot(journal, b"operation 1|operation 2|operation 3")
append(journal, 4, b"operation 4")
"""


def test_a_full_disk_refuses_operations_and_nothing_else(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    subprocess.run([sys.executable, "-c", FULL_DISK, str(tmp_path / "metadata")], check=True, env=environment)
    assert state_of(tmp_path / "metadata") == (4, numbered(4))


def test_an_error_while_writing_and_cutting_back_is_final(tmp_path):
    journal = filled(tmp_path / "metadata", numbered(1))
    # Everything that is done with the file fails from now on.
    read_only = os.open(tmp_path / "metadata" / f"journal-{0:020}", os.O_RDONLY)
    os.dup2(read_only, journal._descriptor)
    with pytest.raises(JournalError, match="until the server is restarted"):
        append(journal, 2, b"operation 2")
    assert journal.failed is not None
    assert not journal.snapshot_due
    with pytest.raises(JournalError, match="until the server is restarted"):
        append(journal, 2, b"operation 2")
    with pytest.raises(JournalError, match="until the server is restarted"):
        snapshot(journal, b"operation 1")
    journal.close()
    os.close(read_only)
    assert state_of(tmp_path / "metadata") == (1, numbered(1))


def test_an_error_while_syncing_is_final(tmp_path):
    journal = filled(tmp_path / "metadata", numbered(1))

    # A pipe takes what is written but cannot be synced.
    def break_file(step: str) -> None:
        if step == "record written":
            reader, writer = os.pipe()
            os.dup2(writer, journal._descriptor)
            os.close(reader)
            os.close(writer)

    journal._hook = break_file
    with pytest.raises(JournalError, match="could not be synced"):
        append(journal, 2, b"operation 2")
    with pytest.raises(JournalError, match="could not be synced"):
        append(journal, 2, b"operation 2")
    assert journal.last_index == 1
    journal.close()
    # The operation was written; whether it is found is a matter of luck, and here it is.
    assert state_of(tmp_path / "metadata") == (2, numbered(2))


def test_an_operation_that_is_too_large_is_refused(tmp_path):
    journal = filled(tmp_path / "metadata", [])
    with pytest.raises(JournalError, match="fewer partitions"):
        append(journal, 1, bytes(64 * 1024 * 1024 + 1))
    append(journal, 1, b"operation 1")
    journal.close()
    assert state_of(tmp_path / "metadata") == (1, numbered(1))
