"""gufo-liftbridge's own tests, unchanged, against this server, which its helper starts like the original."""

import os
import re
import shutil
import socket
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from calls import PATIENCE

CONFTEST = Path(__file__).with_name("gufo_own_conftest.py")
# Each of those that need a server; the others are about the client alone.
OF_SERVERS = {
    "test_get_empty_metadata",
    "test_get_metadata",
    "test_get_partition_metadata",
    "test_delete_unknown_stream",
    "test_pub_sub",
    "test_pub_sub_offset",
    "test_pub_sub_resume",
    "test_bulk_pub_sub",
    "test_cursor",
    "test_resolve[localhost-127.0.0.1]",
}


@pytest.mark.timeout(600)  # the first run fetches them
def test_they_pass(tmp_path, gufo_tests):
    shutil.copy(gufo_tests / "test_client.py", tmp_path)
    shutil.copy(CONFTEST, tmp_path / "conftest.py")
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    nats_config = tmp_path / "nats.conf"
    nats_config.write_text("host: 127.0.0.1\nport: -1\n")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        broker = f"127.0.0.1:{probe.getsockname()[1]}"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "test_client.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=6 * PATIENCE,
        env={
            **os.environ,
            "GUFO_PROGRAM": str(Path(sysconfig.get_path("scripts")) / "liftbridge"),
            "GUFO_BROKER": broker,
            # The helper leaves NATS its default port, which may be taken on a machine that tests.
            "LIFTBRIDGE_NATS_EMBEDDED_CONFIG": str(nats_config),
            # One test publishes without waiting for acks and then reads from the sixth message on; that is
            # there in time when nothing waits for the disk, as in the original.
            "LIFTBRIDGE_STREAMS_SYNC_POLICY": "never",
        },
    )
    assert done.returncode == 0, done.stdout + done.stderr
    passed = re.findall(r"test_client\.py::(\S+) PASSED", done.stdout)
    assert set(passed) >= OF_SERVERS
