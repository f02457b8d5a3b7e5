"""The configuration of a server: every key, its type, its default, and what may not be combined.

A key is declared in one place, the field of the dataclass that holds its value; reading, the check for
unknown keys and the documentation test all go by these declarations. Keys and their meaning are those of
the original server, so its files load unchanged; our own keys have new names.

Invariants: a `Config` is frozen and has passed every check, so no later code meets a value it must doubt.
What a key promises and this server cannot do yet is refused, never ignored. Times are nanoseconds.
"""

# ruff: noqa: RUF009  # _option() declares a field and returns what dataclasses.field() returns

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar, cast

from liftbridge.broker import config_sources as sources
from liftbridge.broker import config_values as values
from liftbridge.broker.config_values import (
    HOUR,
    INT32_MAX,
    MILLISECOND,
    MINUTE,
    SECOND,
    ConfigError,
    Kind,
    ListenAddress,
    Setting,
)
from liftbridge.log.keys import OLD_KEYS_SETTING, VARIABLE, Keyring, MasterKeyError
from liftbridge.log.options import MIN_COMPACT_MEMORY_BYTES

__all__ = [
    "Config",
    "ConfigError",
    "ListenAddress",
    "all_keys",
    "load",
    "StreamsConfig",
    "ClusteringConfig",
    "TlsConfig",
    "NatsConfig",
    "HttpConfig",
    "LimitsConfig",
    "BatchConfig",
    "LoggingConfig",
    "ActivityConfig",
    "CursorsConfig",
    "GroupsConfig",
    "TelemetryConfig",
]

DEFAULT_NAMESPACE = "liftbridge-default"
DEFAULT_DATA_ROOT = Path("/tmp/liftbridge")  # noqa: S108  # the original's place; data.dir moves it
DEFAULT_PORT = 9292

T = TypeVar("T")


@dataclass(frozen=True)
class _Option:
    key: str
    kind: Kind[Any]


def _option(key: str, kind: Kind[T], default: T, *, show: bool = True) -> T:
    """Declare a field that holds the value of `key`; `show=False` keeps it out of the repr."""
    declared: T = field(default=default, repr=show, metadata={"option": _Option(key, kind)})
    return declared


@dataclass(frozen=True)
class StreamsConfig:
    """`streams.*`: defaults of all streams; a stream may override most of them when it is created."""

    retention_max_bytes: int = _option(
        "streams.retention.max.bytes", values.integer(note="; 0 means no limit"), 0
    )
    retention_max_messages: int = _option(
        "streams.retention.max.messages", values.integer(note="; 0 means no limit"), 0
    )
    retention_max_age: int = _option("streams.retention.max.age", values.duration(), 168 * HOUR)
    cleaner_interval: int = _option("streams.cleaner.interval", values.duration(), 5 * MINUTE)
    cleaner_workers: int = _option("streams.cleaner.workers", values.integer(1, 256), 2)
    cleaner_max_rate: int = _option(
        "streams.cleaner.max.rate", values.integer(note="; 0 means no limit"), 32 << 20
    )
    disk_min_free: int | None = _option(
        "streams.disk.min.free", cast("Kind[int | None]", values.integer(note="; 0 means no floor")), None
    )
    max_partitions: int = _option("streams.max.partitions", values.integer(1), 100_000)
    read_cache_max_bytes: int = _option("streams.read.cache.max.bytes", values.integer(), 64 << 20)
    segment_max_bytes: int = _option("streams.segment.max.bytes", values.integer(0, INT32_MAX), 268_435_456)
    segment_max_age: int = _option("streams.segment.max.age", values.duration(), 168 * HOUR)
    segment_preallocate_bytes: int = _option(
        "streams.segment.preallocate.bytes", values.integer(0, INT32_MAX), 0
    )
    compact_enabled: bool = _option("streams.compact.enabled", values.boolean(), False)
    compact_max_goroutines: int = _option("streams.compact.max.goroutines", values.integer(0, INT32_MAX), 10)
    compact_min_dirty_percent: int = _option("streams.compact.min.dirty.percent", values.integer(0, 100), 50)
    compact_min_lag: int = _option("streams.compact.min.lag", values.duration(), 0)
    compact_max_lag: int = _option("streams.compact.max.lag", values.duration(), 0)
    compact_tombstone_retention: int = _option(
        "streams.compact.tombstone.retention", values.duration(), 24 * HOUR
    )
    compact_memory_bytes: int = _option(
        "streams.compact.memory.bytes", values.integer(MIN_COMPACT_MEMORY_BYTES), 128 << 20
    )
    auto_pause_time: int = _option("streams.auto.pause.time", values.duration(), 0)
    auto_pause_disable_if_subscribers: bool = _option(
        "streams.auto.pause.disable.if.subscribers", values.boolean(), False
    )
    concurrency_control: bool = _option("streams.concurrency.control", values.boolean(), False)
    encryption: bool = _option("streams.encryption", values.boolean(), False)
    encryption_old_keys_file: Path | None = _option(OLD_KEYS_SETTING, values.file_path(), None)
    compression: str = _option(
        "streams.compression", values.choice("none", "lz4", "zstd", any_case=True), "none"
    )
    sync_policy: str = _option(
        "streams.sync.policy", values.choice("always", "interval", "never", any_case=True), "always"
    )
    sync_interval: int = _option("streams.sync.interval", values.duration(minimum=1), 50 * MILLISECOND)
    sync_bytes: int = _option("streams.sync.bytes", values.integer(1), 8_388_608)


@dataclass(frozen=True)
class ClusteringConfig:
    """`clustering.*`: who this server is and how it works with others."""

    server_id: str | None = _option("clustering.server.id", values.name(), None)
    namespace: str = _option(
        "clustering.namespace", cast("Kind[str]", values.name(DEFAULT_NAMESPACE)), DEFAULT_NAMESPACE
    )
    secret: str | None = _option("clustering.secret", values.secret(16), None, show=False)
    tls_ca: Path | None = _option("clustering.tls.ca", values.file_path(), None)
    raft_snapshot_retain: int = _option("clustering.raft.snapshot.retain", values.integer(), 2)
    raft_snapshot_threshold: int = _option("clustering.raft.snapshot.threshold", values.integer(), 8192)
    raft_cache_size: int = _option("clustering.raft.cache.size", values.integer(), 512)
    raft_bootstrap_seed: bool = _option("clustering.raft.bootstrap.seed", values.boolean(), False)
    raft_bootstrap_peers: tuple[str, ...] = _option(
        "clustering.raft.bootstrap.peers", values.list_of_names(), ()
    )
    raft_max_quorum_size: int = _option("clustering.raft.max.quorum.size", values.integer(), 0)
    replica_max_lag_time: int = _option("clustering.replica.max.lag.time", values.duration(), 15 * SECOND)
    replica_max_leader_timeout: int = _option(
        "clustering.replica.max.leader.timeout", values.duration(), 15 * SECOND
    )
    replica_max_idle_wait: int = _option("clustering.replica.max.idle.wait", values.duration(), 10 * SECOND)
    replica_fetch_timeout: int = _option("clustering.replica.fetch.timeout", values.duration(), 3 * SECOND)
    min_insync_replicas: int = _option("clustering.min.insync.replicas", values.integer(1, INT32_MAX), 1)
    replication_max_bytes: int = _option(
        "clustering.replication.max.bytes", values.integer(1, INT32_MAX), 1_048_576
    )


@dataclass(frozen=True)
class TlsConfig:
    """`tls.*`: TLS towards clients of the gRPC API. On if `key` and `cert` are set."""

    key: Path | None = _option("tls.key", values.file_path(), None)
    cert: Path | None = _option("tls.cert", values.file_path(), None)
    client_auth_enabled: bool = _option("tls.client.auth.enabled", values.boolean(), False)
    client_auth_ca: Path | None = _option("tls.client.auth.ca", values.file_path(), None)
    client_authz_enabled: bool = _option("tls.client.authz.enabled", values.boolean(), False)
    client_authz_model: Path | None = _option("tls.client.authz.model", values.file_path(), None)
    client_authz_policy: Path | None = _option("tls.client.authz.policy", values.file_path(), None)
    client_authz_groups_enabled: bool = _option("tls.client.authz.groups.enabled", values.boolean(), False)
    client_authz_audit_allowed: str = _option(
        "tls.client.authz.audit.allowed", values.choice("debug", "info", any_case=True), "debug"
    )
    client_authz_audit_max_rate: int = _option(
        "tls.client.authz.audit.max.rate", values.integer(1, INT32_MAX), 100
    )

    @property
    def enabled(self) -> bool:
        """Whether the gRPC API is served over TLS."""
        return self.key is not None and self.cert is not None


@dataclass(frozen=True)
class NatsConfig:
    """`nats.*`: which NATS to use, how to log in there, and the embedded server."""

    servers: tuple[str, ...] = _option(
        "nats.servers", values.nats_urls(), ("nats://127.0.0.1:4222",), show=False
    )
    user: str | None = _option("nats.user", values.text(), None)
    password: str | None = _option("nats.password", values.secret(), None, show=False)
    token: str | None = _option("nats.token", values.secret(), None, show=False)
    credentials: Path | None = _option("nats.credentials", values.file_path(), None)
    tls_cert: Path | None = _option("nats.tls.cert", values.file_path(), None)
    tls_key: Path | None = _option("nats.tls.key", values.file_path(), None)
    tls_ca: Path | None = _option("nats.tls.ca", values.file_path(), None)
    embedded: bool = _option("nats.embedded", values.boolean(), False)
    embedded_config: Path | None = _option("nats.embedded.config", values.file_path(), None)


@dataclass(frozen=True)
class BatchConfig:
    """`batch.*`: how many messages one append to a log may take, and how long to wait for more."""

    max_messages: int = _option("batch.max.messages", values.integer(1), 1024)
    max_time: int = _option("batch.max.time", values.duration(), 0)


@dataclass(frozen=True)
class LoggingConfig:
    """`logging.*`: what is written to standard error."""

    level: str = _option(
        "logging.level", values.choice("debug", "info", "warn", "error", any_case=True), "info"
    )
    recovery: bool = _option("logging.recovery", values.boolean(), False)
    raft: bool = _option("logging.raft", values.boolean(), False)
    nats: bool = _option("logging.nats", values.boolean(), False)


@dataclass(frozen=True)
class ActivityConfig:
    """`activity.stream.*`: the stream of cluster events."""

    stream_enabled: bool = _option("activity.stream.enabled", values.boolean(), False)
    stream_publish_timeout: int = _option("activity.stream.publish.timeout", values.duration(), 5 * SECOND)
    stream_publish_ack_policy: str = _option(
        "activity.stream.publish.ack.policy", values.choice("none", "leader", "all"), "all"
    )


@dataclass(frozen=True)
class CursorsConfig:
    """`cursors.stream.*`: the stream that stores the cursors of clients; 0 partitions switch cursors off."""

    stream_partitions: int = _option("cursors.stream.partitions", values.integer(0, INT32_MAX), 0)
    stream_replication_factor: int = _option(
        "cursors.stream.replication.factor",
        values.integer(-1, INT32_MAX, "; -1 means all servers"),
        -1,
    )
    stream_auto_pause_time: int = _option("cursors.stream.auto.pause.time", values.duration(), MINUTE)
    index_max_bytes: int = _option("cursors.index.max.bytes", values.integer(), 64 << 20)


@dataclass(frozen=True)
class GroupsConfig:
    """`groups.*`: time-outs of consumer groups."""

    consumer_timeout: int = _option("groups.consumer.timeout", values.duration(minimum=1), 15 * SECOND)
    coordinator_timeout: int = _option("groups.coordinator.timeout", values.duration(), 15 * SECOND)


@dataclass(frozen=True)
class TelemetryConfig:
    """`telemetry.*`: accepted for the sake of existing files; this server never sends anything."""

    enabled: bool = _option("telemetry.enabled", values.boolean(), False)
    interval_seconds: int = _option("telemetry.interval.seconds", values.integer(), 86_400)


@dataclass(frozen=True)
class LimitsConfig:
    """`limits.*`: what one client, or all of them together, may take from the gRPC server."""

    connections: int = _option("limits.connections", values.integer(1, INT32_MAX), 10_000)
    connections_per_address: int = _option(
        "limits.connections.per.address", values.integer(1, INT32_MAX), 2_000
    )
    streams_per_connection: int = _option(
        "limits.streams.per.connection", values.integer(1, INT32_MAX), 10_000
    )
    request_max_bytes: int = _option("limits.request.max.bytes", values.integer(1, INT32_MAX), 4_194_304)
    headers_max_bytes: int = _option("limits.headers.max.bytes", values.integer(1024, INT32_MAX), 16_384)
    request_timeout: int = _option("limits.request.timeout", values.duration(minimum=1), 60 * SECOND)
    inflight_max_bytes: int = _option("limits.inflight.max.bytes", values.integer(1 << 20), 1 << 30)
    inflight_connection_max_bytes: int = _option(
        "limits.inflight.connection.max.bytes", values.integer(1 << 20), 64 << 20
    )
    unsent_max_bytes: int = _option("limits.unsent.max.bytes", values.integer(1 << 20), 256 << 20)
    idle_timeout: int = _option("limits.idle.timeout", values.duration(), HOUR)
    flood_resets: int = _option("limits.flood.resets", values.integer(1, INT32_MAX), 2_000)
    flood_frames: int = _option("limits.flood.frames", values.integer(1, INT32_MAX), 10_000)
    flood_period: int = _option("limits.flood.period", values.duration(minimum=1), 10 * SECOND)
    handshake_timeout: int = _option("limits.handshake.timeout", values.duration(minimum=1), 10 * SECOND)
    keepalive_interval: int = _option("limits.keepalive.interval", values.duration(minimum=1), 30 * SECOND)
    keepalive_timeout: int = _option("limits.keepalive.timeout", values.duration(minimum=1), 20 * SECOND)


@dataclass(frozen=True)
class HttpConfig:
    """`http.*`: metrics and health for those who watch the server."""

    listen: ListenAddress | None = _option("http.listen", values.listen_address(), None)
    metrics_max_partitions: int = _option("http.metrics.max.partitions", values.integer(), 1000)


@dataclass(frozen=True)
class Config:
    """A complete, checked configuration, as `load` returns it.

    Attributes:
        keyring: the master keys of encryption at rest, or None when there is no usable one.
        keyring_problem: why there is none; empty when there is one.
        warnings: what is accepted but may surprise, one sentence each, to be logged at start-up.
    """

    listen: ListenAddress | None = _option("listen", values.listen_address(), None)
    host: str | None = _option("host", values.host_name(), None)
    port: int = _option("port", values.integer(0, 65535), DEFAULT_PORT)
    data_dir: Path = _option(
        "data.dir", cast("Kind[Path]", values.file_path()), DEFAULT_DATA_ROOT / DEFAULT_NAMESPACE
    )
    metadata_cache_max_age: int = _option("metadata.cache.max.age", values.duration(), 2 * MINUTE)
    streams: StreamsConfig = field(default_factory=StreamsConfig)
    clustering: ClusteringConfig = field(default_factory=ClusteringConfig)
    tls: TlsConfig = field(default_factory=TlsConfig)
    nats: NatsConfig = field(default_factory=NatsConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    activity: ActivityConfig = field(default_factory=ActivityConfig)
    cursors: CursorsConfig = field(default_factory=CursorsConfig)
    groups: GroupsConfig = field(default_factory=GroupsConfig)
    telemetry: TelemetryConfig = field(default_factory=TelemetryConfig)
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    http: HttpConfig = field(default_factory=HttpConfig)
    keyring: Keyring | None = None
    keyring_problem: str = ""
    warnings: tuple[str, ...] = ()

    @property
    def bind_address(self) -> tuple[str, int]:
        """The (host, port) to listen on: `listen`, else `host`:`port`, else all interfaces at `port`.

        An IPv6 host has no brackets. A `listen` without a host means all interfaces.
        """
        if self.listen is not None:
            return self.listen.host or "0.0.0.0", self.listen.port
        return self.host or "0.0.0.0", self.port

    def advertised_address(self, bound_port: int) -> tuple[str, int]:
        """Return the (host, port) that clients are told to connect to.

        Args:
            bound_port: the port that the listening socket really has; it stands in for a port of 0.
        """
        if self.host is not None:
            host, port = self.host, self.port
        elif self.listen is not None:
            host, port = self.listen.host or "localhost", self.listen.port
        else:
            host, port = "localhost", self.port
        return host, port or bound_port


_SECTIONS: dict[str, type[Any]] = {
    "streams": StreamsConfig,
    "clustering": ClusteringConfig,
    "tls": TlsConfig,
    "nats": NatsConfig,
    "batch": BatchConfig,
    "logging": LoggingConfig,
    "activity": ActivityConfig,
    "cursors": CursorsConfig,
    "groups": GroupsConfig,
    "telemetry": TelemetryConfig,
    "limits": LimitsConfig,
    "http": HttpConfig,
}


def _options(section: type[Any]) -> dict[str, _Option]:
    """Return the declared options of a dataclass by field name."""
    return {item.name: item.metadata["option"] for item in fields(section) if "option" in item.metadata}


def all_keys() -> tuple[str, ...]:
    """Return every configuration key, in the order of the declarations."""
    classes: tuple[type[Any], ...] = (Config, *_SECTIONS.values())
    return tuple(option.key for section in classes for option in _options(section).values())


_KEYS = frozenset(all_keys())


def load(path: str | None, flags: Mapping[str, object], environ: Mapping[str, str]) -> Config:
    """Return the configuration made of command line, environment, file and defaults, in this precedence.

    Args:
        path: the YAML file, or None for none; no other place is searched.
        flags: settings of the command line by key, as `liftbridge.cli.flags.parse_flags` returns them.
        environ: the environment variables, such as `os.environ`.

    Raises:
        ConfigError: unreadable file, unknown key, value that cannot be used, or feature not available yet.
    """
    settings = sources.from_file(path) if path is not None else {}
    sources.check_keys(settings, _KEYS)
    settings.update(sources.from_environment(environ, _KEYS))
    settings.update(sources.from_flags(flags))
    sources.check_keys(settings, _KEYS)
    given = {key: setting for key, setting in settings.items() if setting.value is not None}
    config = _complete(_build(given), given)
    _check_combinations(config)
    config = _with_keys(config, environ)
    return replace(config, warnings=tuple(_warnings(config, given, environ)))


def _build(given: Mapping[str, Setting]) -> Config:
    sections = {name: section(**_read(section, given)) for name, section in _SECTIONS.items()}
    return Config(**_read(Config, given), **sections)


def _read(section: type[Any], given: Mapping[str, Setting]) -> dict[str, Any]:
    return {
        name: option.kind.read(option.key, given[option.key])
        for name, option in _options(section).items()
        if option.key in given
    }


# Values that follow from others


def _complete(config: Config, given: Mapping[str, Setting]) -> Config:
    """Fill in what other values decide and turn the zeroes that mean "default" into that default."""
    streams, clustering, nats = config.streams, config.clustering, config.nats
    age = streams.segment_max_age if "streams.segment.max.age" in given else 0
    age = age or streams.retention_max_age
    streams = replace(
        streams,
        segment_max_age=max(age, SECOND) if age else 0,
        segment_max_bytes=streams.segment_max_bytes or 1_073_741_824,
        cleaner_interval=streams.cleaner_interval or 5 * MINUTE,
        compact_max_goroutines=streams.compact_max_goroutines or 10,
    )
    clustering = replace(clustering, raft_snapshot_threshold=clustering.raft_snapshot_threshold or 8192)
    if "nats.embedded" not in given:
        nats = replace(nats, embedded=nats.embedded_config is not None)
    data_dir = config.data_dir
    if "data.dir" not in given or data_dir is None:  # an empty text is read as None
        data_dir = DEFAULT_DATA_ROOT / clustering.namespace
    return replace(config, streams=streams, clustering=clustering, nats=nats, data_dir=data_dir)


# Checks across keys


def _check_combinations(config: Config) -> None:
    tls, nats = config.tls, config.nats
    _check_pair("tls.key", tls.key, "tls.cert", tls.cert)
    _check_pair("nats.tls.key", nats.tls_key, "nats.tls.cert", nats.tls_cert)
    if tls.client_auth_enabled and not tls.enabled:
        raise ConfigError("tls.client.auth.enabled: true needs TLS; set tls.key and tls.cert too")
    _check_authorization(tls)
    if nats.password is not None and nats.user is None:
        raise ConfigError("nats.password is set without nats.user; set both, or nats.token for a token")
    ways = {"nats.user": nats.user, "nats.token": nats.token, "nats.credentials": nats.credentials}
    used = [key for key, value in ways.items() if value is not None]
    if len(used) > 1:
        raise ConfigError(f"{' and '.join(used)} are different ways to log in to NATS; set one of them")
    if config.cursors.stream_replication_factor == 0:
        raise ConfigError(
            "cursors.stream.replication.factor: 0 is not accepted; give -1 (all servers) or more"
        )


def _check_authorization(tls: TlsConfig) -> None:
    if not tls.client_authz_enabled:
        return
    if not tls.client_auth_enabled:
        raise ConfigError(
            "tls.client.authz.enabled: true needs to know clients; set tls.client.auth.enabled: true"
        )
    files = {
        "tls.client.authz.model": tls.client_authz_model,
        "tls.client.authz.policy": tls.client_authz_policy,
    }
    for key, path in files.items():
        if path is None:
            raise ConfigError(f"tls.client.authz.enabled: true needs {key}; name the file there")


def _check_pair(one: str, one_value: object, other: str, other_value: object) -> None:
    if (one_value is None) != (other_value is None):
        given, missing = (one, other) if other_value is None else (other, one)
        raise ConfigError(f"{given} is set without {missing}; TLS needs both files")


def _with_keys(config: Config, environ: Mapping[str, str]) -> Config:
    """Take up the master keys. They are not settings: their text is used as it is, and shown nowhere."""
    streams = config.streams
    try:
        keyring = Keyring.load(environ)
    except MasterKeyError as error:
        if streams.encryption:
            raise ConfigError(f"streams.encryption: true needs a master key: {error}") from None
        return replace(config, keyring_problem=str(error))
    if streams.encryption_old_keys_file is not None:
        try:
            keyring = Keyring.load(environ, streams.encryption_old_keys_file)
        except MasterKeyError as error:
            raise ConfigError(f"{OLD_KEYS_SETTING} cannot be used: {error}") from None
    return replace(config, keyring=keyring)


def _warnings(config: Config, given: Mapping[str, Setting], environ: Mapping[str, str]) -> list[str]:
    found = []
    listen, host = config.listen, config.host
    if host is not None and listen is not None and "port" not in given and listen.port != config.port:
        found.append(
            f"listen has port {listen.port}, but clients are told {host}:{config.port}, because host is set "
            "and port is not; set port to what clients can reach"
        )
    if config.tls.client_auth_ca is not None and not config.tls.client_auth_enabled:
        found.append("tls.client.auth.ca has no effect while tls.client.auth.enabled is false")
    if config.clustering.tls_ca is not None and not config.tls.enabled:
        found.append("clustering.tls.ca has no effect without tls.cert and tls.key")
    if config.tls.client_authz_policy is not None and not config.tls.client_authz_enabled:
        found.append("tls.client.authz.policy has no effect while tls.client.authz.enabled is false")
    if config.nats.embedded_config is not None and not config.nats.embedded:
        found.append("nats.embedded.config has no effect while nats.embedded is false")
    if config.keyring is None and environ.get(VARIABLE):
        found.append(f"{config.keyring_problem}; without one no encrypted stream can be created or read")
    elif config.keyring is None and config.streams.encryption_old_keys_file is not None:
        found.append(f"{OLD_KEYS_SETTING} has no effect while {VARIABLE} is not set")
    return found
