"""The NATS protocol as the server's connections read it: messages, messages with headers, control lines.

Checked: every way of cutting the bytes gives the same messages and lines in the same order, and the same end;
they are those that a parser written in ten lines of Python finds; the receive buffer stays below what one
message and one control line need.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from fuzz_targets.script import Script, pieces, written
from liftbridge._wire import CollectingSink, NatsParser, ProtocolError

INSTRUMENTED = ()
MAX_LENGTH = 2048
WORDS = (
    b"MSG ", b"HMSG ", b"\r\n", b" 1 ", b" 2 ", b"PING\r\n", b"-ERR 'x'\r\n", b"+OK\r\n", b"INFO {}\r\n",
    b"NATS/1.0\r\n", b"\t", b"Nats-TTL: 1s\r\n", b"MSG a 1 0\r\n\r\n", b"HMSG a 1 0 0\r\n\r\n",
)  # fmt: skip

NOW = 4_000_000_000 * 10**9
CHUNK = 64
MAX_PAYLOAD = 1024
CONTROL_LINE = 65536
ROOM = 4096  # that the parser keeps free behind what it holds

_NUMBER = rb"(\d{1,18})"
_BLANKS = rb"[ \t]+"


def seeds() -> Iterator[bytes]:
    """A bit of each: what NATS servers send."""
    yield written(b"\3\10\1", 0) + b"INFO {}\r\nMSG foo.bar 1 5\r\nhello\r\nPING\r\n"
    yield written(b"", 1) + b"MSG foo 2 _INBOX.1 2\r\nhi\r\nMSG foo 7 0\r\n\r\n+OK\r\n"
    yield written(b"\40", 0) + b"HMSG foo 1 re.ply 12 17\r\nNATS/1.0\r\n\r\nhello\r\n-ERR 'Slow Consumer'\r\n"
    yield written(b"\0\0\0\0", 1) + b"HMSG foo 1 26 28\r\nNATS/1.0\r\nNats-TTL: 1s\r\n\r\nhi\r\n"


Event = tuple[str, bytes, bytes, bytes]


class Receiver:
    """A connection reduced to its parser, with two subscriptions; notes all that comes of it."""

    def __init__(self) -> None:
        self.parser = NatsParser(chunk=CHUNK, max_payload=MAX_PAYLOAD)
        self.sinks = {1: CollectingSink("1"), 2: CollectingSink("2")}
        for sid, sink in self.sinks.items():
            self.parser.attach(sid, sink)
        self.events: list[Event] = []

    def receive(self, data: bytes, into_buffer: bool) -> bool:
        """Take what one read brings; False when it is not the NATS protocol."""
        while data:
            if into_buffer:
                with self.parser.buffer() as room:
                    count = min(len(room), len(data))
                    assert count, "no room to read into"
                    room[:count] = data[:count]
                    size = len(room)
                self.parser.received(count)
                assert size <= 2 * (CONTROL_LINE + MAX_PAYLOAD + ROOM), "the receive buffer grows"
            else:
                self.parser.feed(data)
                count = len(data)
            data = data[count:]
            if not self._parse():
                return False
        return True

    def _parse(self) -> bool:
        while True:
            try:
                step = self.parser.parse(NOW)
            except ProtocolError as error:
                assert len(str(error)) < 500, "the error repeats all of it"
                self._take()
                return False
            self._take()
            if step is None:
                return True
            if isinstance(step, bytes):
                self.events.append(("line", step, b"", b""))

    def _take(self) -> None:
        for owner in self.parser.take_touched():
            self.events += [(owner, *message) for message in self.sinks[int(owner)].take()]


def reference(data: bytes) -> tuple[list[Event], bool]:
    """What is in the bytes, and whether they are the NATS protocol as far as they go."""
    events: list[Event] = []
    while (end := data.find(b"\n")) >= 0:
        line, rest = data[: end + 1], data[end + 1 :]
        if len(line) < 3 or not line.endswith(b"\r\n"):
            return events, False
        found = re.match(rb"(?:MSG|(HMSG))[ \t](.*)\r\n\Z", line, re.DOTALL)
        if found is None or len(line) <= (5 if found[1] else 4):
            events.append(("line", line[:-2], b"", b""))
            data = rest
            continue
        tokens = re.split(_BLANKS, found[2].strip(b" \t"))
        numbers = 2 if found[1] else 1
        sizes = tokens[len(tokens) - numbers :]
        if len(tokens) - numbers not in (2, 3) or not all(
            re.fullmatch(_NUMBER, token) for token in [tokens[1], *sizes]
        ):
            return events, False
        size, header = int(sizes[-1]), int(sizes[0]) if found[1] else 0
        if size > MAX_PAYLOAD or header > size:
            return events, False
        if len(rest) < size + 2:
            return events, True
        if rest[size : size + 2] != b"\r\n":
            return events, False
        if int(tokens[1]) in (1, 2):
            reply = tokens[2] if len(tokens) - numbers == 3 else b""
            events.append((str(int(tokens[1])), tokens[0], reply, rest[header:size]))
        data = rest[size + 2 :]
    return events, True


def run(data: bytes) -> None:
    script = Script(data)
    cuts = script.string()
    into_buffer = bool(script.number() & 1)
    wire = script.rest()
    whole, cut = Receiver(), Receiver()
    whole_ends_well = whole.receive(wire, False)
    cut_ends_well = all(cut.receive(piece, into_buffer) for piece in pieces(wire, cuts))
    assert by_sink(cut.events) == by_sink(whole.events), "other cuts, other messages"
    assert cut_ends_well == whole_ends_well, "other cuts, another end"
    assert cut.parser.messages == whole.parser.messages
    events, well = reference(wire)
    assert by_sink(events) == by_sink(whole.events)
    assert whole_ends_well == well


def by_sink(events: list[Event]) -> dict[str, list[Event]]:
    """Messages of one subscription are in order; those of several come in bulk, each in its turn."""
    found: dict[str, list[Event]] = {}
    for event in events:
        found.setdefault(event[0], []).append(event)
    return found
