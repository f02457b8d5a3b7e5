"""What holds for a partition: the settings of its stream over those of the server."""

import dataclasses
import uuid

import pytest

from liftbridge.broker.config import load
from liftbridge.broker.partition_settings import partition_settings
from liftbridge.metadata.model import StreamSettings
from liftbridge.metadata.operations import CreateStream
from liftbridge.metadata.placement import Placement
from liftbridge.metadata.state import ClusterState

KEY = {"LIFTBRIDGE_ENCRYPTION_KEY": "sixteen bytes ok"}


def settings_of_a_partition(config, own):
    """Of a stream with these settings of its own, on a server that is configured so."""
    placed = (Placement(("a",), "a"),)
    creation = CreateStream("orders", "orders", "", uuid.UUID(int=1), 1, own, placed)
    return partition_settings(load(None, config, KEY), ClusterState().apply(1, creation))


@pytest.fixture
def resolve():
    return lambda config, **own: settings_of_a_partition(config, StreamSettings(**own))


@pytest.mark.parametrize("own, expected", [(None, 60_000_000_000), (0, 0), (7, 7_000_000)])
async def test_a_stream_has_an_auto_pause_of_its_own(resolve, own, expected):
    config = {"streams.auto.pause.time": "1m", "streams.auto.pause.disable.if.subscribers": True}
    assert resolve({}, auto_pause_time_ms=own).auto_pause_time == (expected if own else 0)
    settings = resolve(config, auto_pause_time_ms=own)
    assert (settings.auto_pause_time, settings.auto_pause_disable_if_subscribers) == (expected, True)
    assert not resolve(config, auto_pause_disable_if_subscribers=False).auto_pause_disable_if_subscribers


@pytest.mark.parametrize("policy", ["always", "interval", "never"])
async def test_a_stream_has_a_sync_policy_of_its_own(resolve, policy):
    for server in ("always", "interval", "never"):
        config = {"streams.sync.policy": server}
        assert resolve(config).sync_policy == server
        assert resolve(config, sync_policy=policy).sync_policy == policy


@pytest.mark.parametrize("compression", ["none", "lz4", "zstd"])
async def test_a_stream_has_a_compression_of_its_own(resolve, compression):
    for server in ("none", "lz4", "zstd"):
        config = {"streams.compression": server}
        assert resolve(config).log.compression == server
        assert resolve(config, compression=compression).log.compression == compression


@pytest.mark.parametrize("server", [True, False])
async def test_a_stream_decides_whether_it_is_encrypted(resolve, server):
    config = {"streams.encryption": server}
    assert resolve(config).log.encryption is server
    assert resolve(config, encryption=False).log.encryption is False
    assert resolve(config, encryption=True).log.encryption is True


async def test_a_setting_of_a_stream_changes_nothing_else(resolve):
    plain = resolve({})
    changed = resolve({}, sync_policy="never", compression="lz4", encryption=True)
    log = dataclasses.replace(plain.log, compression="lz4", encryption=True)
    assert changed == dataclasses.replace(plain, sync_policy="never", log=log)
