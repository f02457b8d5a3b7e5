"""`liftbridge cursor`, `group` and `events`."""

import json
import signal

import pytest
from calls import create, fresh, publish_many
from cli_support import cli, line_of, on_terminal, started
from harness import Server

from liftbridge.proto import api_pb2


def join(stubs, group, consumer, *streams):
    request = api_pb2.JoinConsumerGroupRequest(groupId=group, consumerId=consumer, streams=streams)
    return stubs.JoinConsumerGroup(request, timeout=30)


def leave(stubs, group, consumer):
    request = api_pb2.LeaveConsumerGroupRequest(groupId=group, consumerId=consumer)
    stubs.LeaveConsumerGroup(request, timeout=30)


def test_cursors(shared, stubs):
    name = create(stubs)
    assert "liftbridge cursor set" in cli(shared, "cursor", "get", "c", name, status=3).err
    assert "is at offset 7" in cli(shared, "cursor", "set", "c", name, "7").out
    assert cli(shared, "cursor", "get", "c", name).out == "7\n"
    assert cli(shared, "cursor", "set", "c", name, "9", "-p", "4", "--json").documents == [
        {"cursor": "c", "stream": name, "partition": 4, "offset": 9}
    ]
    assert cli(shared, "cursor", "get", "c", name, "--partition", "4", "--json").documents[0]["offset"] == 9
    request = api_pb2.FetchCursorRequest(stream=name, cursorId="c", partition=4)
    assert stubs.FetchCursor(request, timeout=30).offset == 9
    assert "no whole number" in cli(shared, "cursor", "set", "c", name, "x", status=2).err


def test_a_group_with_members_and_lag(shared, stubs):
    name, other = create(stubs, partitions=2), create(stubs)
    publish_many(stubs, name, [b"x"] * 10)
    publish_many(stubs, other, [b"x"] * 3)
    group = fresh("group")
    join(stubs, group, "one", name)
    join(stubs, group, "two", name, other)
    join(stubs, group, "three", other)
    leave(stubs, group, "three")
    cli(shared, "cursor", "set", f"__group:{group}", name, "6")
    (described,) = cli(shared, "group", "describe", group, "--json").documents
    assert described["members"] == [
        {"consumer": "one", "streams": [name]},
        {"consumer": "two", "streams": [name, other]},
    ]
    assert described["coordinator"] == shared.server_id
    assert described["epoch"] > 0
    parts = [
        (e["stream"], e["partition"], e["position"], e["end"], e["lag"]) for e in described["partitions"]
    ]
    assert parts == sorted([(name, 0, 6, 9, 3), (name, 1, None, -1, None), (other, 0, None, 2, None)])
    assert described["lag"] == 3
    assert f"{group}\t{name}\t0\t6\t9\t3\n" in cli(shared, "group", "describe", group).out
    row = next(
        line for line in cli(shared, "group", "list").out.splitlines() if line.startswith(f"{group}\t")
    )
    assert row.split("\t")[1:3] == ["2", ",".join(sorted([name, other]))]
    status, shown = on_terminal(shared, "group", "describe", group)
    assert status == 0
    assert "lag          3" in shown
    leave(stubs, group, "one")
    leave(stubs, group, "two")
    assert group not in cli(shared, "group", "list").out
    assert group in cli(shared, "group", "describe", group, status=3).err


def test_one_group_of_several_is_missing(shared, stubs):
    name, group = create(stubs), fresh("group")
    join(stubs, group, "one", name)
    done = cli(shared, "group", "describe", "nobody-here", group, "--json", status=3)
    assert [document["group"] for document in done.documents] == [group]
    assert "nobody-here" in done.err


def test_groups_without_activity_stream_and_cursors(tmp_path):
    with Server(tmp_path / "server", {"cursors.stream.partitions": 0}) as server:
        stubs = server.api()
        create(stubs, "s")
        join(stubs, "g", "one", "s")
        done = cli(server, "group", "list", status=3)
        assert "activity.stream.enabled" in done.err
        assert "group describe" in done.err
        done = cli(server, "group", "describe", "g", "--json")
        assert (done.documents[0]["members"], done.documents[0]["partitions"]) == (None, [])
        assert "cursors.stream.partitions" in done.err
        assert "activity.stream.enabled" in cli(server, "events", status=3).err
        assert "cursors.stream.partitions" in cli(server, "cursor", "get", "c", "s", status=3).err


def test_a_group_is_found_by_its_cursors_when_nobody_tells_its_members(tmp_path):
    with Server(tmp_path / "server", {"cursors.stream.partitions": 1}) as server:
        stubs = server.api()
        create(stubs, "s")
        create(stubs, "unread")
        publish_many(stubs, "s", [b"x"] * 5)
        join(stubs, "g", "one", "s")
        cli(server, "cursor", "set", "__group:g", "s", "1")
        done = cli(server, "group", "describe", "g", "--json")
        assert [(e["stream"], e["lag"]) for e in done.documents[0]["partitions"]] == [("s", 3)]
        assert "members are not known" in done.err


def test_events(shared, stubs):
    name, group = create(stubs, partitions=2), fresh("group")
    cli(shared, "stream", "pause", name, "-p", "1", "--resume-all")
    cli(shared, "stream", "resume", name)
    cli(shared, "stream", "readonly", name)
    join(stubs, group, "one", name)
    leave(stubs, group, "one")
    cli(shared, "stream", "delete", name)
    # The stream is fed behind the operations, so what is waited for is the last of them.
    with started(shared, "events", "--stream", name, "--json") as process:
        documents = []
        while not documents or documents[-1]["op"] != "delete-stream":
            documents.append(json.loads(line_of(process.stdout)))
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    assert [(d["op"], d.get("partitions")) for d in documents] == [
        ("create-stream", [0, 1]),
        ("pause-stream", [1]),
        ("resume-stream", [1]),
        ("set-stream-readonly", [0, 1]),
        ("join-consumer-group", None),
        ("delete-stream", None),
    ]
    assert documents[1]["resume_all"] is True
    assert documents[4]["group_id"] == group
    ids = [document["id"] for document in documents]
    assert ids == sorted(set(ids))
    of_group = cli(shared, "events", "--until-end", "--group", group, "--json").documents
    assert [(d["op"], d["consumer_id"]) for d in of_group] == [
        ("join-consumer-group", "one"),
        ("leave-consumer-group", "one"),
    ]
    assert of_group[1]["expired"] is False
    text = cli(shared, "events", "--until-end", "--op", "pause-stream", "--stream", name).out
    assert text.endswith(f"\tpause-stream\tstream={name} partitions=1 resume_all=true\n")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--op", "explode"), "invalid choice"),
        (("--from", "x"), "is no position"),
        (("--new-only", "--until-end"), "there is none"),
    ],
)
def test_a_wrong_command_line_is_status_2(shared, arguments, text):
    assert text in cli(shared, "events", *arguments, status=2).err
