"""The controller on a real directory: order of events, cancellation, failure, kill -9."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
import trio
from metadata_cases import create

from liftbridge.broker.controller import LEADER_UNKNOWN_TEXT, Controller, ControllerStartError
from liftbridge.broker.identity import DataDirectory
from liftbridge.broker.journal import Journal, JournalError
from liftbridge.metadata.errors import MetadataCode, MetadataError
from liftbridge.metadata.model import StreamSettings
from liftbridge.metadata.operations import CreateStream, DeleteStream
from liftbridge.proto import internal_pb2
from liftbridge.raft import Entry, EntryKind

NOW = 1_700_000_000_000_000_000
NO_KEY = "LIFTBRIDGE_ENCRYPTION_KEY is not set"
# A cluster begins with its member, and a server with an entry that shows that it leads.
FIRST = 3


@pytest.fixture
def data(tmp_path):
    directory = DataDirectory.open(tmp_path / "data", "node1")
    yield directory
    directory.close()


async def started(data: DataDirectory, **changes: object) -> Controller:
    arguments = {
        "namespace": "test",
        "bootstrap": True,
        "clock": lambda: NOW,
        "encryption_refusal": NO_KEY,
        **changes,
    }
    return await Controller.start(data, **arguments)


async def test_a_stream_survives_a_restart(data):
    controller = await started(data)
    settings = StreamSettings(retention_max_bytes=0, min_isr=1)
    stream = await controller.create_stream(
        name="orders", subject="shop.*", group="g", partitions=2, settings=settings
    )
    assert (stream.creation_ns, stream.settings, stream.group) == (NOW, settings, "g")
    assert [partition.replicas for partition in stream.partitions] == [("node1",), ("node1",)]
    assert controller.state.streams == {"orders": stream}
    snapshot = controller.state.snapshot()
    await controller.close()

    again = await started(data, bootstrap=False)
    assert again.state.snapshot() == snapshot
    assert again.state.stream("orders") == stream
    assert await again.delete_stream("orders") == stream
    await again.close()

    third = await started(data)
    assert third.state.streams == {}
    assert list(third.state.deleted_ids) == [stream.stream_id]
    await third.close()


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"name": ""}, MetadataCode.INVALID_ARGUMENT),
        ({"subject": "test.x"}, MetadataCode.INVALID_ARGUMENT),
        ({"replication_factor": 2}, MetadataCode.INVALID_ARGUMENT),
        ({"replication_factor": -2}, MetadataCode.INVALID_ARGUMENT),
        # The replication factor is checked before the name.
        ({"name": "taken", "replication_factor": 2}, MetadataCode.INVALID_ARGUMENT),
        ({"name": "taken"}, MetadataCode.ALREADY_EXISTS),
        ({"settings": StreamSettings(encryption=True)}, MetadataCode.FAILED_PRECONDITION),
        ({"settings": StreamSettings(sync_policy="often")}, MetadataCode.INVALID_ARGUMENT),
    ],
)
async def test_what_is_refused_never_reaches_the_journal(data, changes, code):
    controller = await started(data)
    await controller.create_stream(name="taken", subject="taken", replication_factor=-1)
    before = {path: path.read_bytes() for path in (data.path / "metadata").iterdir()}
    seen = []
    controller.subscribe(lambda *arguments: seen.append(arguments))
    with pytest.raises(MetadataError) as caught:
        await controller.create_stream(**{"name": "fresh", "subject": "fresh", **changes})
    assert caught.value.code is code
    with pytest.raises(MetadataError) as caught:
        await controller.delete_stream("fresh")
    assert caught.value.code is MetadataCode.NOT_FOUND
    with pytest.raises(MetadataError) as caught:
        await controller.delete_stream("__cursors")
    assert caught.value.code is MetadataCode.INVALID_ARGUMENT
    assert {path: path.read_bytes() for path in (data.path / "metadata").iterdir()} == before
    assert seen == []
    await controller.close()


async def test_a_stream_is_encrypted_when_there_is_a_key(data):
    controller = await started(data, encryption_refusal="")
    stream = await controller.create_stream(name="a", subject="a", settings=StreamSettings(encryption=True))
    assert stream.settings.encryption
    await controller.close()


async def test_why_a_stream_cannot_be_encrypted_is_told(data):
    controller = await started(data)
    with pytest.raises(MetadataError, match=NO_KEY) as caught:
        await controller.create_stream(name="a", subject="a", settings=StreamSettings(encryption=True))
    assert caught.value.code is MetadataCode.FAILED_PRECONDITION
    await controller.close()


async def test_settings_of_false_and_zero_ask_for_nothing_unavailable(data):
    controller = await started(data)
    off = StreamSettings(encryption=False, compact_enabled=False, auto_pause_time_ms=0)
    stream = await controller.create_stream(name="orders", subject="orders", settings=off)
    assert stream.settings == off
    await controller.close()


async def test_subscribers_hear_of_what_is_done_before_the_caller_does(data):
    controller = await started(data)
    heard = []

    def hear(index, operation, stream):
        # Applied and durable already.
        assert controller.state.applied_index == index
        stored = b"".join(path.read_bytes() for path in (data.path / "metadata").iterdir())
        assert operation.encode() in stored
        heard.append((index, type(operation), stream.name))

    controller.subscribe(hear)
    await controller.create_stream(name="a", subject="a")
    assert heard == [(FIRST, CreateStream, "a")]
    stream = await controller.propose(create("b", partitions=controller.state.stream("a").partitions))
    await controller.propose(DeleteStream("b", stream.stream_id))
    await controller.delete_stream("a")
    expected = [(CreateStream, "b"), (DeleteStream, "b"), (DeleteStream, "a")]
    assert heard[1:] == [(index, *each) for index, each in enumerate(expected, FIRST + 1)]
    await controller.close()


async def test_of_concurrent_creates_of_one_name_one_succeeds(data):
    controller = await started(data)
    outcomes = []

    async def attempt():
        try:
            outcomes.append((await controller.create_stream(name="a", subject="a")).name)
        except MetadataError as error:
            outcomes.append(error.code)

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(attempt)
    assert outcomes.count("a") == 1
    assert outcomes.count(MetadataCode.ALREADY_EXISTS) == 19
    assert controller.state.applied_index == FIRST
    await controller.close()


async def test_a_caller_that_is_cancelled_leaves_state_and_journal_alike(data):
    controller = await started(data, snapshot_entries=1)
    with trio.CancelScope() as scope:
        # Cancelled once the operation is on the disk, before it is applied.
        def cancel(step):
            if step == "record synced":
                trio.from_thread.run_sync(scope.cancel)

        controller._consensus.journal._hook = cancel
        await controller.create_stream(name="a", subject="a")
        await trio.lowlevel.checkpoint()
    assert scope.cancelled_caught
    assert list(controller.state.streams) == ["a"]
    # What belongs to the operation was done to its end, the snapshot that it made due included.
    assert (data.path / "metadata" / f"snapshot-{FIRST:020}").exists()

    with trio.CancelScope() as scope:
        # Cancelled before it began: nothing happens.
        scope.cancel()
        await controller.create_stream(name="b", subject="b")
    assert scope.cancelled_caught
    assert list(controller.state.streams) == ["a"]
    snapshot = controller.state.snapshot()
    await controller.close()
    again = await started(data)
    assert again.state.snapshot() == snapshot
    await again.close()


async def test_a_journal_that_fails_stops_changes_and_not_reading(data):
    controller = await started(data)
    await controller.create_stream(name="a", subject="a")
    seen = []
    controller.subscribe(lambda *arguments: seen.append(arguments))
    read_only = os.open(data.path / "metadata" / f"journal-{0:020}", os.O_RDONLY)
    os.dup2(read_only, controller._consensus.journal._descriptor)
    os.close(read_only)
    for _ in range(2):
        with pytest.raises(MetadataError, match="restarted") as caught:
            await controller.create_stream(name="b", subject="b")
        assert caught.value.code is MetadataCode.INTERNAL
    with pytest.raises(MetadataError) as caught:
        await controller.delete_stream("a")
    assert caught.value.code is MetadataCode.INTERNAL
    assert list(controller.state.streams) == ["a"]
    assert seen == []
    await controller.close()
    again = await started(data)
    assert list(again.state.streams) == ["a"]
    await again.close()


async def test_after_closing_there_is_no_leader(data):
    controller = await started(data)
    assert controller.is_leader
    await controller.close()
    await controller.close()
    assert not controller.is_leader
    for attempt in (
        lambda: controller.create_stream(name="a", subject="a"),
        lambda: controller.delete_stream("a"),
        lambda: controller.propose(create()),
    ):
        with pytest.raises(MetadataError) as caught:
            await attempt()
        assert (caught.value.code, caught.value.text) == (MetadataCode.INTERNAL, LEADER_UNKNOWN_TEXT)


async def test_snapshots_bound_the_journal_and_change_nothing(data):
    controller = await started(data, snapshot_entries=5)
    for number in range(24 - FIRST):
        await controller.create_stream(name=f"s{number}", subject="s", partitions=3)
    snapshot = controller.state.snapshot()
    await controller.close()
    names = sorted(path.name for path in (data.path / "metadata").iterdir())
    assert names == [
        f"{kind}-{index:020}" for kind in ("journal", "snapshot") for index in (15, 20)
    ]  # fmt: skip
    again = await started(data)
    assert again.state.snapshot() == snapshot
    await again.close()


async def test_a_snapshot_that_cannot_be_written_costs_nothing(data, caplog):
    controller = await started(data, snapshot_entries=FIRST + 1)
    await controller.create_stream(name="a", subject="a")
    # The place of the snapshot is taken by a directory.
    blocked = data.path / "metadata" / f"snapshot-{FIRST + 1:020}"
    (blocked / "in the way").mkdir(parents=True)
    await controller.create_stream(name="b", subject="b")
    assert "no snapshot" in caplog.text
    await controller.create_stream(name="c", subject="c")
    snapshot = controller.state.snapshot()
    await controller.close()
    (blocked / "in the way").rmdir()
    blocked.rmdir()
    again = await started(data)
    assert again.state.snapshot() == snapshot
    await again.close()


# ------------------------------------------------------------------------------------------ starting


async def test_without_state_a_server_must_be_told_to_begin_a_cluster(data):
    with pytest.raises(ControllerStartError, match=r"--raft-bootstrap-seed.*liftbridge dev"):
        await started(data, bootstrap=False)
    assert not (data.path / "metadata").exists()
    assert data.cluster_id is None


async def test_a_crash_between_journal_and_identity_keeps_the_cluster(data, tmp_path):
    controller = await started(data)
    cluster_id = data.cluster_id
    assert cluster_id is not None
    await controller.close()
    data.close()
    state = internal_pb2.ServerState(server_id="node1")
    (data.path / "liftbridge").write_bytes(state.SerializeToString())
    again = DataDirectory.open(data.path)
    assert again.cluster_id is None
    controller = await started(again, bootstrap=False)
    await controller.close()
    again.close()
    third = DataDirectory.open(data.path)
    assert third.cluster_id == cluster_id
    third.close()


async def test_lost_metadata_are_not_taken_for_a_new_cluster(data):
    await (await started(data)).close()
    for path in (data.path / "metadata").iterdir():
        path.unlink()
    with pytest.raises(ControllerStartError, match="holds no metadata, but this server belongs to cluster"):
        await started(data)


async def test_metadata_of_another_cluster_are_refused(data, tmp_path):
    await (await started(data)).close()
    other = DataDirectory.open(tmp_path / "other", "node2")
    await (await started(other)).close()
    (data.path / "metadata").rename(tmp_path / "kept")
    (other.path / "metadata").rename(data.path / "metadata")
    with pytest.raises(ControllerStartError, match="belongs to cluster"):
        await started(data)
    other.close()


async def test_damage_is_a_start_up_error_that_names_the_file(data):
    controller = await started(data)
    for name in "abc":
        await controller.create_stream(name=name, subject=name)
    await controller.close()
    path = data.path / "metadata" / f"journal-{0:020}"
    whole = path.read_bytes()
    # A sector for the header, and one for each record before that of the first stream.
    at = 4 * 512
    path.write_bytes(whole[: at + 16] + b"?" + whole[at + 17 :])
    with pytest.raises(ControllerStartError, match=f"{path} is damaged at byte {at}"):
        await started(data)


async def stored_behind_its_back(data: DataDirectory, payload: bytes) -> int:
    """Have an operation in the journal that the controller would not have put there; its index."""
    controller = await started(data)
    await controller.create_stream(name="a", subject="a")
    journal = controller._consensus.journal
    index = journal.last_index + 1
    journal.save(None, [Entry(index, controller._consensus.core.term, EntryKind.COMMAND, payload)])
    await controller.close()
    return index


async def test_an_operation_of_another_version_is_a_start_up_error(data):
    payload = internal_pb2.Operation(version=1, kind=127).SerializeToString()
    index = await stored_behind_its_back(data, payload)
    with pytest.raises(ControllerStartError, match=f"operation {index} .*kind 127 is not known"):
        await started(data)


async def test_an_operation_that_does_not_fit_changes_nothing(data):
    await stored_behind_its_back(data, create("a").encode())
    controller = await started(data)
    stream = controller.state.stream("a")
    assert stream.partitions[0].leader == "node1"
    assert (await controller.create_stream(name="b", subject="b")).name == "b"
    await controller.close()


async def test_a_full_disk_refuses_operations_and_what_comes_after_it_is_stored(data, monkeypatch):
    controller = await started(data)
    await controller.create_stream(name="a", subject="a")

    def full(*arguments):
        raise JournalError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "save", full)
        for name in ("b", "c"):
            with pytest.raises(MetadataError, match="the disk is full"):
                await controller.create_stream(name=name, subject="x")
    assert list(controller.state.streams) == ["a"]
    await controller.create_stream(name="c", subject="c")
    await controller.close()

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "save", full)
        again = await started(data)
        assert list(again.state.streams) == ["a", "c"], "what is there can be read"
        with pytest.raises(MetadataError, match="the disk is full"):
            await again.delete_stream("a")
    await again.delete_stream("a")
    await again.close()


# ------------------------------------------------------------------------------------------- kill -9


def test_nothing_acknowledged_is_lost_to_kill_9(tmp_path):
    directory = tmp_path / "data"
    child = Path(__file__).with_name("metadata_crash_child.py")
    done: dict[str, bool] = {}  # name -> whether it exists
    for round_number in range(6):
        with subprocess.Popen(
            [sys.executable, str(child), str(directory), str(round_number)],
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout.readline() == "ready\n"
            said = [process.stdout.readline() for _ in range(10 + 3 * round_number)]
            process.kill()
            # What it said between our last look and its death counts as well; its last line may be cut.
            said += [line for line in process.stdout if line.endswith("\n")]
        for line in said:
            assert line[0] in "+-", line
            done[line[1:].strip()] = line[0] == "+"
        found = trio.run(recovered_names, directory)
        # One operation may have been under way: a create nobody heard of, or a delete.
        unheard = found - done.keys()
        assert len(unheard) <= 1
        missing = {name for name, exists in done.items() if exists} - found
        assert len(missing) + len(unheard) <= 1
        for name in missing:
            # Only a delete that was under way can explain it: that of the stream before the last.
            assert said[-1][0] == "+"
            last = int(said[-1].rsplit("-", 1)[1])
            assert last % 3 == 2
            assert name == f"stream-{round_number}-{last - 1}"
        assert not {name for name, exists in done.items() if not exists} & found
        done.update(dict.fromkeys(unheard, True), **dict.fromkeys(missing, False))


async def recovered_names(directory: Path) -> set[str]:
    data = DataDirectory.open(directory)
    try:
        controller = await Controller.start(data, namespace="test", bootstrap=False, clock=lambda: NOW)
        await controller.close()
        assert isinstance(data.cluster_id, uuid.UUID)
        return set(controller.state.streams)
    finally:
        data.close()
