"""`liftbridge log verify` and `liftbridge log dump`, the real commands on real logs."""

import base64
import json
import os
import pty
import subprocess
import sys
import uuid

import pytest
from harness import Server
from log_helpers import STREAM, Record, batch, indexes, segments

from liftbridge._log import crc32c
from liftbridge.log import Log, LogOptions
from liftbridge.proto import api_pb2

COMMAND = [sys.executable, "-m", "liftbridge.cli.main", "log"]
OTHER = uuid.UUID("11111111-9d0e-4c8b-8f0c-1f2e3d4c5b6a")
START = 1_714_557_600_000_000_000
AT = "2024-05-01T10:00:0"


def build(data, stream=STREAM, partition=3, close=True):
    """Four segments of a batch of three orders each, in a data directory; returns the partition's."""
    directory = data / "streams" / str(stream) / str(partition)
    log = Log.open(
        directory, stream_id=stream, partition=partition, options=LogOptions(segment_max_bytes=300)
    )
    for n in range(4):
        records = [
            Record(b"order %d" % (3 * n + i), START + n * 10**9 + i, subject=b"orders.new", key=b"k%d" % i)
            for i in range(3)
        ]
        log.append(batch(records), epoch=1 + n // 2)
    log.sync()
    if close:
        log.close()
    return directory


def run(*arguments, status=0):
    """Run the command; returns what it prints, and checks that only errors go to standard error."""
    done = subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=60)
    assert done.returncode == status, done.stdout + done.stderr
    assert (done.stderr == "") == (status != 2), done.stderr
    return done.stderr if status == 2 else done.stdout


def documents(text):
    return [json.loads(line) for line in text.splitlines()]


def flip(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


# ---- verify ----


def test_a_good_log_is_summed_up(tmp_path):
    directory = build(tmp_path)
    size = sum(path.stat().st_size - 4096 for path in segments(directory))
    assert run("verify", tmp_path).splitlines() == [
        f"{directory}: well",
        f"  offsets 0 to 11; 12 messages in 4 batches, 4 segments, {size / 1024:.1f} KiB",
        "  leader epochs: 1 from offset 0, 2 from offset 6",
        "1 partition verified, none with damage",
    ]
    assert run("verify", "--quiet", tmp_path) == ""


@pytest.mark.parametrize(
    ("place", "found"),
    [
        ("", [(OTHER, 0), (STREAM, 2), (STREAM, 10)]),
        ("streams", [(OTHER, 0), (STREAM, 2), (STREAM, 10)]),
        (f"streams/{STREAM}", [(STREAM, 2), (STREAM, 10)]),
        (f"streams/{STREAM}/10", [(STREAM, 10)]),
    ],
)
def test_partitions_are_found_from_every_place(tmp_path, place, found):
    for stream, partition in ((STREAM, 2), (STREAM, 10), (OTHER, 0)):
        build(tmp_path, stream, partition)
    *partitions, total = documents(run("verify", "--json", tmp_path / place))
    assert [(uuid.UUID(p["stream"]), p["partition"]) for p in partitions] == found
    assert total == {"type": "total", "partitions": len(found), "damaged": 0}


def test_damage_is_told_with_file_place_offsets_and_what_to_do(tmp_path):
    directory = build(tmp_path)
    build(tmp_path, OTHER, 0)
    path = segments(directory)[1]
    size = path.stat().st_size
    flip(path, 4200)
    lines = run("verify", tmp_path, status=1).splitlines()
    at = lines.index(f"{directory}: DAMAGED")
    assert lines[at + 3] == (
        f"  damage [hole] {path.name}, bytes 4096 to {size - 1}, offsets 3 to 5: its checksum does not match"
    )
    assert lines[at + 4].startswith("    -> restore the file")
    assert lines[-1] == "2 partitions verified, 1 with damage"
    assert len(run("verify", "--quiet", tmp_path, status=1).splitlines()) == 3
    found = {p["stream"]: p for p in documents(run("verify", "--json", tmp_path, status=1)) if "stream" in p}
    assert not found[str(OTHER)]["damaged"]
    (finding,) = found[str(STREAM)]["findings"]
    told = {key: finding[key] for key in ("kind", "damage", "file", "position", "end")}
    assert told == {"kind": "hole", "damage": True, "file": str(path), "position": 4096, "end": size}
    assert (finding["first_offset"], finding["next_offset"]) == (3, 6)
    assert found[str(STREAM)]["records"] == 9


def test_a_torn_tail_is_told_and_is_well(tmp_path):
    directory = build(tmp_path, close=False)
    with segments(directory)[-1].open("ab") as file:
        file.write(b"torn")
    text = run("verify", tmp_path)
    assert f"{directory}: well" in text
    assert "note [torn-tail]" in text and "offsets from 12 on" in text
    assert run("verify", "--quiet", tmp_path) == ""


def test_a_lost_file_is_told(tmp_path):
    directory = build(tmp_path)
    segments(directory)[-1].unlink()
    text = run("verify", directory, status=1)
    assert "damage [missing]" in text and "offsets 9 to 11" in text


def test_nothing_is_changed(tmp_path):
    """Not even where a start of the server would clean up."""
    directory = build(tmp_path, close=False)
    with segments(directory)[-1].open("ab") as file:
        file.write(b"torn")
    (directory / "00000000000000000000.index.tmp").write_bytes(b"left")

    def state():
        found = {path: path.stat() for path in tmp_path.rglob("*")}
        return {path: (stat.st_mtime_ns, stat.st_size, stat.st_ino) for path, stat in found.items()}

    before = state()
    run("verify", tmp_path)
    run("dump", tmp_path, "--index")
    assert state() == before
    for path in tmp_path.rglob("*"):
        path.chmod(0o500 if path.is_dir() else 0o400)
    run("verify", tmp_path)
    for path in tmp_path.rglob("*"):
        path.chmod(0o700)


def test_a_progress_bar_on_a_terminal_only(tmp_path):
    build(tmp_path)
    ours, theirs = pty.openpty()
    done = subprocess.run([*COMMAND, "verify", tmp_path], stdout=subprocess.PIPE, stderr=theirs, timeout=60)
    os.close(theirs)
    shown = os.read(ours, 10000).decode()
    os.close(ours)
    assert "1 of 1  [#" in shown and "100%" in shown
    assert shown.endswith("\r\x1b[K"), "the bar is taken away"
    assert b"#" not in done.stdout and done.returncode == 0


# ---- dump ----


def test_a_dump_for_people(tmp_path):
    directory = build(tmp_path)
    lines = run("dump", directory).splitlines()
    assert lines[0] == f"{directory}:"
    assert lines[1].startswith(f"segment {segments(directory)[0].name}: format ")
    assert f"stream {STREAM} partition 3" in lines[1]
    assert lines[2].startswith("  batch at byte 4096: offsets 0 to 2, 3 messages, epoch 1, ")
    assert lines[2].endswith("checksum good, chain unchecked")
    assert lines[3] == f'         0  {AT}0.000000000Z  orders.new  key="k0"  "order 0"'
    assert lines[6] == f"index {indexes(directory)[0].name}: valid, 3 messages up to offset 2, byte " + str(
        segments(directory)[0].stat().st_size
    )
    assert sum("  orders.new  " in line for line in lines) == 12


def test_json_says_everything(tmp_path):
    log = Log.open(tmp_path, stream_id=STREAM, partition=3, options=LogOptions())
    binary = bytes(range(256))
    headers = {"trace": b"\xff\0"}
    log.append(batch([Record(binary, START, reply=b"_INBOX.1", key="ö".encode(), headers=headers)]), epoch=4)
    log.append(batch([Record(None, START + 1, key=b""), Record(b"", START + 2)]), epoch=4)
    log.close()
    found = documents(run("dump", "--json", tmp_path))
    assert [document["type"] for document in found] == [
        *("segment", "batch", "record", "batch", "record", "record", "index"),
    ]
    one, two, three = (document for document in found if document["type"] == "record")
    assert (one["offset"], one["timestamp"], one["expiry"]) == (0, START, None)
    assert one["subject"] == {"base64": base64.b64encode(b"orders").decode(), "text": "orders"}
    assert one["reply"]["text"] == "_INBOX.1"
    assert one["key"] == {"base64": base64.b64encode("ö".encode()).decode(), "text": "ö"}
    assert base64.b64decode(one["value"]["base64"]) == binary
    assert "text" not in one["value"]
    assert one["headers"] == [{"name": "trace", "value": {"base64": base64.b64encode(b"\xff\0").decode()}}]
    empty = {"base64": "", "text": ""}
    assert (two["key"], two["value"]) == (empty, None)
    assert (three["key"], three["value"]) == (None, empty)
    batches = [document for document in found if document["type"] == "batch"]
    assert [(b["base_offset"], b["next_offset"], b["count"], b["epoch"]) for b in batches] == [
        (0, 1, 1, 4),
        (1, 3, 2, 4),
    ]
    assert [(b["checksum"], b["chain"], b["decoded"]) for b in batches] == [
        ("good", "unchecked", True),
        ("good", "good", True),
    ]
    assert batches[1]["prev_crc"] == batches[0]["crc"]


def test_a_part_of_a_log(tmp_path):
    directory = build(tmp_path)

    def offsets(*options):
        found = documents(run("dump", "--json", directory, *options))
        return [document["offset"] for document in found if document["type"] == "record"]

    assert offsets() == list(range(12))
    assert offsets("--offset", 4, "--count", 3) == [4, 5, 6]
    assert offsets("--offset", 11) == [11]
    assert offsets("--offset", 99) == []
    assert offsets("--count", 0) == []
    found = documents(run("dump", "--json", directory, "--batches-only", "--count", 2, "--offset", 3))
    assert [d["base_offset"] for d in found if d["type"] == "batch"] == [3, 6]
    assert not [d for d in found if d["type"] == "record"]


def test_values_can_be_left_out(tmp_path):
    directory = build(tmp_path)
    text = run("dump", directory, "--no-values")
    assert f"         0  {AT}0.000000000Z  orders.new\n" in text
    assert '"order' not in text and "k0" not in text
    records = [d for d in documents(run("dump", directory, "--json", "--no-values")) if d["type"] == "record"]
    assert len(records) == 12 and not any("value" in record or "key" in record for record in records)


def test_index_entries(tmp_path):
    directory = build(tmp_path)
    found = documents(run("dump", "--json", "--index", directory))
    entries = [document for document in found if document["type"] == "index-entry"]
    assert [(entry["offset"], entry["position"]) for entry in entries] == [(n, 4096) for n in (0, 3, 6, 9)]
    assert entries[1]["timestamp_before"] == START + 2
    assert f"  offset 3 at byte 4096, behind {AT}0.000000002Z" in run("dump", "--index", directory)


def test_a_dump_goes_on_behind_damage_and_says_so(tmp_path):
    directory = build(tmp_path)
    flip(segments(directory)[1], 4200)
    found = documents(run("dump", "--json", directory, status=1))
    assert [d["offset"] for d in found if d["type"] == "record"] == [0, 1, 2, 6, 7, 8, 9, 10, 11]
    bad = [d for d in found if d["type"] == "batch" and d["problem"]]
    assert [(d["position"], d["checksum"], d["decoded"]) for d in bad] == [(4096, "bad", False)]
    assert [d["kind"] for d in found if d["type"] == "finding"] == ["hole"]
    text = run("dump", directory, status=1)
    assert "batch at byte 4096: BAD, its checksum does not match" in text


def test_a_body_that_cannot_be_opened_is_told(tmp_path):
    directory = tmp_path / "log"
    log = Log.open(directory, stream_id=STREAM, partition=3, options=LogOptions(compression="lz4"))
    log.append(batch([Record(b"x" * 500, START)]))
    log.close()
    (path,) = segments(directory)
    content = path.read_bytes()
    length = int.from_bytes(content[4100:4104], "little")
    body = content[4108 : 4096 + 80] + b"\xff" * (length - 80)
    path.write_bytes(content[:4104] + crc32c(body).to_bytes(4, "little") + body)
    for index in indexes(directory):
        index.unlink()
    found = documents(run("dump", "--json", directory, status=1))
    assert [d["decoded"] for d in found if d["type"] == "batch"] == [False]
    assert [d["kind"] for d in found if d["type"] == "finding"] == ["records"]
    assert "not decoded" in run("dump", directory, status=1)


def test_nothing_that_was_published_controls_the_terminal(tmp_path):
    log = Log.open(tmp_path, stream_id=STREAM, partition=3, options=LogOptions())
    evil = "\x1b]0;evil\x07\x9b31m\r\n"
    headers = {evil: evil.encode()}
    record = Record(evil.encode(), 1, subject=evil.encode(), key=evil.encode(), headers=headers)
    log.append(batch([record, Record(b"\x1b\xff", 1)]))
    log.close()
    text = run("dump", tmp_path)
    assert all(character.isprintable() or character == "\n" for character in text)
    assert r"\x1b]0;evil\x07\x9b31m\r\n" in text and "0x1bff" in text


def test_a_reader_that_has_enough(tmp_path):
    """`liftbridge log dump | head` ends without a complaint."""
    log = Log.open(tmp_path, stream_id=STREAM, partition=3, options=LogOptions())
    for n in range(0, 20000, 1000):
        log.append(batch(Record(b"%d" % i, i) for i in range(n, n + 1000)))
    log.close()
    process = subprocess.Popen(
        [*COMMAND, "dump", tmp_path], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == f"{tmp_path}:\n"
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(60) == 0


# ---- what cannot be done ----


@pytest.mark.parametrize("action", ["verify", "dump"])
def test_a_directory_without_logs(tmp_path, action):
    assert "there is no such directory; name a data directory" in run(action, tmp_path / "no", status=2)
    assert "there is no log in it; name a data directory" in run(action, tmp_path, status=2)
    (tmp_path / "streams").mkdir()
    assert "there is no log in it" in run(action, tmp_path, status=2)


@pytest.mark.parametrize(
    "arguments",
    [[], ["verify"], ["mend", "."], ["dump", ".", "--offset", "-1"], ["dump", ".", "--count", "x"]],
)
def test_a_wrong_command_line(arguments):
    assert "usage: liftbridge log" in run(*arguments, status=2)


def test_help_names_the_exit_statuses():
    for action in ("verify", "dump"):
        assert "exit status:" in run(action, "--help")


# ---- beside a server ----


def test_beside_a_running_server(tmp_path):
    """A log that is being written is well; when the server is gone nobody claims that one runs."""
    with Server(tmp_path) as server:
        api = server.api()
        api.CreateStream(api_pb2.CreateStreamRequest(name="orders", subject="orders"), timeout=10)
        for n in range(20):
            api.Publish(api_pb2.PublishRequest(stream="orders", value=b"%d" % n), timeout=10)
        (running, total) = documents(run("verify", "--json", server.data_dir))
        assert running["running_server"] and running["records"] == 20
        assert (running["findings"], total["damaged"]) == ([], 0)
        assert "a server runs here" in run("verify", server.data_dir)
        with segments(server.data_dir / "streams" / running["stream"] / "0")[-1].open("ab") as file:
            file.write(b"half a batch")
        (running, _) = documents(run("verify", "--json", server.data_dir))
        assert (running["findings"], running["tail_bytes"] > 0) == ([], True)
        server.kill()
        (left, _) = documents(run("verify", "--json", server.data_dir))
        assert not left["running_server"]
        assert [finding["kind"] for finding in left["findings"]] == ["torn-tail"]
