"""The metrics of a server, read from counters that its parts keep, when somebody asks.

Nothing is counted for them on the data path that would not be counted anyway. Series of partitions are the
only ones whose number grows with use; beyond `http.metrics.max.partitions` there are only their sums.
"""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Callable, Iterable

import trio

from liftbridge import __version__
from liftbridge.broker.observed import Observed
from liftbridge.broker.partition import Partition, State
from liftbridge.log.flusher import LATENCY_BOUNDS
from liftbridge.obs import process, stalls
from liftbridge.obs.exposition import Family, Kind

_PREFIX = "liftbridge_"


class Metrics:
    """Collects them."""

    def __init__(self, observed: Observed, loop: stalls.Stalls) -> None:
        self._observed = observed
        self._loop = loop

    def collect(self) -> list[Family]:
        """All metrics as they are now."""
        self._found: list[Family] = []
        info = self._family("build_info", "gauge", "1; which version of what this is.")
        info.add(1, version=__version__, python=platform.python_version(), trio=trio.__version__)
        self._one("ready", "gauge", "1 when clients can be sent here.", not self._observed.unready())
        self._loop_families()
        self._nats()
        self._grpc()
        self._metadata()
        self._disk()
        self._partitions()
        return [*self._found, *process.families()]

    def _family(self, name: str, kind: Kind, text: str) -> Family:
        family = Family(_PREFIX + name, kind, text)
        self._found.append(family)
        return family

    def _one(self, name: str, kind: Kind, text: str, value: float) -> None:
        self._family(name, kind, text).add(value)

    def _loop_families(self) -> None:
        loop = self._loop
        text = "How much later than asked for a task of the event loop got its turn, seconds."
        delays = self._family("loop_delay_seconds", "histogram", text)
        delays.add_histogram(stalls.BOUNDS, loop.counts, loop.total)
        self._one("loop_delay_max_seconds", "gauge", "The longest of them since the start.", loop.longest)

    def _nats(self) -> None:
        connected = self._family("nats_connected", "gauge", "1 when a connection to NATS is up.")
        reconnects = self._family("nats_reconnects_total", "counter", "Connections to NATS that were lost.")
        text = "Pieces that were not taken as too much waits for the connection."
        refused = self._family("nats_refused_sends_total", "counter", text)
        pending = self._family("nats_pending_bytes", "gauge", "Bytes that wait to be sent to NATS.")
        received = self._family("nats_messages_received_total", "counter", "Messages received from NATS.")
        for connection in self._observed.connections:
            purpose = connection.purpose
            connected.add(connection.connected, purpose=purpose)
            reconnects.add(connection.reconnects, purpose=purpose)
            refused.add(connection.refused_sends, purpose=purpose)
            pending.add(connection.pending_bytes, purpose=purpose)
            received.add(connection.parser.messages, purpose=purpose)
        router = self._observed.publisher.router
        text = "Acks for calls of this server, by what they were."
        acks = self._family("acks_received_total", "counter", text)
        acks.add(router.acks_received, kind="all")
        acks.add(router.acks_late, kind="late")
        acks.add(router.acks_malformed, kind="malformed")

    def _grpc(self) -> None:
        server = self._observed.server
        self._one("grpc_connections", "gauge", "Connections of clients.", server.connections)
        text = "Connections that were refused, as there were too many."
        self._one("grpc_connections_refused_total", "counter", text, server.refused)
        text = "Bytes of requests that no handler has taken yet."
        self._one("grpc_request_bytes", "gauge", text, server.bytes_held)
        text = "Bytes of responses that wait for sockets."
        self._one("grpc_response_bytes", "gauge", text, server.bytes_unsent)

    def _metadata(self) -> None:
        controller = self._observed.controller
        state = controller.state
        for name, text, value in (
            ("metadata_applied_index", "Index of the newest operation applied.", state.applied_index),
            ("metadata_term", "Term of the consensus on metadata.", controller.term),
            ("metadata_leader", "1 when this server decides on metadata.", controller.is_leader),
            ("metadata_failed", "1 when no metadata can be changed.", bool(controller.failure)),
            ("streams", "Streams.", len(state.streams)),
        ):
            self._one(name, "gauge", text, value)
        self._one("consumer_groups", "gauge", "Consumer groups.", len(state.groups))

    def _disk(self) -> None:
        space, flusher = self._observed.space, self._observed.flusher
        self._one("disk_free_bytes", "gauge", "Bytes free on the disk of data.dir.", space.free)
        text = "1 when messages are refused because of streams.disk.min.free."
        self._one("disk_low", "gauge", text, space.low)
        syncs = self._family("sync_seconds", "histogram", "Time that a sync of a log took, seconds.")
        syncs.add_histogram(LATENCY_BOUNDS, flusher.counts, flusher.seconds)

    # -- partitions ------------------------------------------------------------------------------------

    def _partitions(self) -> None:
        partitions = list(self._observed.streams)
        states = self._family("partitions", "gauge", "Partitions of this server, by state.")
        counted = Counter(partition.state for partition in partitions)
        for state in State:
            states.add(counted[state], state=state.value)
        most = self._observed.config.http.metrics_max_partitions
        told: Iterable[Partition] = partitions if len(partitions) <= most else ()
        sums: dict[str, float] = {}
        for name, kind, text, value_of in _OF_PARTITION:
            family = self._family(f"partition_{name}", kind, text)
            for partition in told:
                labels = {"stream": partition.stream.name, "partition": str(partition.model.id)}
                family.add(value_of(partition), **labels)
            if name in _SUMMED:
                sums[name] = sum(value_of(partition) for partition in partitions)
        for name, kind, text, _ in _OF_PARTITION:
            if name in sums:
                self._one(name, kind, f"{text} All partitions together.", sums[name])


def _received(partition: Partition) -> float:
    return 0 if partition.sink is None else partition.sink.messages_received


def _received_bytes(partition: Partition) -> float:
    return 0 if partition.sink is None else partition.sink.bytes_received


def _refused(partition: Partition) -> float:
    return 0 if partition.sink is None else partition.sink.messages_refused


_OF_PARTITION: tuple[tuple[str, Kind, str, Callable[[Partition], float]], ...] = (
    ("messages_received_total", "counter", "Messages received since it was opened.", _received),
    ("bytes_received_total", "counter", "Bytes of these messages.", _received_bytes),
    ("messages_refused_total", "counter", "Messages that were not stored, as the sender was told.", _refused),
    ("high_watermark", "gauge", "Offset of the last committed message.", lambda found: found.high_watermark),
    ("oldest_offset", "gauge", "Offset of the first message.", lambda found: found.oldest_offset),
    ("written_offset", "gauge", "Offset of the last message written.", lambda found: found.written_offset),
    ("synced_offset", "gauge", "Offset of the last message on the disk.", lambda found: found.synced_offset),
    (
        "unsynced_bytes",
        "gauge",
        "Bytes written since the last sync began.",
        lambda found: found.unsynced_bytes,
    ),
    ("subscribers", "gauge", "Subscriptions that are open.", lambda found: found.subscribers),
)
_SUMMED = {
    "messages_received_total",
    "bytes_received_total",
    "messages_refused_total",
    "unsynced_bytes",
    "subscribers",
}
