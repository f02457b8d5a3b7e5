"""python-liftbridge 0.0.7: the client of 2020, which knows nothing of handshakes, leaders or deadlines."""

import json
import subprocess
from pathlib import Path

import pytest
from calls import PATIENCE, read_all

PROGRAM = Path(__file__).with_name("python_liftbridge_client.py")


@pytest.mark.timeout(600)  # the first run makes the environment
def test_create_publish_and_iterate(server, api, python_liftbridge):
    done = subprocess.run(
        [python_liftbridge, PROGRAM, server.address], capture_output=True, text=True, timeout=4 * PATIENCE
    )
    assert done.returncode == 0, done.stdout + done.stderr
    seen = json.loads(done.stdout)  # any error that the client swallows would be printed in front of it
    assert seen["earliest"] == [[0, ""], [0, "hello"], [1, "with ack"], [2, "to subject"]]
    assert seen["from offset"] == [[0, ""], [1, "with ack"], [2, "to subject"]]
    assert seen["latest"] == [[0, ""], [2, "to subject"]]
    assert seen["from time"] == [[0, ""], [0, "hello"]]
    assert seen["keys"] == ["", "", "k", ""]
    assert seen["created twice"] and seen["unknown to publish"] and seen["unknown to subscribe"]
    assert seen["streams"]["old"] == "old.subject"
    assert seen["brokers"] == [server.address]
    messages = read_all(api, "old")
    assert [message.value for message in messages] == [b"hello", b"with ack", b"to subject"]
    assert {message.subject for message in messages} == {"old.subject"}
