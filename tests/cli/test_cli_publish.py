"""`liftbridge publish`: one message, files and pipes of any size, and what it says when messages fail."""

import base64
import json
import os
import signal
import subprocess
import threading
import time

import pytest
from calls import NatsClient, create, fresh, partition_metadata, publish, read, read_all, until
from cli_support import NOBODY, cli, line_of, on_terminal, started

MANY = 100_000


def test_a_message_to_a_subject(shared, stubs):
    name = create(stubs, subject=(subject := fresh("subject") + ".*"))
    subject = subject.replace("*", "one")
    assert cli(shared, "publish", subject, "first", "--key", "k", "--header", "a=b=c").out == ""
    (document,) = cli(shared, "publish", subject, "second", "--json").documents
    assert (document["stream"], document["offset"], document["subject"]) == (name, 1, subject)
    first, second = read_all(stubs, name)
    assert (first.value, first.key, first.headers["a"]) == (b"first", b"k", b"b=c")
    assert (second.value, second.key) == (b"second", b"")


def test_a_person_is_told_where_it_is_stored(shared, stubs):
    name = create(stubs)
    assert on_terminal(shared, "publish", name, "x") == (0, f"stored in {name} at offset 0\n")


def test_a_subject_that_nobody_records(shared):
    done = cli(shared, "publish", "nobody.listens", "x", "--timeout", "0.3", status=7)
    assert "no stream records the subject" in done.err
    assert cli(shared, "publish", "nobody.listens", "x", "--ack", "none").err == ""


def test_a_stream_that_does_not_exist(shared):
    done = cli(shared, "publish", "--stream", "nothing-of-the-kind", "x", status=3)
    assert "liftbridge stream list" in done.err


def test_partitions_and_partitioners(shared, stubs):
    name = create(stubs, partitions=3)
    cli(shared, "publish", "--stream", name, "x", "--partition", "2")
    assert read_all(stubs, name, 2)[0].value == b"x"
    cli(shared, "publish", "--stream", name, "--partitioner", "round-robin", stdin=b"a\nb\nc\n")
    assert sorted(m.value for number in range(3) for m in read_all(stubs, name, number)) == [
        b"a",
        b"b",
        b"c",
        b"x",
    ]
    cli(
        shared,
        "publish",
        "--stream",
        name,
        "--partitioner",
        "key",
        "--key-separator",
        ":",
        stdin=b"k:1\nk:2\n",
    )
    keyed = [[m.value for m in read_all(stubs, name, number) if m.key == b"k"] for number in range(3)]
    assert sorted(keyed) == [[], [], [b"1", b"2"]]
    assert cli(shared, "publish", "--stream", name, "x", "-p", "3", status=3).err


def test_a_hundred_thousand_lines_from_a_file(shared, stubs, tmp_path):
    name = create(stubs)
    lines = b"".join(b"message %d\n" % number for number in range(MANY))
    file = tmp_path / "lines"
    file.write_bytes(lines)
    done = cli(shared, "publish", "--stream", name, "--file", str(file))
    assert (done.out, done.err) == ("", "")
    assert partition_metadata(stubs, name).newestOffset == MANY - 1
    assert cli(shared, "subscribe", name, "--until-end", "--raw").out.encode() == lines


def test_a_hundred_thousand_lines_from_a_pipe_with_their_acks(shared, stubs):
    name = create(stubs)
    lines = b"".join(b"%d\n" % number for number in range(MANY))
    documents = cli(shared, "publish", "--stream", name, "--json", stdin=lines).documents
    assert [document["offset"] for document in documents] == list(range(MANY))


def test_a_pipe_is_read_no_faster_than_messages_are_stored(shared, stubs):
    """With NATS frozen nothing is stored, so whoever writes into the pipe must come to wait."""
    name = create(stubs)
    with started(shared, "publish", "--stream", name, "--timeout", "25", stdin=subprocess.PIPE) as process:
        os.set_blocking(process.stdin.fileno(), False)
        written = 0
        os.kill(shared.nats_pid, signal.SIGSTOP)
        try:
            line = b"x" * 1023 + b"\n"
            stuck = 0
            poll = threading.Event()
            while stuck < 40:
                try:
                    written += os.write(process.stdin.fileno(), line * 64)
                    stuck = 0
                except BlockingIOError:
                    stuck += 1
                    poll.wait(0.05)
                assert written < 256 << 20, "it reads on and on"
        finally:
            os.kill(shared.nats_pid, signal.SIGCONT)
        assert written > 1 << 20
        os.set_blocking(process.stdin.fileno(), True)
        process.stdin.write(b"x" * (1023 - written % 1024) + b"\n" if written % 1024 else b"")
        process.stdin.close()
        assert process.wait(60) == 0, process.stderr.read()
    assert partition_metadata(stubs, name).newestOffset + 1 == -(-written // 1024)


def test_lines_are_sent_as_they_are_typed(shared, stubs):
    name = create(stubs)
    with started(shared, "publish", "--stream", name, "--json", stdin=subprocess.PIPE) as process:
        for number in range(3):
            process.stdin.write(b"line %d\n" % number)
            process.stdin.flush()
            assert json.loads(line_of(process.stdout))["offset"] == number
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130


def test_a_failure_is_told_while_the_input_is_still_open(shared, stubs):
    name = create(stubs)
    with started(shared, "publish", "--stream", name, "--json", stdin=subprocess.PIPE) as process:
        process.stdin.write(b"one\n")
        process.stdin.flush()
        line_of(process.stdout)
        cli(shared, "stream", "readonly", name)
        process.stdin.write(b"two\n")
        process.stdin.flush()
        assert process.wait(30) == 9
        assert json.loads(process.stderr.read())["error"].startswith("message 2: ")


def test_a_message_whose_ack_does_not_come_is_perhaps_stored(shared, stubs):
    name = create(stubs)
    os.kill(shared.nats_pid, signal.SIGSTOP)
    try:
        done = cli(shared, "publish", "--stream", name, "--timeout", "3", stdin=b"a\nb\n", status=8)
        assert "(0 stored, 2 perhaps stored)" in done.err
        assert "read the end of the stream before sending it again" in done.err
    finally:
        os.kill(shared.nats_pid, signal.SIGCONT)
    until(lambda: partition_metadata(stubs, name).newestOffset == 1)


def test_what_failed_is_counted(shared, stubs):
    name = create(stubs)
    big = b"x" * (2 << 20)
    done = cli(shared, "publish", "--stream", name, stdin=b"a\nb\n" + big + b"\n", status=1)
    assert "message 3: " in done.err
    assert "(2 stored, 1 not stored)" in done.err
    done = cli(shared, "publish", name, stdin=b"c\n" + big + b"\nd\n", status=1)
    assert "message 2: " in done.err
    assert [m.value for m in read_all(stubs, name)] == [b"a", b"b", b"c"]


@pytest.mark.parametrize(
    ("form", "data", "values"),
    [
        ("lines", b"a\n\nb", [b"a", b"", b"b"]),
        ("lines", b"", []),
        ("lines", b"\xff\r\n", [b"\xff\r"]),
        ("null", b"a\nb\0c\0", [b"a\nb", b"c"]),
        ("whole", b"a\nb\n", [b"a\nb\n"]),
        ("whole", b"", [b""]),
    ],
)
def test_forms_of_input(shared, stubs, form, data, values):
    name = create(stubs)
    cli(shared, "publish", "--stream", name, "--input", form, "--file", "-", stdin=data)
    assert [m.value for m in read_all(stubs, name)] == values


def test_a_line_that_arrives_in_many_chunks(shared, stubs):
    name = create(stubs)
    long = b"y" * 700_000
    cli(shared, "publish", "--stream", name, stdin=b"a\n" + long + b"\nb\n")
    assert [m.value for m in read_all(stubs, name)] == [b"a", long, b"b"]


def test_what_subscribe_prints_as_json_can_be_published(shared, stubs):
    name, copy = create(stubs), create(stubs)
    binary = bytes(range(256))
    publish(stubs, name, b"plain", key=b"k", headers={"h": b"v"})
    publish(stubs, name, binary, key=binary, headers={"b": binary})
    publish(stubs, name, "tab\tnewline\nümlaut\x1b[2J".encode())
    printed = cli(shared, "subscribe", name, "--until-end", "--json").out
    cli(shared, "publish", "--stream", copy, "--input", "json", stdin=printed.encode())

    def content(stream):
        return [
            (m.value, m.key, {k: v for k, v in m.headers.items() if k not in ("subject", "reply")})
            for m in read_all(stubs, stream)
        ]

    assert content(copy) == content(name)
    assert content(copy)[1] == (binary, binary, {"b": binary})


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("{", "docs/cli.md"),
        ("[1]", "no JSON object"),
        ("{}", "there is no value"),
        ('{"value": 1}', "value must be a text"),
        ('{"value_base64": "?"}', "no base64"),
        ('{"value": "x", "colour": 1}', "no field 'colour'"),
        ('{"value": "x", "partition": -1}', "no partition"),
        ('{"value": "x", "headers": {"a": 1}}', "header 'a'"),
        ('{"value": "x", "headers": []}', "headers must be an object"),
        ('{"value": "\\ud800"}', "docs/cli.md"),
        ("[" * 100_000, "docs/cli.md"),
    ],
)
def test_json_that_is_no_message(shared, stubs, line, text):
    name = create(stubs)
    encoded = base64.b64encode(b"fine").decode()
    good = json.dumps({"value_base64": encoded})
    done = cli(
        shared, "publish", "--stream", name, "--input", "json", stdin=f"{good}\n{line}\n".encode(), status=2
    )
    assert "line 2" in done.err
    assert text in done.err
    assert "(1 stored)" in done.err
    assert [m.value for m in read_all(stubs, name)] == [b"fine"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("s", "x", "--partition", "1"), "--partition goes with --stream"),
        (("s", "x", "--partitioner", "key"), "--partitioner goes with --stream"),
        (("s", "x", "--file", "f"), "VALUE"),
        (("s", "--stream", "--expected-offset", "1"), "one message"),
        (("s", "--stream", "-p", "1", "--partitioner", "key"), "nothing for a --partitioner"),
        (("s", "--rate", "0"), "--rate 0"),
        (("s", "--rate", "nan"), "--rate nan"),
        (("s", "--key-separator", ""), "--key-separator"),
        (("s", "x", "--nats", "nats://u:secret@h"), "--nats-creds"),
        (("s", "x", "--nats", "nats://h", "--key", "k"), "neither stream nor key"),
        (("s", "--file", "/nonexistent/f"), "/nonexistent/f"),
        (("s", "--file", "/"), "Is a directory"),
        (("s", "x", "--header", "novalue"), "NAME=VALUE"),
        (("s", "--ack", "some"), "invalid choice"),
        ((), "required: name"),
    ],
)
def test_a_wrong_command_line_is_status_2(shared, arguments, text):
    assert text in cli(shared, "publish", *arguments, status=2).err


def test_a_line_without_a_key_ends_it(shared, stubs):
    name = create(stubs)
    done = cli(shared, "publish", "--stream", name, "--key-separator", "=", stdin=b"a=1\nb\n", status=2)
    assert "line 2" in done.err


def test_a_rate_is_kept(shared, stubs):
    """Message n is sent n / rate after the start or later, whatever the machine does besides."""
    name = create(stubs)
    began = time.time_ns()
    cli(shared, "publish", "--stream", name, "--rate", "20", stdin=b"x\n" * 41)
    stored = read_all(stubs, name)
    assert len(stored) == 41
    assert stored[-1].timestamp - began >= 2_000_000_000


def test_acks(shared, stubs):
    name = create(stubs)
    cli(shared, "publish", "--stream", name, "x", "--ack", "all")
    cli(shared, "publish", "--stream", name, "--ack", "none", stdin=b"y\nz\n")
    assert [m.value for m in read(stubs, name, 3)] == [b"x", b"y", b"z"]


def test_plain_nats_messages(shared, stubs):
    name = create(stubs)
    with NatsClient(shared.nats_url) as client:
        heard = client.subscribe(name)
        cli(None, "publish", name, "plain", "--nats", shared.nats_url)
        assert heard.get(timeout=30).data == b"plain"
    assert read(stubs, name, 1)[0].value == b"plain"
    done = cli(None, "publish", name, "--nats", shared.nats_url, "--json", stdin=b"a\nb\n")
    assert done.documents == [{"subject": name, "sent": 2}]
    assert [m.value for m in read(stubs, name, 3)] == [b"plain", b"a", b"b"]
    assert (
        "is this the NATS server?"
        in cli(None, "publish", name, "x", "--nats", f"nats://{NOBODY}", status=5).err
    )


def test_progress_on_a_terminal(shared, stubs, tmp_path):
    name = create(stubs)
    file = tmp_path / "lines"
    file.write_bytes(b"x\n" * 5000)
    status, shown = on_terminal(shared, "publish", "--stream", name, "--file", str(file))
    assert status == 0
    assert "] 100%" in shown
    assert shown.endswith("5000 stored\n")
    until(lambda: partition_metadata(stubs, name).newestOffset == 4999)
