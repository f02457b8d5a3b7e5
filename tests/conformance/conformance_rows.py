"""Every documented feature of the original server, as a row: what the tests of this folder are about.

A row has the name of its feature, the version of the original since which it exists, and what is to be seen
from outside. It has a test, which is named after the feature, or a `reason` why one server cannot show it;
`note` tells where this server is meant to be different. `docs/compatibility.md` is written from these rows
and from a run of their tests; test_compatibility_table.py sees to it that rows, tests and table agree.

What needs several servers is a row of its own where one server shows a part.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class Row(NamedTuple):
    """A feature. `reason` is empty when there is a test."""

    area: str
    feature: str
    since: str
    verified: str
    reason: str = ""
    note: str = ""

    @property
    def test(self) -> str:
        """The name of its test."""
        return "test_" + re.sub(r"[^a-z0-9]+", "_", self.feature.lower()).strip("_")


def _area(name: str, *rows: tuple[str, ...]) -> list[Row]:
    return [Row(name, *row) for row in rows]


STREAMS = _area(
    "Streams and partitions",
    ("Create a stream", "1.0", "create; `FetchMetadata` lists name, subject, creation time"),
    ("Unique name", "1.0", "create twice: `ALREADY_EXISTS`, also with another subject"),
    ("Reserved names", "1.8", "create or delete `__cursors`, `__activity`: `INVALID_ARGUMENT`"),
    ("Subject validation", "1.0", "`foo bar`, empty, `a..b`: `INVALID_ARGUMENT`"),
    ("Several streams per subject", "1.0", "two streams on a subject, one NATS message: both deliver it"),
    ("Wildcard subjects", "1.0", "publish to `foo.a` by NATS: `foo.*` and `foo.>` have it, with its subject"),
    (
        "Load-balance group",
        "1.0",
        "two streams of a group, 100 NATS messages: 100 in total; other groups: copies",
    ),
    (
        "Partitions",
        "1.0",
        "3 partitions, publish to each subject by NATS: the right partition; to a fourth: none",
    ),
    (
        "Replication factor",
        "1.0",
        "more than there are servers: `INVALID_ARGUMENT`; -1: all servers; 0: 1",
    ),
    ("Replica placement by load", "1.5", "many streams: counts per broker about even"),
    (
        "Delete a stream",
        "1.0",
        "unknown to metadata, directory gone, subscriber gets `NOT_FOUND`; created again: offsets from 0",
        "",
        "directories have the id of a stream, not its name",
    ),
    ("Per-stream settings", "1.2", "retention of 10 messages on one stream; others keep all"),
    (
        "Pause",
        "1.0",
        "`paused` is true, `FetchPartitionMetadata` and the subscriber get `FAILED_PRECONDITION`",
    ),
    ("Resume by publish", "1.0", "publish with ack: it arrives, `paused` is false, old data is readable"),
    ("ResumeAll", "1.0", "pause two with it, publish to one: both resumed; without it only the one"),
    ("Resume by subscribe", "1.3", "pause, subscribe with resume: delivers"),
    ("Auto-pause", "1.3", "200 ms: paused after that, never before; with `autoPauseTime` and the setting"),
    ("Auto-pause exemption", "1.3", "active with an open subscription, paused when it is closed"),
    ("Pause survives restart", "1.0", "pause, restart: still `paused`; a publish resumes"),
    (
        "Readonly",
        "1.3",
        "publish: `FAILED_PRECONDITION`, `READONLY`; subscribers end: `RESOURCE_EXHAUSTED`; undone: "
        "writable; the same after pause and resume, and after a restart",
        "",
        "by NATS and `PublishToSubject`: the negative ack `UNKNOWN`, where the original is silent",
    ),
    (
        "Minimum ISR",
        "1.0, per stream 1.3",
        "fewer replicas than it: `ALL` gets no ack, `LEADER` does, subscribers see nothing new",
    ),
    (
        "Optimistic concurrency",
        "1.5",
        "expect 0: stored; 0 again: `INCORRECT_OFFSET`; -1: stored; policy `NONE`: `BAD_REQUEST`",
        "",
        "`streams.concurrency.control`, which the original ignores, is the default of streams",
    ),
    (
        "Encryption at rest",
        "1.6",
        "a marker is not in the files, a subscriber sees it; without a key `FAILED_PRECONDITION`",
        "",
        "keys and headers are encrypted too; with `streams.encryption` and no key it does not start",
    ),
)

RETENTION = _area(
    "Retention and compaction",
    (
        "Retention by age / messages / bytes",
        "1.0",
        "small segments: the earliest offset moves up, the active segment stays",
    ),
    ("Segment size and age", "1.0", "files appear in the directory of the partition"),
    ("Cleaner interval", "1.0", "a short one deletes, a long one does not yet"),
    (
        "Compaction",
        "1.0",
        "100 messages on 3 keys: few remain, at their offsets; all without a key; positions between work",
    ),
    ("Compaction parallelism", "1.0", "`compactMaxGoroutines` and its setting are accepted"),
)

PUBLISHING = _area(
    "Publishing",
    ("Publish with ack", "1.0", "with a deadline: an ack with the offset; without: empty answer at once"),
    ("Asynchronous publish", "1.2", "1000 messages, 1000 responses by correlation id; half-close: clean end"),
    ("Asynchronous errors", "1.3", "unknown stream, then a good message on the same call: error, then ack"),
    (
        "Ack policies",
        "1.0",
        "`LEADER` and `ALL` are acked, `NONE` gets no response",
        "",
        "the difference between `LEADER` and `ALL`: see minimum ISR",
    ),
    (
        "Publish to subject",
        "1.0",
        "two streams on the subject: stored twice, one ack; no stream and a deadline: `DEADLINE_EXCEEDED`",
    ),
    ("Keys and headers", "1.0", "a subscriber has both, and the headers `subject` and `reply`"),
    ("Correlation id", "1.0", "in the ack, whatever it is; empty stays empty"),
    (
        "Ack inbox",
        "1.0",
        "subscribe to it by NATS, publish: an envelope of type 1; of `PublishAsync` ignored",
    ),
    (
        "Reception/commit times in acks",
        "1.3",
        "commit not before reception, which is the message's timestamp",
    ),
    (
        "Plain NATS messages",
        "1.0",
        "value is the payload, no key, headers `subject` and `reply`; never acked",
    ),
    ("Envelope", "1.0", "with and without CRC; wrong CRC, length, type: a plain message"),
    (
        "Maximum message size",
        "1.5",
        "limit 1024, 2000 bytes: `INVALID_ARGUMENT`, `BAD_REQUEST`, negative ack `TOO_LARGE`",
    ),
    (
        "Batching",
        "1.0",
        "with `batch.max.time` of 1 s an ack takes that long, unless the batch is full before",
    ),
    (
        "Partitioners",
        "1.0",
        "by key, round robin, custom",
        "on the side of clients: `tests/client/test_client_partitioners.py`",
    ),
)

SUBSCRIBING = _area(
    "Subscribing",
    ("Subscribe and tail", "1.0", "handshake, old messages, then new ones"),
    (
        "Start positions",
        "1.0",
        "new, offset, earliest, latest, time; beyond the end, below the oldest, negative",
    ),
    (
        "Stop positions",
        "1.4",
        "offset, latest, time: `RESOURCE_EXHAUSTED` after the right message; empty and latest: at once",
    ),
    (
        "Only committed messages",
        "1.0",
        "with an ISR below the minimum nothing is delivered, with any start position",
    ),
    (
        "Read from a replica",
        "1.0",
        "a leader ignores the permission",
    ),
    (
        "Reverse order",
        "26.01.1",
        "offsets descend to the oldest, then the end",
        "",
        "field 12 of `SubscribeRequest`, as no published definition has it; ends with `RESOURCE_EXHAUSTED`",
    ),
    ("Wrong leader refused", "1.0", "subscribe on a follower: `FAILED_PRECONDITION`"),
)

METADATA = _area(
    "Metadata, cursors, groups, activity",
    (
        "Cluster metadata",
        "1.0",
        "broker, streams, partitions, leaders, ISR; unknown stream or group: an entry with an error",
    ),
    (
        "Broker list cache",
        "1.0",
        "stop a server: the list stays until the age has passed",
        "",
        "what has gone is not listed any more, at once: there is no cache",
    ),
    (
        "Partition metadata",
        "1.3",
        "-1 and -1, then rising; unknown: `NOT_FOUND`",
    ),
    (
        "Creation and event times, readonly flag",
        "1.4",
        "0 before, set after publish, pause, readonly; the first stays, the latest moves",
        "",
        "times of pauses and readonly survive restarts",
    ),
    (
        "Load counts per broker",
        "1.7",
        "5 partitions: 5 and 5; paused ones do not count",
        "",
        "counted for each answer, not cached",
    ),
    (
        "Cursors",
        "1.3",
        "none: -1; set 5, fetch 5; set 3, fetch 3; the same after a restart; off: `INTERNAL`",
    ),
    ("Cursor routing", "1.3", "only the right server accepts"),
    (
        "Cursors replication factor",
        "1.8",
        "metadata of `__cursors`: a replica on each server",
    ),
    ("Cursors auto-pause", "1.3", "a short time: `__cursors` is paused; fetch and set still work"),
    (
        "Consumer groups",
        "1.8",
        "two members, 4 partitions: 2 and 2; one leaves: 4",
        "",
        "who is there keeps what balance allows, where the original deals anew",
    ),
    ("Member expiry", "1.8", "stop polling: the epoch changes, the other member has all"),
    ("Coordinator fail-over", "1.8", "kill the coordinator: another one, with a higher epoch"),
    (
        "Fencing",
        "1.8",
        "subscribe with epoch 2, then 1: `FAILED_PRECONDITION`; 3: the first ends with `OK`",
    ),
    (
        "Durable consumers",
        "1.8",
        "a consumer reads from the cursor of its group on and sets it; the next one goes on behind it",
    ),
    ("Activity stream", "1.0", "events of create, pause, resume, delete, in order, from the earliest on"),
    ("Readonly events", "1.3", "op 4, both ways"),
    ("Group events", "1.9", "ops 5 and 6; `expired` after a time-out"),
)

SERVERS = _area(
    "Cluster",
    (
        "Seed bootstrap",
        "1.0",
        "with the flag it elects itself; without it, an empty directory waits for a cluster to join",
    ),
    ("Peer bootstrap", "1.0", "three servers with one list form a cluster"),
    ("Automatic join", "1.0", "a fourth server appears in the metadata"),
    (
        "Two seeds detected",
        "1.0",
        "two seeds of one namespace",
        "",
        "the second seed finds the cluster and joins it, so there are never two",
    ),
    (
        "Namespaces",
        "1.0",
        "two servers with two namespaces at one NATS: metadata and internal streams are disjoint",
    ),
    ("Durable server id", "1.0", "restart with another id: metadata shows the old one"),
    ("Limited quorum", "1.5", "non-voters do not count"),
    ("Metadata leader fail-over", "1.0", "kill it: creating works again"),
    (
        "Partition leader fail-over",
        "1.0",
        "kill it: another one leads, nothing acked is lost",
        "",
        "the broker that decides on metadata notices, not the followers",
    ),
    ("ISR shrink and growth", "1.0", "stop a follower: `isr` shrinks, later grows"),
    ("Log truncation by leader epoch", "1.0", "what an isolated leader had alone is gone"),
    ("Forwarding", "1.0", "create through every server"),
    (
        "Raft tuning",
        "1.0",
        "the settings are accepted; restart after many operations: state is intact",
    ),
)

SEVERAL = _area(
    "Several servers",
    ("Replication factor of several servers", "1.0", "2: two replicas; 4: `INVALID_ARGUMENT`; -1: three"),
    (
        "Minimum ISR of several servers",
        "1.0, per stream 1.3",
        "a follower less: `ALL` gets no ack, `LEADER` does, subscribers see nothing new, until it is back",
    ),
    (
        "Ack policies of several servers",
        "1.0",
        "`ALL` waits for followers that are dead until they are known to be",
    ),
    ("Only committed messages of several servers", "1.0", "what followers lack is not delivered"),
    ("Read from a replica of several servers", "1.0", "subscribe on a follower that is in sync"),
    ("Cluster metadata of several servers", "1.0", "three brokers, the same on each of them"),
    ("Partition metadata of several servers", "1.3", "a follower: `FAILED_PRECONDITION`"),
)

OPERATIONS = _area(
    "Operations and security",
    ("Configuration file, nested or dotted", "1.0", "the same setting in three notations"),
    ("Unknown settings refused", "1.0", "it exits and names the key"),
    (
        "Environment overrides",
        "1.1",
        "`LIFTBRIDGE_PORT` changes the port",
        "",
        "every key, with underscores as well",
    ),
    (
        "CLI flags",
        "1.0, embedded NATS 1.5",
        "each flag, with its alias; both forms of one, unknown ones, wrong values: it does not start",
    ),
    ("Bind and advertised address", "1.0", "the table of first and second choices, through metadata"),
    ("TLS", "1.0", "a client with the authority connects, one without TLS does not"),
    ("Mutual TLS", "1.0", "without a certificate: refused"),
    (
        "ACLs",
        "1.9",
        "each action denied, then granted; a denied message of `PublishAsync` is not stored",
        "",
        "`PERMISSION_DENIED` where the original has `UNKNOWN`; the text is the same",
    ),
    ("ACL reload", "1.9", "edit the policy, SIGHUP: the denied call works", "", "certificates and model too"),
    ("NATS login, NATS TLS", "1.0, 1.2", "a NATS server with users, one with TLS"),
    (
        "Embedded NATS",
        "1.5",
        "a NATS client connects; gufo's helper: `tests/clients/test_gufo_liftbridge.py`",
    ),
    ("Health service", "1.0", "`proto.API` is `SERVING`, so is the empty name; others `NOT_FOUND`"),
    ("Logging controls", "1.0, NATS 1.5", "levels change what is printed"),
    (
        "Graceful shutdown",
        "1.0",
        "SIGINT under load: exit 0, everything acked is there",
        "",
        "SIGTERM too",
    ),
    (
        "Crash recovery",
        "1.0",
        "kill -9: acked messages are there; damaged and missing index files: it starts all the same",
    ),
    ("Telemetry", "26.01.1", "the keys are accepted", "", "nothing is ever sent"),
    ("Data directory", "1.0", "files appear there; a second start finds them"),
    ("Containers, packages, k8s manifests", "various", "deployment aids", "nothing that a server shows"),
    (
        "Benchmark tools",
        "26.01.1",
        "programs that produce and consume",
        "no feature of a server: `liftbridge-bench`, see `benchmarks/README.md`",
    ),
)

ROWS: list[Row] = [
    *STREAMS,
    *RETENTION,
    *PUBLISHING,
    *SUBSCRIBING,
    *METADATA,
    *SERVERS,
    *SEVERAL,
    *OPERATIONS,
]

# Statuses that test_statuses.py has no entry for.
NEEDS_A_CLUSTER: list[str] = [
    "any metadata operation, `no known metadata leader`: `INTERNAL`",
    "Subscribe, `Server not partition leader`: `FAILED_PRECONDITION`",
    "SetCursor and FetchCursor, of a partition that another server leads: `FAILED_PRECONDITION`",
    "FetchPartitionMetadata, of a partition that another server leads: `FAILED_PRECONDITION`",
    "FetchConsumerGroupAssignments, another coordinator: `FAILED_PRECONDITION`",
    "Subscribe with `readISRReplica` and a group, not the leader: `INVALID_ARGUMENT`",
    "any metadata operation, forwarding or commit failed or timed out: `INTERNAL`",
]
