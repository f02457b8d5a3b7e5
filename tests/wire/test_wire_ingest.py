"""From NATS bytes to stored records and acks: parser, envelopes, refusals, in every split of the bytes."""

import uuid

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from liftbridge._log import BatchBuilder, crc32c
from liftbridge._wire import (
    AckRouter,
    CollectingSink,
    NatsParser,
    PartitionSink,
    ProtocolError,
    RouteTable,
    decode_ack_envelope,
    encode_publish_envelope,
    message_prefix,
)
from liftbridge.log import Log, LogOptions
from liftbridge.proto import api_pb2

NOW = 1_790_000_000_000_000_000
VECTOR = bytes.fromhex("B90E43B4000800001201 6B1A0176".replace(" ", ""))
VECTOR_CRC = bytes.fromhex("B90E43B4000C0100DF5918B812016B1A0176")


class Receiver:
    """A partition reduced to its sink and its log."""

    def __init__(self, directory, **options):
        self.log = Log.open(directory, stream_id=uuid.uuid4(), partition=0, options=LogOptions())
        settings = {
            "stream": b"orders",
            "base_subject": b"foo",
            "builder": BatchBuilder(),
            "next_offset": 0,
            "last_timestamp": 0,
            "max_message_bytes": 1 << 20,
            "batch_max_messages": 1024,
            "check_offsets": False,
        }
        self.sink = PartitionSink(self, **(settings | options))
        self.parser = NatsParser(chunk=4096)
        self.parser.attach(1, self.sink)
        self.control = []

    def on_messages(self):
        if self.sink.builder.count:
            self.log.append(self.sink.builder)
            self.sink.appended(self.log.next_offset)

    def receive(self, data):
        self.parser.feed(data)
        while True:
            step = self.parser.parse(NOW)
            if isinstance(step, bytes):
                self.control.append(step)
                continue
            for owner in self.parser.take_touched():
                owner.on_messages()
            if step is None:
                return

    def messages(self):
        return read_all(self.log)

    def acks(self):
        """Every ack there is to send, as (inbox, Ack)."""
        sent = self.sink.refusals()
        sent += self.sink.leader_acks.release(self.log.next_offset, NOW + 5)
        sent += self.sink.commit_acks.release(self.log.next_offset, NOW + 5)
        return published_acks(sent)


def read_all(log):
    messages = []
    offset = 0
    while offset < log.next_offset:
        data, offset = log.read_frames(offset, log.next_offset, message_prefix(b"orders", 0))
        position = 0
        while position < len(data):
            assert data[position] == 0
            length = int.from_bytes(data[position + 1 : position + 5], "big")
            messages.append(api_pb2.Message.FromString(data[position + 5 : position + 5 + length]))
            position += 5 + length
    return messages


def published_acks(data):
    acks = []
    while data:
        line, _, rest = data.partition(b"\r\n")
        verb, inbox, size = line.split(b" ")
        assert verb == b"PUB"
        payload, data = rest[: int(size)], rest[int(size) :]
        assert data[:2] == b"\r\n"
        data = data[2:]
        acks.append((inbox.decode(), api_pb2.Ack.FromString(decode_ack_envelope(payload))))
    return acks


def msg(payload, subject=b"foo", reply=b"", sid=1):
    line = b" ".join(part for part in (b"MSG", subject, b"%d" % sid, reply, b"%d" % len(payload)) if part)
    return line + b"\r\n" + payload + b"\r\n"


def envelope(**fields):
    return encode_publish_envelope(api_pb2.Message(**fields).SerializeToString())


@pytest.fixture
def receiver(tmp_path):
    return Receiver(tmp_path / "log")


def test_plain_message_keeps_its_bytes_subject_and_reply(receiver):
    receiver.receive(msg(b"hello", subject=b"foo.bar", reply=b"_INBOX.1"))
    (message,) = receiver.messages()
    assert message.value == b"hello"
    assert message.subject == "foo.bar"
    assert message.replySubject == "_INBOX.1"
    assert dict(message.headers) == {"subject": b"foo.bar", "reply": b"_INBOX.1"}
    assert (message.offset, message.stream, message.partition) == (0, "orders", 0)
    assert message.timestamp == NOW
    assert receiver.acks() == []


def test_headers_of_nats_are_not_part_of_the_value(receiver):
    headers = b"NATS/1.0\r\nA: b\r\n\r\n"
    total = len(headers) + 5
    receiver.receive(b"HMSG foo 1 %d %d\r\n%shello\r\n" % (len(headers), total, headers))
    receiver.receive(b"HMSG foo 1 answers %d %d\r\n%shello\r\n" % (len(headers), total, headers))
    first, second = receiver.messages()
    assert first.value == second.value == b"hello"
    assert (first.replySubject, second.replySubject) == ("", "answers")


@pytest.mark.parametrize("data", [VECTOR, VECTOR_CRC])
def test_envelope_vectors(receiver, data):
    receiver.receive(msg(data))
    (message,) = receiver.messages()
    assert (message.key, message.value) == (b"k", b"v")


@pytest.mark.parametrize(
    "data",
    [
        VECTOR_CRC[:8] + b"\0\0\0\0" + VECTOR_CRC[12:],  # wrong CRC
        VECTOR[:7] + b"\x01" + VECTOR[8:],  # an ack
        VECTOR[:4] + b"\x01" + VECTOR[5:],  # another version
        VECTOR[:5] + b"\xff" + VECTOR[6:],  # header length beyond the data
        VECTOR[:5] + b"\x07" + VECTOR[6:],  # header length inside the header
        VECTOR[:5] + b"\x08\x01" + VECTOR[7:],  # CRC flag without room for one
        VECTOR[:7],  # too short
        VECTOR + b"\x0a",  # not a protobuf
        VECTOR[:8] + b"\x52\x02\xff\xfe",  # an inbox that is not UTF-8
        VECTOR[:8] + b"\x4a\x04\x0a\x02\xff\xfe",  # a header name that is not UTF-8
        b"",
    ],
)
def test_what_is_no_envelope_is_stored_as_it_is(receiver, data):
    receiver.receive(msg(data))
    (message,) = receiver.messages()
    assert message.value == data
    assert message.key == b""
    assert receiver.acks() == []


def test_an_envelope_of_nothing_is_an_empty_message(receiver):
    receiver.receive(msg(VECTOR[:8]))
    (message,) = receiver.messages()
    assert (message.key, message.value) == (b"", b"")


def test_ack_says_where_the_message_is(receiver):
    receiver.receive(msg(b"before"))
    receiver.receive(
        msg(envelope(value=b"v", ackInbox="a.b", correlationId="c1", ackPolicy="ALL"), subject=b"foo.x")
    )
    ((inbox, ack),) = receiver.acks()
    assert inbox == "a.b"
    assert ack == api_pb2.Ack(
        stream="orders",
        partitionSubject="foo",
        msgSubject="foo.x",
        offset=1,
        ackInbox="a.b",
        correlationId="c1",
        ackPolicy="ALL",
        receptionTimestamp=NOW,
        commitTimestamp=NOW + 5,
    )


def test_acks_wait_for_their_offset(receiver):
    for number in range(4):
        receiver.receive(msg(envelope(value=b"v", ackInbox=f"inbox.{number}")))
    assert len(receiver.sink.leader_acks) == 4
    assert receiver.sink.leader_acks.release(0, NOW) == b""
    assert [inbox for inbox, _ in published_acks(receiver.sink.leader_acks.release(2, NOW))] == [
        "inbox.0",
        "inbox.1",
    ]
    assert [ack.offset for _, ack in published_acks(receiver.sink.leader_acks.release(9, NOW))] == [2, 3]
    assert len(receiver.sink.leader_acks) == receiver.sink.leader_acks.size == 0


@pytest.mark.parametrize("policy", ["LEADER", "ALL", "NONE", 7])
def test_only_policies_that_ask_get_an_ack(receiver, policy):
    receiver.receive(msg(envelope(value=b"v", ackInbox="a", ackPolicy=policy)))
    assert len(receiver.acks()) == (policy in ("LEADER", "ALL"))
    assert len(receiver.messages()) == 1


@pytest.mark.parametrize(
    "inbox",
    ["a b", "a\r\nPUB x 0\r\n", "a\tb", ".a", "a.", "a..b", "a" * 2049, "\x7f"],
)
def test_an_inbox_that_is_no_subject_gets_no_ack_and_does_no_harm(receiver, inbox):
    receiver.receive(msg(envelope(value=b"v", ackInbox=inbox)))
    assert receiver.acks() == []
    assert receiver.sink.acks_unsendable == 1
    assert len(receiver.messages()) == 1


def test_an_ack_larger_than_nats_carries_is_not_sent(receiver):
    receiver.receive(msg(envelope(value=b"v", ackInbox="a", correlationId="x" * 1_048_550)))
    assert receiver.acks() == []
    assert receiver.sink.acks_unsendable == 1


def test_a_message_that_is_too_large_is_refused(tmp_path):
    receiver = Receiver(tmp_path / "log", max_message_bytes=100)
    big = envelope(value=b"v" * 200, ackInbox="a", correlationId="c", ackPolicy="NONE")
    receiver.receive(msg(b"x" * 101) + msg(big) + msg(b"x" * 100))
    assert [len(message.value) for message in receiver.messages()] == [100]
    ((_, ack),) = receiver.acks()
    assert (ack.ackError, ack.offset, ack.commitTimestamp) == (api_pb2.Ack.TOO_LARGE, 0, 0)
    assert ack.correlationId == "c"
    assert receiver.sink.messages_refused == 2


def test_expected_offsets_are_enforced_inside_a_batch(tmp_path):
    receiver = Receiver(tmp_path / "log", check_offsets=True)
    expected = [0, 0, 1, -1, 5, 3]
    receiver.receive(
        b"".join(
            msg(envelope(offset=offset, value=b"%d" % index, ackInbox="a", correlationId=str(index)))
            for index, offset in enumerate(expected)
        )
    )
    results = {ack.correlationId: (ack.ackError, ack.offset) for _, ack in receiver.acks()}
    wrong = (api_pb2.Ack.INCORRECT_OFFSET, 0)
    assert results == {"0": (0, 0), "1": wrong, "2": (0, 1), "3": (0, 2), "4": wrong, "5": (0, 3)}
    assert [message.value for message in receiver.messages()] == [b"0", b"2", b"3", b"5"]


def test_a_readonly_partition_refuses(receiver):
    receiver.sink.readonly = True
    receiver.receive(msg(b"plain") + msg(envelope(value=b"v", ackInbox="a")))
    ((_, ack),) = receiver.acks()
    assert ack.ackError == api_pb2.Ack.UNKNOWN
    assert receiver.messages() == []


def test_user_headers_are_kept_but_not_the_servers_own_names(receiver):
    receiver.receive(msg(envelope(value=b"v", headers={"a": b"1", "subject": b"forged", "reply": b"forged"})))
    (message,) = receiver.messages()
    assert dict(message.headers) == {"a": b"1", "subject": b"foo", "reply": b""}


def test_a_header_name_beyond_the_limit_is_refused(receiver):
    receiver.receive(msg(envelope(value=b"v", ackInbox="a", headers={"n" * 32768: b""})))
    receiver.receive(msg(envelope(value=b"v", ackInbox="a", headers={"n" * 32767: b""})))
    assert [ack.ackError for _, ack in receiver.acks()] == [api_pb2.Ack.UNKNOWN, api_pb2.Ack.OK]
    assert len(receiver.messages()) == 1


@pytest.mark.parametrize("subject, reply", [(b"foo.\xff", b""), (b"foo", b"\xc0\x80")])
def test_a_subject_that_no_client_could_decode_is_refused(receiver, subject, reply):
    receiver.receive(msg(b"x", subject=subject, reply=reply))
    assert receiver.messages() == []
    assert receiver.sink.messages_undecodable == receiver.sink.messages_refused == 1


def test_a_failed_append_refuses_every_ack_of_the_batch(receiver):
    receiver.receive(msg(envelope(value=b"v", ackInbox="kept", correlationId="k")))
    receiver.parser.feed(
        msg(envelope(value=b"v", ackInbox="a", correlationId="1"))
        + msg(envelope(value=b"v", ackInbox="b", correlationId="2", ackPolicy="ALL"))
    )
    assert receiver.parser.parse(NOW) is None
    receiver.parser.take_touched()
    receiver.sink.refuse(NOW)
    refused = published_acks(receiver.sink.refusals())
    assert [(inbox, ack.ackError, ack.offset, ack.correlationId) for inbox, ack in refused] == [
        ("a", api_pb2.Ack.UNKNOWN, 0, "1"),
        ("b", api_pb2.Ack.UNKNOWN, 0, "2"),
    ]
    receiver.receive(msg(b"next"))
    assert [(inbox, ack.offset) for inbox, ack in receiver.acks()] == [("kept", 0)]
    assert [message.value for message in receiver.messages()] == [b"v", b"next"]


@pytest.fixture
def router():
    return AckRouter(None, b"ns.ack.x")


def open_call(router, **options):
    return router.open(object(), RouteTable(), 1 << 20, **options)


@pytest.mark.parametrize("policy", ["LEADER", "ALL"])
def test_an_ack_for_a_call_of_this_server_does_not_leave_it(tmp_path, router, policy):
    receiver = Receiver(tmp_path, router=router)
    call = open_call(router, first_only=True)
    inbox = call.inbox.decode()
    receiver.receive(msg(envelope(value=b"v", ackInbox=inbox, correlationId="c", ackPolicy=policy)))
    queue = receiver.sink.leader_acks if policy == "LEADER" else receiver.sink.commit_acks
    assert queue.release(0, NOW) == b""
    assert not router.news, "the ack must wait for its offset"
    assert queue.release(1, NOW + 5) == b""
    assert router.news
    assert router.take_waiting() == [call.owner]
    ack = api_pb2.Ack.FromString(call.take_first_ack())
    assert ack == api_pb2.Ack(
        stream="orders", partitionSubject="foo", msgSubject="foo", ackInbox=inbox, correlationId="c",
        ackPolicy=policy, receptionTimestamp=NOW, commitTimestamp=NOW + 5,
    )  # fmt: skip
    assert len(queue) == queue.size == 0


def test_acks_for_others_leave_in_their_order_beside_those_for_this_server(tmp_path, router):
    receiver = Receiver(tmp_path, router=router)
    call = open_call(router)
    inboxes = ["in.0", call.inbox.decode(), "in.1", "in.2", call.inbox.decode(), "ns.ack.y.0.1"]
    data = b"".join(msg(envelope(value=b"v", ackInbox=inbox)) for inbox in inboxes)
    receiver.receive(data)
    assert published_acks(receiver.sink.leader_acks.release(3, NOW + 5)) == [
        (inbox, api_pb2.Ack(
            stream="orders", partitionSubject="foo", msgSubject="foo", ackInbox=inbox, offset=offset,
            receptionTimestamp=NOW, commitTimestamp=NOW + 5,
        ))
        for offset, inbox in ((0, "in.0"), (2, "in.1"))
    ]  # fmt: skip
    assert router.acks_received == 1
    receiver.receive(data)
    assert [inbox for inbox, _ in receiver.acks()] == [
        "in.2",
        "ns.ack.y.0.1",
        "in.0",
        "in.1",
        "in.2",
        "ns.ack.y.0.1",
    ]
    assert router.acks_received == 4
    assert router.acks_malformed == router.acks_late == 0


def test_a_late_ack_for_a_call_of_this_server_is_dropped_and_counted(tmp_path, router):
    receiver = Receiver(tmp_path, router=router)
    call = open_call(router)
    receiver.receive(msg(envelope(value=b"v", ackInbox=call.inbox.decode())))
    receiver.receive(msg(envelope(value=b"v", ackInbox="ns.ack.x.not-a-call")))
    router.close(call)
    assert receiver.acks() == []
    assert (router.acks_late, router.acks_malformed) == (1, 1)
    assert not router.news


def test_a_refused_append_tells_calls_of_this_server_as_well(tmp_path, router):
    receiver = Receiver(tmp_path, router=router)
    call = open_call(router)
    receiver.parser.feed(msg(envelope(value=b"v", ackInbox=call.inbox.decode())))
    receiver.parser.parse(NOW)
    receiver.sink.refuse(NOW)
    [(inbox, ack)] = receiver.acks()
    assert (inbox, ack.ackError) == (call.inbox.decode(), api_pb2.Ack.UNKNOWN)


def test_a_sink_that_gave_its_memory_back_goes_on(receiver):
    headers = {"h": b"1"}
    receiver.receive(msg(envelope(value=b"1", headers=headers, ackInbox="a")))
    receiver.receive(msg(envelope(value=b"2", headers=headers, ackInbox="b", ackPolicy="ALL")))
    receiver.sink.shrink()
    assert [inbox for inbox, _ in receiver.acks()] == ["a", "b"], "acks that wait are kept"
    receiver.sink.shrink()
    for number in range(20):
        receiver.receive(msg(envelope(value=b"3", headers=headers, ackInbox=f"c.{number}")))
    assert [ack.offset for _, ack in receiver.acks()] == list(range(2, 22))
    assert [message.value for message in receiver.messages()] == [b"1", b"2"] + [b"3"] * 20
    receiver.parser.feed(msg(envelope(value=b"4", headers=headers)))
    assert receiver.parser.parse(NOW) is None
    receiver.sink.shrink()
    receiver.on_messages()
    assert receiver.messages()[-1].value == b"4", "so are records that wait"


def test_a_full_batch_is_appended_before_the_next_begins(tmp_path):
    receiver = Receiver(tmp_path / "log", batch_max_messages=3)
    appended = []
    append = receiver.on_messages
    receiver.on_messages = lambda: (appended.append(receiver.sink.builder.count), append())
    receiver.receive(b"".join(msg(b"%d" % number) for number in range(8)))
    assert appended == [3, 3, 2]
    assert [message.value for message in receiver.messages()] == [b"%d" % number for number in range(8)]


def test_control_lines_are_handed_out_in_order(receiver):
    receiver.receive(b"PING\r\n" + msg(b"1") + b"-ERR 'Slow Consumer'\r\n+OK\r\nINFO {}\r\nPONG\r\n")
    assert receiver.control == [b"PING", b"-ERR 'Slow Consumer'", b"+OK", b"INFO {}", b"PONG"]
    assert len(receiver.messages()) == 1


def test_messages_of_an_unknown_subscription_are_counted(receiver):
    receiver.receive(msg(b"x", sid=2) + msg(b"y", sid=900000))
    assert receiver.parser.unknown_subscription == 2
    assert receiver.messages() == []


@pytest.mark.parametrize(
    "data",
    [
        b"MSG foo 1\r\n",
        b"MSG foo 1 2 3 4\r\n",
        b"MSG foo one 5\r\nhello\r\n",
        b"MSG foo 1 -5\r\n",
        b"MSG foo 1 5\r\nhelloXX",
        b"MSG foo 1 99999999999\r\n",
        b"HMSG foo 1 9 5\r\n",
        b"\n",
        b"MSG foo 1 5\nhello\n",
        b"x" * 70000,
    ],
)
def test_what_is_not_nats_is_an_error(receiver, data):
    with pytest.raises(ProtocolError):
        receiver.receive(data)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=300).map(lambda value: msg(value)),
            st.builds(
                lambda key, value, inbox: msg(envelope(key=key, value=value, ackInbox=inbox)),
                st.binary(max_size=20),
                st.binary(max_size=6000),
                st.text(alphabet="abc.", max_size=6),
            ),
            st.just(b"PING\r\n"),
        ),
        max_size=12,
    ),
    st.lists(st.integers(1, 5000), max_size=30),
)
def test_every_split_of_the_bytes_gives_the_same_log(tmp_path_factory, parts, cuts):
    whole = b"".join(parts)
    at_once = Receiver(tmp_path_factory.mktemp("whole"))
    at_once.receive(whole)
    in_pieces = Receiver(tmp_path_factory.mktemp("pieces"))
    position = 0
    for cut in [*cuts, len(whole)]:
        in_pieces.receive(whole[position : position + cut])
        position += cut
    assert in_pieces.messages() == at_once.messages()
    assert in_pieces.acks() == at_once.acks()
    assert in_pieces.control == at_once.control
    at_once.log.close()
    in_pieces.log.close()


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=80), st.booleans())
def test_garbage_in_an_envelope_is_stored_or_decoded_as_protobuf_does(tmp_path_factory, body, with_crc):
    if with_crc:
        data = b"\xb9\x0e\x43\xb4\x00\x0c\x01\x00" + crc32c(body).to_bytes(4, "big") + body
    else:
        data = b"\xb9\x0e\x43\xb4\x00\x08\x00\x00" + body
    receiver = Receiver(tmp_path_factory.mktemp("garbage"))
    receiver.receive(msg(data))
    (message,) = receiver.messages()
    try:
        expected = api_pb2.Message.FromString(body)
    except Exception:
        assert message.value == data
    else:
        assert (message.key, message.value) in ((expected.key, expected.value), (b"", data))
    receiver.log.close()


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_garbage_from_nats_is_an_error_or_control(data):
    parser = NatsParser(chunk=4096)
    parser.attach(1, CollectingSink(None))
    parser.feed(data)
    try:
        while parser.parse(NOW) is not None:
            pass
    except ProtocolError:
        pass


# -- how long messages live ----------------------------------------------------------------------------------


def hmsg(payload, header, subject=b"foo"):
    block = b"NATS/1.0\r\n" + header + b"\r\n\r\n"
    line = b"HMSG %s 1 %d %d\r\n" % (subject, len(block), len(block) + len(payload))
    return line + block + payload + b"\r\n"


def count_at(receiver, time):
    """How many messages a reader sees at a time."""
    frames, _ = receiver.log._view.active.read_frames(0, receiver.log.next_offset, b"", now=time)
    count = 0
    while frames:
        count += 1
        frames = frames[5 + int.from_bytes(frames[1:5], "big") :]
    return count


TTLS = [
    (b"1", 10**9),
    (b"90", 90 * 10**9),
    (b"250ms", 250 * 10**6),
    (b"1h30m", 5400 * 10**9),
    (b"1.5s", 1500 * 10**6),
    (b" 10s ", 10 * 10**9),
    (b"5us", 5000),
    (b"7ns", 7),
]


@pytest.mark.parametrize("how", ["envelope", "header"])
@pytest.mark.parametrize(("text", "ttl"), TTLS)
def test_a_message_lives_as_long_as_it_says(tmp_path, how, text, ttl):
    receiver = Receiver(tmp_path)
    if how == "envelope":
        receiver.receive(msg(envelope(value=b"v", headers={"Nats-TTL": text, "a": b"b"})))
    else:
        receiver.receive(hmsg(b"v", b"a: b\r\nNats-TTL: " + text))
    assert count_at(receiver, NOW + ttl - 1) == 1
    assert count_at(receiver, NOW + ttl) == 0
    assert receiver.log._view.active.attributes == 64


@pytest.mark.parametrize(
    "header", [b"Nats-TTL: never", b"nats-ttl:never", b"Nats-TTLs: 5s", b"x: Nats-TTL: 5s"]
)
def test_messages_that_live_for_ever(tmp_path, header):
    receiver = Receiver(tmp_path)
    receiver.receive(hmsg(b"v", header))
    assert count_at(receiver, 2**63 - 1) == 1
    assert receiver.log._view.active.attributes == 0


@pytest.mark.parametrize(
    "text",
    [b"", b"0", b"-1", b"soon", b"5 minutes", b"1d", b"10s5", b"5s ns", b"99999999999999999999", b"3000000h"],
)
def test_a_message_with_a_ttl_that_is_none_is_refused(tmp_path, text):
    receiver = Receiver(tmp_path)
    receiver.receive(msg(envelope(value=b"v", headers={"Nats-TTL": text}, ackInbox="acks")))
    receiver.receive(hmsg(b"v", b"Nats-TTL: " + text))
    assert receiver.log.next_offset == 0
    assert receiver.sink.messages_refused == 2
    ((inbox, ack),) = receiver.acks()
    assert (inbox, ack.ackError) == ("acks", api_pb2.Ack.UNKNOWN)


@settings(max_examples=200)
@given(st.binary(max_size=40))
def test_no_ttl_header_runs_wild(data):
    parser = NatsParser()
    sink = CollectingSink("owner")
    parser.attach(1, sink)
    parser.feed(hmsg(b"v", b"Nats-TTL:" + data))
    parser.parse(NOW)
    assert [value for _, _, value in sink.take()] == [b"v"]


def test_a_key_without_a_value_is_a_tombstone(tmp_path):
    receiver = Receiver(tmp_path)
    receiver.receive(msg(envelope(key=b"k", value=b"v")) + msg(envelope()))
    assert receiver.log._view.active.attributes == 0
    receiver.receive(msg(envelope(key=b"k")))
    assert receiver.log._view.active.attributes == 32
    assert [message.value for message in receiver.messages()] == [b"v", b"", b""]
