"""What holds for the partitions of a stream: the server's settings, and the stream's own over them."""

from __future__ import annotations

from dataclasses import dataclass

from liftbridge.broker.config import Config, StreamsConfig
from liftbridge.log import LogOptions
from liftbridge.log.options import MAX_SEGMENT_BYTES
from liftbridge.metadata.model import Stream, StreamSettings
from liftbridge.metadata.validation import CURSORS_STREAM, RESERVED_NAMES

MILLISECOND = 1_000_000


@dataclass(frozen=True)
class PartitionSettings:
    """What holds for a partition after the stream's overrides were laid over the server's settings.

    Times are ns. `sync_policy` is always, interval or never. At most `compact_partitions` of the stream are
    compacted at a time. With an `auto_pause_time` that is not 0 the partition is paused when no message came
    for so long, and not while it has subscribers if that is disabled.
    """

    log: LogOptions
    sync_policy: str
    sync_interval: int
    sync_bytes: int
    batch_max_messages: int
    batch_max_time: int
    cleaner_interval: int
    compact_partitions: int
    max_message_bytes: int
    check_offsets: bool
    auto_pause_time: int
    auto_pause_disable_if_subscribers: bool


def partition_settings(config: Config, stream: Stream) -> PartitionSettings:
    """The server's settings with the stream's overrides on top."""
    own, server = stream.settings, config.streams
    reserved = stream.name in RESERVED_NAMES
    check_offsets = own.optimistic_concurrency_control
    if check_offsets is None:
        check_offsets = server.concurrency_control and not reserved
    return PartitionSettings(
        log=_log_options(server, own),
        sync_policy=own.sync_policy or server.sync_policy,
        sync_interval=server.sync_interval,
        sync_bytes=server.sync_bytes,
        batch_max_messages=config.batch.max_messages,
        batch_max_time=config.batch.max_time,
        cleaner_interval=_time(own.cleaner_interval_ms, server.cleaner_interval) or 300 * 1000 * MILLISECOND,
        max_message_bytes=config.clustering.replication_max_bytes,
        check_offsets=check_offsets,
        compact_partitions=own.compact_max_goroutines or server.compact_max_goroutines,
        auto_pause_time=_auto_pause_time(config, stream),
        auto_pause_disable_if_subscribers=(
            server.auto_pause_disable_if_subscribers
            if own.auto_pause_disable_if_subscribers is None
            else own.auto_pause_disable_if_subscribers
        ),
    )


def _auto_pause_time(config: Config, stream: Stream) -> int:
    if stream.name == CURSORS_STREAM:
        return config.cursors.stream_auto_pause_time
    # Of the server's own streams this one alone may be paused.
    of_server = 0 if stream.name in RESERVED_NAMES else config.streams.auto_pause_time
    return _time(stream.settings.auto_pause_time_ms, of_server)


def _log_options(server: StreamsConfig, own: StreamSettings) -> LogOptions:
    return LogOptions(
        segment_max_bytes=min(
            _size(own.segment_max_bytes, server.segment_max_bytes) or 1 << 30, MAX_SEGMENT_BYTES
        ),
        segment_max_age_ns=_time(own.segment_max_age_ms, server.segment_max_age),
        retention_max_bytes=_size(own.retention_max_bytes, server.retention_max_bytes),
        retention_max_messages=_size(own.retention_max_messages, server.retention_max_messages),
        retention_max_age_ns=_time(own.retention_max_age_ms, server.retention_max_age),
        preallocate_bytes=server.segment_preallocate_bytes,
        compact=server.compact_enabled if own.compact_enabled is None else own.compact_enabled,
        compact_min_dirty_ratio=server.compact_min_dirty_percent / 100,
        compact_min_lag_ns=server.compact_min_lag,
        compact_max_lag_ns=server.compact_max_lag,
        tombstone_retention_ns=server.compact_tombstone_retention,
        compact_memory_bytes=server.compact_memory_bytes,
        compression=own.compression or server.compression,
        encryption=server.encryption if own.encryption is None else own.encryption,
    )


def _time(own_ms: int | None, server_ns: int) -> int:
    return server_ns if own_ms is None else own_ms * MILLISECOND


def _size(own: int | None, server: int) -> int:
    return server if own is None else own
