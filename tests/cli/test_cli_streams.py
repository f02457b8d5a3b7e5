"""`liftbridge stream`: each action, what it prints, and what it says when it cannot."""

import pytest
from calls import create, fresh, partition_metadata, publish, read_all, until
from cli_support import cli, on_terminal

from liftbridge.proto import api_pb2


def metadata(stubs, name):
    request = api_pb2.FetchMetadataRequest(streams=[name])
    (found,) = stubs.FetchMetadata(request, timeout=30).streamMetadata
    return found


def test_create_records_the_name_unless_told_otherwise(shared, stubs):
    name = fresh()
    done = cli(shared, "stream", "create", name)
    assert done.out == f"stream {name} records {name}\n"
    assert metadata(stubs, name).subject == name
    other = fresh()
    done = cli(shared, "stream", "create", other, "--subject", f"{other}.x", "--partitions", "3", "--json")
    assert done.documents == [{"stream": other, "subject": f"{other}.x", "partitions": 3}]
    assert (metadata(stubs, other).subject, len(metadata(stubs, other).partitions)) == (f"{other}.x", 3)


def test_settings_reach_the_server(shared, stubs):
    name = fresh()
    settings = (
        "--optimistic-concurrency-control",
        "--retention-max-messages",
        "5",
        "--segment-max-bytes",
        "4096",
    )
    cli(shared, "stream", "create", name, *settings, "--retention-max-age", "1h30m", "--compression", "lz4")
    cli(shared, "publish", "--stream", name, "a", "--expected-offset", "0")
    refused = cli(shared, "publish", "--stream", name, "b", "--expected-offset", "0", status=1)
    assert "incorrect expected offset" in refused.err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("create", "x", "--partitions", "0"), "'0' is no whole number from 1"),
        (("create", "x", "--partitions", "99999999999"), "no whole number"),
        (("create", "x", "--retention-max-age", "soon"), "'soon' is no duration"),
        (("create", "x", "--part", "2"), "unrecognized arguments: --part"),
        (("create",), "required: name"),
        (("pause", "x", "--partition", "-1"), "no whole number"),
        (("fly",), "invalid choice: 'fly'"),
        ((), "required: ACTION"),
    ],
)
def test_a_wrong_command_line_is_status_2_and_says_where_help_is(arguments, text):
    done = cli(None, "stream", *arguments, status=2)
    assert text in done.err
    assert "--help`" in done.err
    assert done.out == ""


def test_a_name_that_is_taken(shared):
    name = fresh()
    cli(shared, "stream", "create", name)
    done = cli(shared, "stream", "create", name, status=4)
    assert name in done.err
    assert "choose another name" in done.err
    assert done.err.count("\n") == 1


@pytest.mark.parametrize("action", ["info", "delete", "pause", "resume", "readonly"])
def test_a_stream_that_does_not_exist(shared, action):
    done = cli(shared, "stream", action, "nothing-of-the-kind", status=3)
    assert "liftbridge stream list" in done.err
    done = cli(shared, "stream", action, "nothing-of-the-kind", "--json", status=3)
    assert '"exit": 3' in done.err


def test_list_hides_the_streams_of_the_server(shared, stubs):
    name = create(stubs, partitions=2)
    publish(stubs, name, b"x", partition=1)
    rows = [line.split("\t") for line in cli(shared, "stream", "list").out.splitlines()]
    assert [row[:5] for row in rows if row[0] == name] == [[name, name, "2", "1", "open"]]
    assert not [row for row in rows if row[0].startswith("__")]
    everything = cli(shared, "stream", "list", "--all", "--json").documents
    assert {"__cursors", "__activity", name} <= {document["stream"] for document in everything}


def test_info(shared, stubs):
    name = create(stubs, partitions=2)
    publish(stubs, name, b"x", partition=1)
    (document,) = cli(shared, "stream", "info", name, "--json").documents
    assert document["stream"] == name
    assert [entry["newest_offset"] for entry in document["partitions"]] == [-1, 0]
    assert document["partitions"][1]["leader"] == shared.server_id
    assert document["partitions"][1]["last_received"] > document["created"]
    text = cli(shared, "stream", "info", name).out
    assert text.startswith(f"stream   {name}\n")
    assert "\n1\t0\t0\topen\t" in text


def test_pause_and_resume_leave_nothing_in_the_log(shared, stubs):
    name = create(stubs, partitions=3)
    publish(stubs, name, b"x", partition=1)
    assert cli(shared, "stream", "pause", name, "-p", "1", "-p", "2").out == (
        f"partitions 1, 2 of stream {name} are paused\n"
    )
    assert [metadata(stubs, name).partitions[number].paused for number in range(3)] == [False, True, True]
    assert cli(shared, "stream", "resume", name, "-p", "1", "--json").documents == [
        {"stream": name, "partitions": [1], "resumed": [1]}
    ]
    assert [metadata(stubs, name).partitions[number].paused for number in range(3)] == [False, False, True]
    assert cli(shared, "stream", "resume", name).out == f"stream {name} is resumed\n"
    assert "nothing" in cli(shared, "stream", "resume", name).out
    assert not [number for number in range(3) if metadata(stubs, name).partitions[number].paused]
    assert [len(read_all(stubs, name, number)) for number in range(3)] == [0, 1, 0]
    assert "no partition 7" in cli(shared, "stream", "resume", name, "-p", "7", status=3).err


def test_resume_all_and_a_paused_readonly_stream(shared, stubs):
    name = create(stubs, partitions=2)
    cli(shared, "stream", "readonly", name)
    cli(shared, "stream", "pause", name, "--resume-all")
    cli(shared, "stream", "resume", name, "-p", "0")
    assert not any(partition.paused for partition in metadata(stubs, name).partitions.values())


def test_readonly_and_back(shared, stubs):
    name = create(stubs)
    assert cli(shared, "stream", "readonly", name).out == f"stream {name} is read-only\n"
    done = cli(shared, "publish", "--stream", name, "x", status=9)
    assert "readonly --off" in done.err
    assert "readonly" in cli(shared, "stream", "list").out
    assert cli(shared, "stream", "readonly", name, "--off").out == f"stream {name} is writable\n"
    cli(shared, "publish", "--stream", name, "x")
    assert partition_metadata(stubs, name).newestOffset == 0


def test_delete(shared, stubs):
    name = create(stubs)
    assert cli(shared, "stream", "delete", name).out == f"stream {name} is deleted\n"
    assert metadata(stubs, name).error == api_pb2.StreamMetadata.UNKNOWN_STREAM


def test_a_person_is_asked_before_a_stream_is_deleted(shared, stubs):
    name = create(stubs)
    status, shown = on_terminal(shared, "stream", "delete", name, typed=b"no\n")
    assert (status, "Nothing was deleted" in shown) == (1, True)
    assert metadata(stubs, name).error == api_pb2.StreamMetadata.OK
    status, shown = on_terminal(shared, "stream", "delete", name, typed=b"y\n")
    assert (status, "is deleted" in shown) == (0, True)
    other = create(stubs)
    assert on_terminal(shared, "stream", "delete", other, "--yes")[0] == 0


def test_a_table_has_headings_on_a_terminal_and_no_colour_when_none_is_wanted(shared, stubs):
    name = create(stubs)
    status, shown = on_terminal(shared, "stream", "list")
    assert status == 0
    head = next(line for line in shown.splitlines() if "STREAM" in line)
    assert head.startswith("\x1b[1mSTREAM ")
    assert any(line.startswith(f"{name} ") for line in shown.splitlines())
    assert "\x1b" not in on_terminal(shared, "stream", "list", NO_COLOR="1")[1]
    assert "\x1b" not in on_terminal(shared, "stream", "list", TERM="dumb")[1]


def test_top_tells_rates(shared, stubs):
    name = create(stubs)
    publish(stubs, name)
    documents = cli(shared, "top", "--count", "2", "--interval", "0.05", "--json").documents
    mine = [document for document in documents if document["stream"] == name]
    assert [(entry["messages"], entry["rate"], entry["state"]) for entry in mine] == [(1, 0, "open")] * 2
    assert "__cursors" not in {document["stream"] for document in documents}
    rows = cli(shared, "top", "-n", "1", "-i", "0.05", "--sort", "name").out.splitlines()
    names = [row.split("\t")[0] for row in rows]
    assert name in names
    assert names == sorted(names)


def test_top_counts_what_comes_while_it_looks(shared, stubs):
    from cli_support import line_of, started

    name = create(stubs)
    with started(shared, "top", "--interval", "0.05", "--json") as process:

        def rate():
            import json

            publish(stubs, name)
            document = json.loads(line_of(process.stdout))
            return document["stream"] == name and document["rate"] > 0

        until(rate)
        process.send_signal(2)
        assert process.wait(30) == 0


def test_top_gives_the_terminal_back(shared):
    status, shown = on_terminal(shared, "top", "--count", "2", "--interval", "0.05")
    assert status == 0
    assert shown.startswith("\x1b[?1049h")
    assert shown.endswith("\x1b[?1049l")
    assert "messages a second" in shown
