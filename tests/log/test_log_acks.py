"""A real server on the simulated disk: under `always` no ack leaves before the sync that covers it."""

import errno

import grpc
import pytest
from disk.machine import Action, plan
from disk.powerloss import Kind, read_journal
from harness import Server

from liftbridge.proto import api_pb2

LEADS = "orders/0 leads at offset"


def publish(api):
    return api.Publish(api_pb2.PublishRequest(stream="orders", value=b"x"), timeout=20).ack.offset


def test_no_ack_for_what_a_failing_disk_has_not_taken(machine, tmp_path):
    """The first sync after the start fails: the message is in the page cache, and that is worth no ack."""
    with Server(tmp_path / "server", {"streams.sync.policy": "always"}) as server:
        server.api().CreateStream(api_pb2.CreateStreamRequest(name="orders", subject="orders"), timeout=20)
        assert publish(server.api()) == 0
        assert server.stop() == 0

        journal = tmp_path / "sound"
        disk = {**machine.environment, "DISK_ROOT": str(server.data_dir / "streams")}
        server.environment = {**disk, "DISK_JOURNAL": str(journal)}
        server.start().wait_log(f"{LEADS} 1")
        at_start = sum(1 for event in read_journal(journal) if event.kind is Kind.SYNC)
        assert publish(server.api()) == 1
        assert sum(1 for event in read_journal(journal) if event.kind is Kind.SYNC) > at_start
        assert server.stop() == 0

        how = plan([Kind.SYNC], at_start + 1, Action.FAIL, errno.EIO, onwards=True)
        server.environment = {
            **disk,
            "DISK_JOURNAL": str(tmp_path / "failing"),
            "DISK_PLAN": " ".join(map(str, how)),
        }
        server.start().wait_log(f"{LEADS} 2")
        with pytest.raises(grpc.RpcError) as error:
            publish(server.api())
        assert error.value.code() == grpc.StatusCode.UNKNOWN
        server.wait_log("orders/0 is offline: fsync failed")
