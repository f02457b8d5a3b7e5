"""The data directory: one owner at a time, one identity for ever."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from liftbridge.broker.boot import BOOT_FILE, boot_id, power_may_be_lost, remember_boot
from liftbridge.broker.identity import DataDirectory, DataDirectoryError, check_server_id
from liftbridge.proto import internal_pb2

CLUSTER = uuid.UUID(int=0x1234567890ABCDEF1234567890ABCDEF)

HOLDER = """
import sys
from pathlib import Path
from liftbridge.broker.identity import DataDirectory

data = DataDirectory.open(Path(sys.argv[1]), "first")
print("locked", flush=True)
sys.stdin.read()
"""


def identity(path: Path, configured: str | None = None) -> tuple[str, uuid.UUID | None]:
    data = DataDirectory.open(path, configured)
    data.close()
    return data.server_id, data.cluster_id


def test_a_missing_directory_is_created_for_the_server_alone(tmp_path):
    path = tmp_path / "deep" / "data"
    identity(path)
    for created in (path, path.parent):
        assert stat.S_IMODE(created.stat().st_mode) == 0o700
    assert stat.S_IMODE((path / "liftbridge").stat().st_mode) == 0o600


def test_an_id_is_made_once(tmp_path):
    server_id, cluster_id = identity(tmp_path)
    assert len(server_id) == 22
    assert cluster_id is None
    assert identity(tmp_path)[0] == server_id
    assert identity(tmp_path / "other")[0] != server_id


def test_a_stored_id_wins_over_a_configured_one(tmp_path, caplog):
    assert identity(tmp_path, "first")[0] == "first"
    assert identity(tmp_path, "second")[0] == "first"
    assert "'second' is not used" in caplog.text
    assert identity(tmp_path)[0] == "first"


def test_the_file_of_the_original_is_understood(tmp_path):
    # Field 1, a string: all that the original stores.
    (tmp_path / "liftbridge").write_bytes(b"\x0a\x05node1")
    assert identity(tmp_path) == ("node1", None)
    data = DataDirectory.open(tmp_path)
    data.join_cluster(CLUSTER)
    data.close()
    assert identity(tmp_path) == ("node1", CLUSTER)


def test_a_cluster_is_joined_once(tmp_path):
    data = DataDirectory.open(tmp_path, "node1")
    data.join_cluster(CLUSTER)
    data.join_cluster(CLUSTER)
    with pytest.raises(DataDirectoryError, match="belongs to cluster"):
        data.join_cluster(uuid.UUID(int=1))
    assert data.cluster_id == CLUSTER
    data.close()
    data.close()
    assert identity(tmp_path) == ("node1", CLUSTER)


@pytest.mark.parametrize("server_id", ["a", "node-1", "A" * 128, "größe", "a_b:c"])
def test_ids_that_are_accepted(server_id):
    check_server_id(server_id)


@pytest.mark.parametrize("server_id", ["", "a b", "a.b", "a\n", "a*", ">", "a/b", "x" * 129])
def test_ids_that_are_refused(tmp_path, server_id):
    with pytest.raises(DataDirectoryError, match="server id"):
        DataDirectory.open(tmp_path / "data", server_id)
    assert not (tmp_path / "data").exists()


def test_a_second_process_is_kept_out(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout.readline() == b"locked\n"
        with pytest.raises(DataDirectoryError) as caught:
            DataDirectory.open(tmp_path)
        assert str(tmp_path) in str(caught.value)
        assert f"process {holder.pid}" in str(caught.value)
        holder.kill()
        holder.wait()
        # However the process ended, its lock went with it.
        assert identity(tmp_path)[0] == "first"


def test_closing_lets_the_next_one_in_and_failing_to_open_too(tmp_path):
    data = DataDirectory.open(tmp_path)
    with pytest.raises(DataDirectoryError, match=f"process {os.getpid()}"):
        DataDirectory.open(tmp_path)
    data.close()
    (tmp_path / "liftbridge").write_bytes(b"")
    for _ in range(2):
        with pytest.raises(DataDirectoryError, match="is damaged"):
            DataDirectory.open(tmp_path)


def test_a_child_process_does_not_inherit_the_lock(tmp_path):
    data = DataDirectory.open(tmp_path)
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, close_fds=False) as child:
        data.close()
        identity(tmp_path)
        child.stdin.close()


def test_a_file_in_place_of_the_directory(tmp_path):
    (tmp_path / "data").write_bytes(b"")
    for path in (tmp_path / "data", tmp_path / "data" / "below"):
        with pytest.raises(DataDirectoryError, match="cannot be used"):
            DataDirectory.open(path)


def test_a_crash_at_any_step_leaves_the_old_identity_or_the_new(tmp_path):
    class CrashError(Exception):
        pass

    for failing in range(5):
        path = tmp_path / str(failing)
        steps = 0

        def fail(step: str, at: int = failing) -> None:
            nonlocal steps
            steps += 1
            if steps == at + 1:
                raise CrashError(step)

        with pytest.raises(CrashError):
            DataDirectory.open(path, "first", hook=fail)
        before = identity(path, "second")[0]
        assert before in ("first", "second")

        data = DataDirectory.open(path)
        steps = 0
        data._hook = fail
        with pytest.raises(CrashError):
            data.join_cluster(CLUSTER)
        data.close()
        assert identity(path) in ((before, None), (before, CLUSTER))


def test_any_changed_byte_is_noticed_or_harmless(tmp_path):
    data = DataDirectory.open(tmp_path, "node1")
    first = (tmp_path / "liftbridge").read_bytes()
    data.join_cluster(CLUSTER)
    data.close()
    second = (tmp_path / "liftbridge").read_bytes()
    for whole, expected in ((first, ("node1", None)), (second, ("node1", CLUSTER))):
        for position in range(len(whole)):
            for changed in {0, *(whole[position] ^ 1 << bit for bit in range(8))}:
                (tmp_path / "liftbridge").write_bytes(
                    whole[:position] + bytes([changed]) + whole[position + 1 :]
                )
                try:
                    found = identity(tmp_path)
                except DataDirectoryError as error:
                    assert str(tmp_path / "liftbridge") in str(error)
                    assert changed != whole[position]
                else:
                    assert found == expected, (position, changed)


def test_a_file_with_more_in_it_than_this_version_writes_is_refused(tmp_path):
    identity(tmp_path, "node1")
    path = tmp_path / "liftbridge"
    path.write_bytes(path.read_bytes() + bytes([15 << 3, 1]))
    with pytest.raises(DataDirectoryError, match="is damaged"):
        identity(tmp_path)


@given(content=st.binary(max_size=60))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_file_of_anything_is_an_identity_or_a_clear_error(tmp_path, content):
    (tmp_path / "liftbridge").write_bytes(content)
    try:
        server_id, _ = identity(tmp_path)
    except DataDirectoryError as error:
        assert str(tmp_path) in str(error)
    else:
        assert internal_pb2.ServerState.FromString(content).server_id == server_id
    assert (tmp_path / "liftbridge").read_bytes() == content


# ---- whether the machine has stopped ----


def test_a_boot_is_remembered_and_another_one_noticed(tmp_path):
    assert power_may_be_lost(tmp_path), "nothing is known of a new directory"
    remember_boot(tmp_path)
    if not boot_id():
        assert power_may_be_lost(tmp_path)
        return
    assert not power_may_be_lost(tmp_path)
    (tmp_path / BOOT_FILE).write_text("another boot")
    assert power_may_be_lost(tmp_path)
    (tmp_path / BOOT_FILE).write_bytes(b"\xff\0")
    assert power_may_be_lost(tmp_path)
