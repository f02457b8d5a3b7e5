"""Loading: every notation of a file, the sources and their precedence, what is refused with which words."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from liftbridge.broker.config import Config, ConfigError, all_keys, load

MINUTE = 60 * 10**9
HOUR = 60 * MINUTE

# A value for every key of the original that is not its default and not a feature still missing.
ORIGINAL: dict[str, tuple[str, Callable[[Config], object], object]] = {
    "listen": ("127.0.0.1:5050", lambda c: (c.listen.host, c.listen.port), ("127.0.0.1", 5050)),
    "host": ("my-host", lambda c: c.host, "my-host"),
    "port": ("5050", lambda c: c.port, 5050),
    "data.dir": ("/foo", lambda c: c.data_dir, Path("/foo")),
    "metadata.cache.max.age": ("1m", lambda c: c.metadata_cache_max_age, MINUTE),
    "logging.level": ("DEBUG", lambda c: c.logging.level, "debug"),
    "logging.recovery": ("true", lambda c: c.logging.recovery, True),
    "logging.raft": ("true", lambda c: c.logging.raft, True),
    "logging.nats": ("true", lambda c: c.logging.nats, True),
    "batch.max.messages": ("10", lambda c: c.batch.max_messages, 10),
    "batch.max.time": ("1s", lambda c: c.batch.max_time, 10**9),
    "tls.key": ("k.pem", lambda c: c.tls.key, Path("k.pem")),
    "tls.cert": ("c.pem", lambda c: c.tls.cert, Path("c.pem")),
    "tls.client.auth.enabled": ("true", lambda c: c.tls.client_auth_enabled, True),
    "tls.client.auth.ca": ("ca.pem", lambda c: c.tls.client_auth_ca, Path("ca.pem")),
    "tls.client.authz.enabled": ("false", lambda c: c.tls.client_authz_enabled, False),
    "tls.client.authz.model": ("m.conf", lambda c: c.tls.client_authz_model, Path("m.conf")),
    "tls.client.authz.policy": ("p.csv", lambda c: c.tls.client_authz_policy, Path("p.csv")),
    "nats.servers": ("[nats://a:1, nats://b:2]", lambda c: c.nats.servers, ("nats://a:1", "nats://b:2")),
    "nats.user": ("joe", lambda c: c.nats.user, "joe"),
    "nats.password": ("pass", lambda c: c.nats.password, "pass"),
    "nats.tls.cert": ("nc.pem", lambda c: c.nats.tls_cert, Path("nc.pem")),
    "nats.tls.key": ("nk.pem", lambda c: c.nats.tls_key, Path("nk.pem")),
    "nats.tls.ca": ("nca.pem", lambda c: c.nats.tls_ca, Path("nca.pem")),
    "nats.embedded": ("true", lambda c: c.nats.embedded, True),
    "nats.embedded.config": ("n.conf", lambda c: c.nats.embedded_config, Path("n.conf")),
    "streams.retention.max.bytes": ("1024", lambda c: c.streams.retention_max_bytes, 1024),
    "streams.retention.max.messages": ("100", lambda c: c.streams.retention_max_messages, 100),
    "streams.retention.max.age": ("1h", lambda c: c.streams.retention_max_age, HOUR),
    "streams.cleaner.interval": ("1m", lambda c: c.streams.cleaner_interval, MINUTE),
    "streams.segment.max.bytes": ("64", lambda c: c.streams.segment_max_bytes, 64),
    "streams.segment.max.age": ("1m", lambda c: c.streams.segment_max_age, MINUTE),
    "streams.compact.enabled": ("true", lambda c: c.streams.compact_enabled, True),
    "streams.compact.max.goroutines": ("2", lambda c: c.streams.compact_max_goroutines, 2),
    "streams.auto.pause.time": ("5m", lambda c: c.streams.auto_pause_time, 5 * MINUTE),
    "streams.auto.pause.disable.if.subscribers": (
        "true",
        lambda c: c.streams.auto_pause_disable_if_subscribers,
        True,
    ),
    "streams.concurrency.control": ("true", lambda c: c.streams.concurrency_control, True),
    "streams.encryption": ("false", lambda c: c.streams.encryption, False),
    "clustering.server.id": ("foo", lambda c: c.clustering.server_id, "foo"),
    "clustering.namespace": ("bar", lambda c: c.clustering.namespace, "bar"),
    "clustering.secret": ("0123456789abcdef", lambda c: c.clustering.secret, "0123456789abcdef"),
    "clustering.tls.ca": ("sca.pem", lambda c: c.clustering.tls_ca, Path("sca.pem")),
    "clustering.raft.snapshot.retain": ("10", lambda c: c.clustering.raft_snapshot_retain, 10),
    "clustering.raft.snapshot.threshold": ("100", lambda c: c.clustering.raft_snapshot_threshold, 100),
    "clustering.raft.cache.size": ("5", lambda c: c.clustering.raft_cache_size, 5),
    "clustering.raft.bootstrap.seed": ("true", lambda c: c.clustering.raft_bootstrap_seed, True),
    "clustering.raft.bootstrap.peers": (
        "[a, b]",
        lambda c: c.clustering.raft_bootstrap_peers,
        ("a", "b"),
    ),
    "clustering.raft.max.quorum.size": ("5", lambda c: c.clustering.raft_max_quorum_size, 5),
    "clustering.replica.max.lag.time": ("1m", lambda c: c.clustering.replica_max_lag_time, MINUTE),
    "clustering.replica.max.leader.timeout": (
        "30s",
        lambda c: c.clustering.replica_max_leader_timeout,
        MINUTE // 2,
    ),
    "clustering.replica.max.idle.wait": ("2s", lambda c: c.clustering.replica_max_idle_wait, 2 * 10**9),
    "clustering.replica.fetch.timeout": ("2s", lambda c: c.clustering.replica_fetch_timeout, 2 * 10**9),
    "clustering.min.insync.replicas": ("2", lambda c: c.clustering.min_insync_replicas, 2),
    "clustering.replication.max.bytes": ("1024", lambda c: c.clustering.replication_max_bytes, 1024),
    "activity.stream.enabled": ("false", lambda c: c.activity.stream_enabled, False),
    "activity.stream.publish.timeout": ("1m", lambda c: c.activity.stream_publish_timeout, MINUTE),
    "activity.stream.publish.ack.policy": (
        "leader",
        lambda c: c.activity.stream_publish_ack_policy,
        "leader",
    ),
    "cursors.stream.partitions": ("2", lambda c: c.cursors.stream_partitions, 2),
    "cursors.stream.replication.factor": ("3", lambda c: c.cursors.stream_replication_factor, 3),
    "cursors.index.max.bytes": ("1048576", lambda c: c.cursors.index_max_bytes, 1_048_576),
    "cursors.stream.auto.pause.time": ("5m", lambda c: c.cursors.stream_auto_pause_time, 5 * MINUTE),
    "groups.consumer.timeout": ("1m", lambda c: c.groups.consumer_timeout, MINUTE),
    "groups.coordinator.timeout": ("2m", lambda c: c.groups.coordinator_timeout, 2 * MINUTE),
    "telemetry.enabled": ("true", lambda c: c.telemetry.enabled, True),
    "telemetry.interval.seconds": ("60", lambda c: c.telemetry.interval_seconds, 60),
}
OURS: dict[str, tuple[str, Callable[[Config], object], object]] = {
    "tls.client.authz.groups.enabled": ("true", lambda c: c.tls.client_authz_groups_enabled, True),
    "tls.client.authz.audit.allowed": ("INFO", lambda c: c.tls.client_authz_audit_allowed, "info"),
    "tls.client.authz.audit.max.rate": ("7", lambda c: c.tls.client_authz_audit_max_rate, 7),
    "limits.connections.per.address": ("7", lambda c: c.limits.connections_per_address, 7),
    "limits.request.timeout": ("1m", lambda c: c.limits.request_timeout, MINUTE),
    "limits.inflight.max.bytes": ("2000000", lambda c: c.limits.inflight_max_bytes, 2_000_000),
    "limits.inflight.connection.max.bytes": (
        "2000000",
        lambda c: c.limits.inflight_connection_max_bytes,
        2_000_000,
    ),
    "limits.unsent.max.bytes": ("2000000", lambda c: c.limits.unsent_max_bytes, 2_000_000),
    "limits.idle.timeout": ("0", lambda c: c.limits.idle_timeout, 0),
    "limits.flood.resets": ("7", lambda c: c.limits.flood_resets, 7),
    "limits.flood.frames": ("7", lambda c: c.limits.flood_frames, 7),
    "limits.flood.period": ("1s", lambda c: c.limits.flood_period, 10**9),
    "nats.token": ("s3cret", lambda c: c.nats.token, "s3cret"),
    "nats.credentials": ("user.creds", lambda c: c.nats.credentials, Path("user.creds")),
    "streams.encryption.old.keys.file": (
        "old-keys",
        lambda c: c.streams.encryption_old_keys_file,
        Path("old-keys"),
    ),
    "streams.compression": ("ZSTD", lambda c: c.streams.compression, "zstd"),
    "streams.cleaner.workers": ("3", lambda c: c.streams.cleaner_workers, 3),
    "streams.cleaner.max.rate": ("5", lambda c: c.streams.cleaner_max_rate, 5),
    "streams.compact.min.dirty.percent": ("0", lambda c: c.streams.compact_min_dirty_percent, 0),
    "streams.compact.min.lag": ("1s", lambda c: c.streams.compact_min_lag, 10**9),
    "streams.compact.max.lag": ("1m", lambda c: c.streams.compact_max_lag, MINUTE),
    "streams.compact.tombstone.retention": ("1h", lambda c: c.streams.compact_tombstone_retention, HOUR),
    "streams.compact.memory.bytes": ("4096", lambda c: c.streams.compact_memory_bytes, 4096),
    "streams.disk.min.free": ("4096", lambda c: c.streams.disk_min_free, 4096),
    "streams.segment.preallocate.bytes": ("4096", lambda c: c.streams.segment_preallocate_bytes, 4096),
    "streams.max.partitions": ("7", lambda c: c.streams.max_partitions, 7),
    "streams.read.cache.max.bytes": ("0", lambda c: c.streams.read_cache_max_bytes, 0),
    "streams.sync.policy": ("interval", lambda c: c.streams.sync_policy, "interval"),
    "streams.sync.interval": ("10ms", lambda c: c.streams.sync_interval, 10**7),
    "streams.sync.bytes": ("1024", lambda c: c.streams.sync_bytes, 1024),
    "limits.connections": ("5", lambda c: c.limits.connections, 5),
    "limits.streams.per.connection": ("6", lambda c: c.limits.streams_per_connection, 6),
    "limits.request.max.bytes": ("7", lambda c: c.limits.request_max_bytes, 7),
    "limits.headers.max.bytes": ("8192", lambda c: c.limits.headers_max_bytes, 8192),
    "limits.handshake.timeout": ("1s", lambda c: c.limits.handshake_timeout, 10**9),
    "limits.keepalive.interval": ("1m", lambda c: c.limits.keepalive_interval, MINUTE),
    "http.listen": (
        "127.0.0.1:9300",
        lambda c: (c.http.listen.host, c.http.listen.port),
        ("127.0.0.1", 9300),
    ),
    "http.metrics.max.partitions": ("0", lambda c: c.http.metrics_max_partitions, 0),
    "limits.keepalive.timeout": ("2s", lambda c: c.limits.keepalive_timeout, 2 * 10**9),
}
# Keys that need another one beside them, or exclude it.
PARTNERS = {
    "tls.key": ["tls.cert"],
    "tls.cert": ["tls.key"],
    "tls.client.auth.enabled": ["tls.key", "tls.cert"],
    "nats.tls.key": ["nats.tls.cert"],
    "nats.tls.cert": ["nats.tls.key"],
    "nats.password": ["nats.user"],
}

Load = Callable[..., Config]


@pytest.fixture(name="load_text")
def _load_text(tmp_path: Path) -> Load:
    """Loads a file with the given text."""

    def load_text(
        text: str, flags: Mapping[str, object] | None = None, environ: Mapping[str, str] | None = None
    ) -> Config:
        path = tmp_path / "lift.yaml"
        path.write_text(text, encoding="utf-8")
        return load(str(path), flags or {}, environ or {})

    return load_text


def nested(lines: Mapping[str, str]) -> str:
    """Write keys as fully nested YAML; a section that also has a value of its own keeps the dotted form."""
    tree: dict[str, Any] = {}
    for key, value in lines.items():
        node, words = tree, key.split(".")
        if key == "nats.embedded.config":
            words = ["nats", "embedded.config"]
        for word in words[:-1]:
            node = node.setdefault(word, {})
        node[words[-1]] = value
    return "\n".join(_indented(tree, 0))


def _indented(tree: dict[str, Any], depth: int) -> list[str]:
    lines = []
    for word, value in tree.items():
        if isinstance(value, dict):
            lines += ["  " * depth + f"{word}:", *_indented(value, depth + 1)]
        else:
            lines.append("  " * depth + f"{word}: {value}")
    return lines


def test_the_tables_of_this_test_name_every_key() -> None:
    assert sorted(all_keys()) == sorted(ORIGINAL | OURS)


@pytest.mark.parametrize("write", [nested, lambda lines: "\n".join(f"{k}: {v}" for k, v in lines.items())])
def test_a_file_of_the_original_with_every_key_loads(load_text: Load, write: Callable[..., str]) -> None:
    config = load_text(write({key: text for key, (text, _, _) in ORIGINAL.items()}))
    for key, (_, get, expected) in ORIGINAL.items():
        assert get(config) == expected, key


def _with_partners(key: str) -> dict[str, str]:
    table = ORIGINAL | OURS
    return {name: table[name][0] for name in [key, *PARTNERS.get(key, [])]}


@pytest.mark.parametrize("key", sorted(ORIGINAL | OURS))
def test_each_key_is_read_from_file_environment_and_flags(key: str, load_text: Load) -> None:
    _, get, expected = (ORIGINAL | OURS)[key]
    given = _with_partners(key)
    bare = {name: value.strip("[]") for name, value in given.items()}
    assert get(load_text(nested(given))) == expected
    assert get(load_text("\n".join(f"{name.upper()}: {value}" for name, value in given.items()))) == expected
    assert get(load(None, bare, {})) == expected
    assert get(load(None, {}, {f"LIFTBRIDGE_{k.upper()}": v for k, v in bare.items()})) == expected
    underscored = {f"LIFTBRIDGE_{k.upper().replace('.', '_')}": v for k, v in bare.items()}
    assert get(load(None, {}, underscored)) == expected


@pytest.mark.parametrize(
    "text",
    [
        "streams:\n  retention:\n    max:\n      age: 1h",
        "streams.retention.max.age: 1h",
        "streams:\n  retention.max:\n    age: 1h",
        "streams.retention:\n  max.age: 1h",
        "streams: {retention: {max.age: 1h}}",
        "STREAMS:\n  Retention.MAX:\n    aGe: '1h'",
        "streams.retention.max.age: 3600000000000",
        "streams.retention.max.age: '3600000000000'",
        "%YAML 1.1\n---\nstreams.retention.max.age: 60m0s",
        "streams: {retention.max.age: &age 1h}",
    ],
)
def test_every_split_of_a_key_means_the_same(load_text: Load, text: str) -> None:
    assert load_text(text).streams.retention_max_age == HOUR


@pytest.mark.parametrize(
    "text", ["", "---", "---\n...\n", "# nothing\n", "~", "nats: {}", "port:", "data.dir: ''"]
)
def test_an_empty_file_gives_the_defaults(load_text: Load, text: str) -> None:
    assert load_text(text) == load(None, {}, {})


def test_the_defaults() -> None:
    config = load(None, {}, {})
    assert config.data_dir == Path("/tmp/liftbridge/liftbridge-default")
    assert config.streams.retention_max_age == config.streams.segment_max_age == 168 * HOUR
    assert (config.streams.sync_policy, config.streams.sync_interval) == ("always", 50 * 10**6)
    assert config.streams.sync_bytes == 8_388_608
    assert config.nats.servers == ("nats://127.0.0.1:4222",)
    assert config.clustering.server_id is None
    assert not config.telemetry.enabled
    assert not config.nats.embedded
    assert config.warnings == ()


def test_flags_win_over_environment_over_file(load_text: Load) -> None:
    text = "port: 1\nhost: file\nlogging.level: warn"
    environ = {"LIFTBRIDGE_PORT": "2", "LIFTBRIDGE_HOST": "env", "LIFTBRIDGE_NO_SUCH_KEY": "x"}
    config = load_text(text, {"port": 3}, environ)
    assert (config.port, config.host, config.logging.level) == (3, "env", "warn")


def test_an_empty_environment_variable_counts_as_unset(load_text: Load) -> None:
    assert load_text("port: 1", {}, {"LIFTBRIDGE_PORT": ""}).port == 1


def test_two_spellings_of_a_variable_must_agree() -> None:
    both = {"LIFTBRIDGE_LOGGING_LEVEL": "debug", "LIFTBRIDGE_LOGGING.LEVEL": "error"}
    with pytest.raises(ConfigError, match=r"LIFTBRIDGE_LOGGING_LEVEL and LIFTBRIDGE_LOGGING\.LEVEL differ"):
        load(None, {}, both)
    both["LIFTBRIDGE_LOGGING.LEVEL"] = "debug"
    assert load(None, {}, both).logging.level == "debug"


def test_lists_in_the_environment_are_split_at_commas_and_blanks() -> None:
    servers = load(None, {}, {"LIFTBRIDGE_NATS_SERVERS": "nats://a:1,nats://b:2 nats://c:3"}).nats.servers
    assert servers == ("nats://a:1", "nats://b:2", "nats://c:3")


def test_the_file_of_the_test_helper_of_gufo_liftbridge(load_text: Load) -> None:
    text = "\nlisten: 127.0.0.1:9292\ncursors:\n    stream.auto.pause.time: 0\n    stream.partitions: 1\n"
    flags = {"data.dir": "/x", "nats.embedded": True, "clustering.raft.bootstrap.seed": True}
    config = load_text(text, flags)
    assert config.bind_address == ("127.0.0.1", 9292)
    assert (config.cursors.stream_partitions, config.cursors.stream_auto_pause_time) == (1, 0)
    assert config.nats.embedded and config.clustering.raft_bootstrap_seed
    assert not config.warnings


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("foo: 1", r'unknown configuration key "foo" \(.*lift.yaml, line 1\)'),
        ("nats:\n  foo: {bar: 1}", r'"nats.foo.bar"'),
        ("streams: {retention.max.aeg: 1h}", r"did you mean streams\.retention\.max\.age"),
        ("nats:", r'unknown configuration key "nats".*section.*such as nats\.'),
        ("port: {number: 1}", r'"port.number"'),
        ("<<: {port: 1}", '"<<.port"'),
        ("port: 1\nPort: 2", "port is given twice, in lines 1 and 2"),
        (
            "streams.retention:\n  max.age: 1h\nstreams:\n  retention.max: {age: 1h}",
            "twice, in lines 2 and 4",
        ),
        ("port: abc", r'port: the value "abc" \(.*lift.yaml, line 1\) is not accepted; give a whole number'),
        ("port: 65536", "at most 65535"),
        ("port: [1]", "port.*a list.*whole number"),
        ("port: 1.5", "port.*whole number"),
        ("streams.retention.max.bytes: 1MB", "streams.retention.max.bytes.*1MB.*whole number"),
        ("streams.retention.max.age: 7d", "one day is 24h"),
        ("logging.level: verbose", "logging.level.*verbose.*one of debug, info, warn, error"),
        ("activity.stream.publish.ack.policy: ALL", "none, leader, all"),
        ("listen: localhost", "listen.*host:port"),
        ("streams.sync.policy: sometimes", "one of always, interval, never"),
        ("streams.compression: gzip", "streams.compression.*gzip.*one of none, lz4, zstd"),
        ("clustering.server.id: a.b", "clustering.server.id"),
        ("nats.servers: [{a: b}]", "nats.servers: a list holds texts only"),
        ("nats.servers: [~]", "a list holds texts only"),
        ("? [a]\n: b", "a key must be a plain text"),
        ("- port", "mapping of keys"),
        ("just text", "mapping of keys"),
        ("port: [", "lift.yaml, line 1.*not valid YAML"),
        ("a: 1\n--- \nb: 2", "not valid YAML"),
        ("port: *nope", "not valid YAML.*undefined alias"),
        ("a\0b: 1", "not valid YAML"),
        ("tls.key: k.pem", "tls.key is set without tls.cert"),
        ("tls.cert: k.pem", "tls.cert is set without tls.key"),
        ("nats.tls.cert: k.pem", "nats.tls.cert is set without nats.tls.key"),
        ("tls.client.auth.enabled: true", "needs TLS"),
        ("tls: {key: a, cert: b, client.authz.enabled: true}", "set tls.client.auth.enabled: true"),
        (
            "tls: {key: a, cert: b, client.auth.enabled: true, client.authz: {enabled: true, model: m}}",
            "needs tls.client.authz.policy",
        ),
        (
            "tls: {key: a, cert: b, client.auth.enabled: true, client.authz: {enabled: true, policy: p}}",
            "needs tls.client.authz.model",
        ),
        ("nats.password: secret", "nats.password is set without nats.user"),
        ("nats: {user: a, token: b}", "nats.user and nats.token are different ways"),
        ("nats: {token: a, credentials: b}", "nats.token and nats.credentials are different ways"),
        ("cursors.stream.replication.factor: 0", "cursors.stream.replication.factor: 0"),
    ],
)
def test_mistakes_in_a_file_are_named(load_text: Load, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_text(text)


def test_an_unknown_key_on_the_command_line_or_a_bad_variable_is_an_error_too() -> None:
    with pytest.raises(ConfigError, match=r'"prt" \(command line\); did you mean port\?'):
        load(None, {"prt": 1}, {})
    with pytest.raises(ConfigError, match=r'port: the value "x" \(environment variable LIFTBRIDGE_PORT\)'):
        load(None, {}, {"LIFTBRIDGE_PORT": "x"})


@pytest.mark.parametrize("path", ["no/such/file.yaml", ".", "a\0b"])
def test_an_unreadable_file_is_an_error_that_names_it(path: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the configuration file"):
        load(str(tmp_path / path), {}, {})


def test_texts_stay_as_they_are_written(load_text: Load) -> None:
    for word in ("no", "1e5", "007", "2024-01-01", "0x10", "1:30", "true"):
        assert load_text(f"clustering.server.id: {word}").clustering.server_id == word
    assert load_text("nats: {user: a, password: 0123}").nats.password == "0123"
    assert load_text("nats: {user: a, password: ' x '}").nats.password == " x "


def test_the_default_data_directory_follows_the_namespace(load_text: Load) -> None:
    assert load_text("clustering.namespace: ns1").data_dir == Path("/tmp/liftbridge/ns1")
    assert load_text("clustering.namespace: ''").data_dir == Path("/tmp/liftbridge/liftbridge-default")
    assert load_text("clustering.namespace: ns1", {"data.dir": "/d"}).data_dir == Path("/d")


@pytest.mark.parametrize(
    ("text", "embedded"),
    [
        ("nats.embedded: false", False),
        ("nats.embedded: true", True),
        ("nats.embedded.config: n.conf", True),
        ("nats: {embedded: false, embedded.config: n.conf}", False),
        ("nats: {embedded: {config: n.conf}}", True),
    ],
)
def test_embedding_nats(load_text: Load, text: str, embedded: bool) -> None:
    assert load_text(text).nats.embedded is embedded


@pytest.mark.parametrize(
    ("text", "age"),
    [
        ("streams.retention.max.age: 1h", HOUR),
        ("streams: {retention.max.age: 1h, segment.max.age: 0}", HOUR),
        ("streams: {retention.max.age: 1h, segment.max.age: 5m}", 5 * MINUTE),
        ("streams: {retention.max.age: 0}", 0),
        ("streams: {retention.max.age: 0, segment.max.age: 5m}", 5 * MINUTE),
        ("streams: {segment.max.age: 5ms}", 10**9),
    ],
)
def test_the_age_of_a_segment(load_text: Load, text: str, age: int) -> None:
    assert load_text(text).streams.segment_max_age == age


def test_zeroes_that_mean_a_default(load_text: Load) -> None:
    config = load_text(
        "streams: {segment.max.bytes: 0, cleaner.interval: 0, compact.max.goroutines: 0}\n"
        "clustering.raft.snapshot.threshold: 0"
    )
    assert config.streams.segment_max_bytes == 1 << 30
    assert config.streams.cleaner_interval == 5 * MINUTE
    assert config.streams.compact_max_goroutines == 10
    assert config.clustering.raft_snapshot_threshold == 8192


def test_a_ca_alone_is_enough_for_nats(load_text: Load) -> None:
    assert load_text("nats.tls.ca: ca.pem").nats.tls_ca == Path("ca.pem")


def test_no_secret_is_in_the_repr(load_text: Load) -> None:
    config = load_text("nats: {user: joe, password: hunter2, servers: 'nats://u:hunter2@a'}")
    assert "hunter2" not in repr(config) and config.nats.password == "hunter2"
    assert "hunter2" not in repr(load_text("nats.token: hunter2"))
    assert "hunter2" not in repr(load_text("clustering.secret: hunter2hunter2hunter2"))


def test_a_short_secret_of_the_cluster_is_refused_without_being_shown(load_text: Load) -> None:
    with pytest.raises(ConfigError, match="at least 16 characters") as caught:
        load_text("clustering.secret: hunter2")
    assert "hunter2" not in str(caught.value)


def test_what_has_no_effect_is_warned_about(load_text: Load) -> None:
    (warning,) = load_text("clustering.tls.ca: ca.pem").warnings
    assert "clustering.tls.ca" in warning
    (warning,) = load_text("tls.client.auth.ca: ca.pem").warnings
    assert "tls.client.auth.ca" in warning
    (warning,) = load_text("nats: {embedded: no, embedded.config: n.conf}").warnings
    assert "nats.embedded.config" in warning
    (warning,) = load_text("listen: 0.0.0.0:5050\nhost: example.org").warnings
    assert "example.org:9292" in warning
    assert load_text("listen: 0.0.0.0:5050\nhost: example.org\nport: 80").warnings == ()
