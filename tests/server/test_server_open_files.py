"""A server with far more partitions than files it may open."""

import os
from pathlib import Path

import pytest
from calls import create, publish, read, until
from harness import Server

PARTITIONS = 400
FILES = 200


@pytest.mark.parametrize("policy", ["always", "never"])
def test_more_partitions_than_open_files(tmp_path, policy):
    limited = ("/bin/sh", "-c", f'ulimit -n {FILES}; exec "$0" "$@"')
    server = Server(tmp_path / "server", {"streams.sync.policy": policy}, prefix=limited).start()
    api = server.api()
    streams = [create(api, partitions=PARTITIONS // 4) for _ in range(4)]
    for turn in range(2):
        for stream in streams:
            for partition in range(PARTITIONS // 4):
                assert publish(api, stream, b"%d" % turn, partition=partition).offset == turn
    until(lambda: len(os.listdir(Path("/proc", str(server.process.pid), "fd"))) < FILES * 3 // 4)
    server.kill()
    server.start()
    api = server.api()
    for stream in streams:
        for partition in range(0, PARTITIONS // 4, 7):
            assert [message.value for message in read(api, stream, 2, partition)] == [b"0", b"1"]
    assert server.stop() == 0
