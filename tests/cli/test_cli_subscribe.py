"""`liftbridge subscribe`: positions, filters, forms, and going on after the server was away."""

import json
import signal
import subprocess
import sys
from datetime import datetime, timedelta, timezone

import pytest
from calls import create, publish, publish_many
from cli_support import CONFIG, cli, environment, line_of, on_terminal, started
from harness import Server


@pytest.fixture(scope="module")
def numbers(shared, stubs):
    """A stream of ten messages."""
    name = create(stubs)
    publish_many(stubs, name, [b"%d" % number for number in range(10)])
    return name


def values(server, *arguments):
    return cli(server, "subscribe", *arguments, "--raw").out.split()


def iso(nanoseconds):
    moment = datetime(1970, 1, 1, tzinfo=timezone.utc) + timedelta(microseconds=nanoseconds // 1000)
    return moment.isoformat().replace("+00:00", "Z")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("--until-end", range(10)),
        ("--from 7 --until-end", [7, 8, 9]),
        ("--from 2 --to 4", [2, 3, 4]),
        ("--from latest --to latest", [9]),
        ("--from earliest --count 3", [0, 1, 2]),
        ("--from 100 --until-end", []),
        ("--reverse", range(9, -1, -1)),
        ("--reverse --count 2", [9, 8]),
        ("--reverse --from 5 --to 3", [5, 4, 3]),
    ],
)
def test_positions(shared, numbers, arguments, expected):
    assert values(shared, numbers, *arguments.split()) == [str(number) for number in expected]


@pytest.mark.parametrize(
    ("arguments", "count"),
    [
        (("--from", "1h ago", "--until-end"), 10),
        (("--from", "1h ago", "--to", "now"), 10),
        (("--from", "2h ago", "--to", "1h ago"), 0),
        (("--to", "1h ago"), 0),
        (("--from", "now", "--until-end"), 0),
        (("--reverse", "--to", "1h ago"), 10),
        (("--reverse", "--to", "now"), 0),
        (("--from", "1w2d3h4m5s6ms ago", "--to", "latest"), 10),
    ],
)
def test_relative_times(shared, numbers, arguments, count):
    assert len(values(shared, numbers, *arguments)) == count


def test_exact_times(shared, stubs):
    """A bound between two messages; their times may be equal to the microsecond that a time has here."""
    name = create(stubs)
    times = []
    while len(times) < 2 or times[-1] // 1000 == times[-2] // 1000:
        times.append(publish(stubs, name, b"%d" % len(times)).receptionTimestamp)
    last = len(times) - 1
    bound = iso(times[-1] // 1000 * 1000)
    assert values(shared, name, "--from", bound, "--until-end") == [str(last)]
    assert values(shared, name, "--reverse", "--to", bound) == [str(last)]
    assert str(last) not in values(shared, name, "--to", iso(times[-1] - 1000))


def test_a_stream_with_nothing_in_it(shared, stubs):
    name = create(stubs)
    assert values(shared, name, "--until-end") == []
    assert values(shared, name, "--reverse") == []
    assert values(shared, name, "--to", "now") == []


def test_all_partitions_and_the_partition_in_front(shared, stubs):
    name = create(stubs, partitions=3)
    for number in range(3):
        publish(stubs, name, b"v%d" % number, partition=number)
    lines = sorted(cli(shared, "subscribe", name, "--all-partitions", "--until-end").out.splitlines())
    assert lines == [
        f"0\t0\t{name}\tv0",
        f"1\t0\t{name}.1\tv1",
        f"2\t0\t{name}.2\tv2",
    ]
    assert sorted(values(shared, name, "-p", "1", "-p", "2", "--until-end")) == ["v1", "v2"]
    assert "no partition 9" in cli(shared, "subscribe", name, "-p", "9", status=3).err


def test_filters(shared, stubs):
    name = create(stubs)
    publish(stubs, name, b"a", key=b"k1", headers={"h": b"1", "only": b""})
    publish(stubs, name, b"b", key=b"k2", headers={"h": b"2"})
    publish(stubs, name, b"c", key=b"\xff", headers={"h": b"1"})
    publish(stubs, name, b"d")

    def found(*arguments):
        return "".join(values(shared, name, "--until-end", *arguments))

    assert found("--key", "k1") == "a"
    assert found("--key", "k1", "--key", "k2") == "ab"
    assert found("--key", "") == "d"
    assert found("--key-match", "^k") == "ab"
    assert found("--header", "h=1") == "ac"
    assert found("--header", "h") == "abc"
    assert found("--header", "h=1", "--header", "only") == "a"
    assert found("--header", "h=1", "--key", "k2") == ""
    assert found("--header", f"subject={name}") == "abcd"
    assert found("--key-match", "k", "--count", "1") == "a"


def test_forms(shared, stubs):
    name = create(stubs)
    publish(stubs, name, b"x\ty\n\x1b[31m", key=b"k", headers={"h": b"v"})
    publish(stubs, name, b"\xff\0")
    short = cli(shared, "subscribe", name, "--until-end").out
    assert short == f"0\t{name}\tx\\ty\\n\\x1b[31m\n1\t{name}\t\\xff\\x00\n"
    rows = [line.split("\t") for line in cli(shared, "subscribe", name, "--until-end", "-v").out.splitlines()]
    assert [(row[0], row[1], *row[3:]) for row in rows] == [
        ("0", "0", name, "k", "x\\ty\\n\\x1b[31m", "h=v"),
        ("0", "1", name, "-", "\\xff\\x00", "-"),
    ]
    first, second = cli(shared, "subscribe", name, "--until-end", "--json").documents
    assert (first["value"], first["key"], first["headers"]) == ("x\ty\n\x1b[31m", "k", {"h": "v"})
    assert (second["value_base64"], second["offset"]) == ("/wA=", 1)
    assert "key" not in second
    assert cli(shared, "subscribe", name, "--until-end", "--null").out == "x\ty\n\x1b[31m\0\udcff\0\0"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--from", "yesterday-ish"), "is no position"),
        (("--from", "5 minutes ago"), "is no position"),
        (("--to", "99999999999999999999"), "greater than any offset"),
        (("--from", "5", "--to", "3"), "--to lies before --from"),
        (("--from", "1h ago", "--to", "2h ago"), "--to lies before --from"),
        (("--to", "2999-01-01T00:00:00Z"), "in the future"),
        (("--new-only", "--until-end"), "there is none"),
        (("--reverse", "--to", "latest"), "--reverse"),
        (("--reverse", "--follow"), "nothing to --follow"),
        (("--reverse", "--from", "3", "--to", "5"), "--to lies before --from"),
        (("--follow", "--until-end"), "not allowed with"),
        (("--raw", "--null"), "not allowed with"),
        (("--key-match", "("), "--key-match"),
        (("--count", "0"), "no whole number"),
    ],
)
def test_a_wrong_command_line_is_status_2(shared, numbers, arguments, text):
    assert text in cli(shared, "subscribe", numbers, *arguments, status=2).err


def test_a_stream_that_does_not_exist(shared):
    assert "liftbridge stream list" in cli(shared, "subscribe", "nothing-of-the-kind", status=3).err


def test_it_waits_for_more_until_ctrl_c(shared, stubs):
    name = create(stubs)
    publish(stubs, name, b"old")
    with started(shared, "subscribe", name) as process:
        assert line_of(process.stdout) == f"0\t{name}\told\n"
        publish(stubs, name, b"new")
        assert line_of(process.stdout) == f"1\t{name}\tnew\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        assert process.stderr.read() == b""


def test_ctrl_c_before_the_end_is_an_interruption(shared, stubs):
    name = create(stubs)
    publish(stubs, name, b"old")
    with started(shared, "subscribe", name, "--count", "2") as process:
        line_of(process.stdout)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130


def test_a_reader_that_goes_ends_it_quietly(shared, stubs):
    name = create(stubs)
    publish(stubs, name, b"first")
    script = f"{sys.executable} -m liftbridge.cli.main subscribe {name} | head -n 1; echo ${{PIPESTATUS[0]}}"
    ran = subprocess.Popen(
        ["bash", "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(LIFTBRIDGE_CLIENT_SERVER=shared.address),
    )
    try:
        assert ran.stdout.readline().endswith(b"\tfirst\n")
        while ran.poll() is None:  # it notices when it has something to print
            publish(stubs, name, b"more")
        out, err = ran.communicate(timeout=30)
        assert (out, err) == (b"0\n", b"")
    finally:
        ran.kill()
        ran.communicate()


def test_paused_and_read_only_partitions(shared, stubs):
    name = create(stubs)
    publish(stubs, name, b"x")
    cli(shared, "stream", "pause", name)
    assert "stream resume" in cli(shared, "subscribe", name, status=9).err
    assert values(shared, name, "--resume", "--count", "1") == ["x"]
    cli(shared, "stream", "readonly", name)
    assert values(shared, name) == ["x"], "nothing comes any more, so it ends"


def test_a_stream_that_is_deleted_while_it_is_read(shared, stubs):
    name = create(stubs)
    publish(stubs, name, b"x")
    with started(shared, "subscribe", name) as process:
        line_of(process.stdout)
        cli(shared, "stream", "delete", name)
        assert process.wait(30) == 3
        assert b"was deleted" in process.stderr.read()


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_follow_goes_on_after_a_restart(tmp_path, how):
    with Server(tmp_path / "server", CONFIG) as server:
        name = create(server.api())
        publish(server.api(), name, b"before")
        with started(server, "subscribe", name, "--follow", "--json") as process:
            assert json.loads(line_of(process.stdout))["value"] == "before"
            if how == "stop":
                assert server.stop() == 0
            else:
                server.kill()
            assert "waiting for one" in line_of(process.stderr)
            server.start()
            assert "serves it again" in line_of(process.stderr)
            publish(server.api(), name, b"after")
            document = json.loads(line_of(process.stdout))
            assert (document["offset"], document["value"]) == (1, "after")
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0


def test_progress_when_the_output_is_a_file(shared, numbers, tmp_path):
    out = tmp_path / "out"
    script = f"import os,sys; sys.stdout = open({str(out)!r}, 'w'); os.dup2(sys.stdout.fileno(), 1); "
    script += f"sys.argv = ['liftbridge', 'subscribe', {numbers!r}, '--from', '0', '--to', '9', '--raw']; "
    script += "from liftbridge.cli.main import main; sys.exit(main())"
    import cli_support

    command, cli_support.COMMAND[:] = list(cli_support.COMMAND), [sys.executable, "-c", script]
    try:
        status, shown = on_terminal(shared)
    finally:
        cli_support.COMMAND[:] = command
    assert (status, out.read_bytes()) == (0, b"".join(b"%d\n" % number for number in range(10)))
    assert "reading" in shown
    assert shown.endswith("\x1b[K")
