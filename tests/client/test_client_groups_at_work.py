"""Members of a consumer group as processes: each message is handled once while members come, go and die.

What "once" means is decided from what the members write down, in the order of time. For each partition:

- The offsets go up one by one from 0 to the end, whoever handled them: no gap, no repeat, no two owners at a
  time.
- A member that was killed is the only exception. Its successor may go back to what the victim had handled
  behind its last checkpoint, and no further: to the cursor that was stored when it died. From there on they
  go up again.
"""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import pytest
from client_support import in_thread
from harness import Server

import liftbridge.client as lc

GROUP, STREAM, PARTITIONS = "workers", "orders", 4
MESSAGES = 100_000
BACKLOG = 2_000  # published and not handled: what members always have to do
BLOCK, TRICKLE = 250, 10
SECONDS = 180.0
SCRIPT = Path(__file__).with_name("group_member.py")


class Handled(NamedTuple):
    """A line of a member's records."""

    time: int
    partition: int
    offset: int
    value: int
    member: str = ""


class Member:
    """A member in a process of its own."""

    def __init__(self, server: Server, directory: Path, name: str, backend: str) -> None:
        self.name = name
        self.partitions: set[int] = set()
        """Those it has handled messages of."""
        self.values: set[int] = set()
        """What is new among the values it has handled."""
        self.records: list[Handled] = []
        self._file = directory / f"{name}.records"
        self._log = (directory / f"{name}.log").open("w+")
        self._rest = b""
        self._position = 0
        command = [sys.executable, str(SCRIPT), backend, server.address, GROUP, name, STREAM, str(self._file)]
        self.process = subprocess.Popen(command, stdout=self._log, stderr=self._log)

    def read(self) -> list[Handled]:
        """Everything it has handled so far."""
        if self._file.exists():
            with self._file.open("rb") as file:
                file.seek(self._position)
                *lines, self._rest = (self._rest + file.read()).split(b"\n")
                self._position = file.tell()
            records = [Handled(*map(int, line.split()), member=self.name) for line in lines]
            self.records.extend(records)
            self.partitions.update(record.partition for record in records)
            self.values.update(record.value for record in records)
        return self.records

    async def leave(self) -> None:
        """Have it leave in order."""
        self.process.send_signal(signal.SIGTERM)
        status = await in_thread(self.process.wait, 30)
        self._log.seek(0)
        assert (status, self._log.read()) == (0, "")

    async def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        await in_thread(self.process.wait, 30)

    def close(self) -> None:
        """Leave nothing running."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(30)
        self._log.close()


class Work:
    """Messages that are published while members handle them."""

    def __init__(self, publisher: lc.Publisher, members: list[Member]) -> None:
        self._publisher = publisher
        self._members = members
        self._handled: set[int] = set()
        self._futures: list[lc.PublishFuture] = []

    @property
    def published(self) -> int:
        return len(self._futures)

    def handled(self) -> int:
        """How many different messages were handled."""
        for member in self._members:
            member.read()
            self._handled |= member.values
            member.values.clear()
        return len(self._handled)

    async def until(self, goal: int, condition: Callable[[], Any] = lambda: True) -> None:
        """Publish up to `goal`, and then little by little until the condition holds."""
        while self.published < goal or not condition():
            if self.published - self.handled() >= BACKLOG:
                await anyio.sleep(0.01)
                continue
            size = min(BLOCK, goal - self.published) if self.published < goal else TRICKLE
            numbers = range(self.published, self.published + size)
            self._futures += await self._publisher.send_batch([b"%d" % number for number in numbers])
            await self._publisher.flush()

    async def all_handled(self) -> None:
        while self.handled() < self.published:
            await anyio.sleep(0.01)

    async def stored(self) -> dict[tuple[int, int], int]:
        """The number of the message at each partition and offset."""
        acks = [await future for future in self._futures]
        return {(ack.partition, ack.offset): number for number, ack in enumerate(acks) if ack is not None}


@pytest.fixture
def server(tmp_path):
    config = {"cursors.stream.partitions": 2, "groups.consumer.timeout": "5s"}
    with Server(tmp_path / "server", config) as running:
        yield running
        assert "Traceback" not in running.log


@contextmanager
def members_of(server: Server, directory: Path) -> Iterator[tuple[list[Member], Callable[[], Member]]]:
    """The members, and what starts another one; Trio and asyncio take turns."""
    members: list[Member] = []
    backends = itertools.cycle(["trio", "asyncio"])

    def start() -> Member:
        members.append(Member(server, directory, f"member-{len(members)}", next(backends)))
        return members[-1]

    try:
        yield members, start
    finally:
        for member in members:
            member.close()


async def fetch_cursors(client: lc.Client) -> dict[int, int]:
    return {p: await client.fetch_cursor(f"__group:{GROUP}", STREAM, p) for p in range(PARTITIONS)}


def check(
    members: list[Member], stored: dict[tuple[int, int], int], victim: Member, cursors: dict[int, int]
) -> None:
    """No gap, and no repeat but the ones that a kill allows."""
    found: dict[int, list[Handled]] = defaultdict(list)
    for record in sorted(record for member in members for record in member.read()):
        assert stored[record.partition, record.offset] == record.value
        found[record.partition].append(record)
    lengths = {p: sum(place == p for place, _ in stored) for p in range(PARTITIONS)}
    for partition, length in lengths.items():
        records = found[partition]
        assert records[0].offset == 0
        assert records[-1].offset == length - 1
        for before, after in itertools.pairwise(records):
            if after.offset == before.offset + 1:
                continue
            assert before.member == victim.name, (before, after)
            assert cursors[partition] < after.offset <= before.offset, (cursors, before, after)


@pytest.mark.timeout(SECONDS + 30)
def test_each_message_is_handled_once_while_members_come_and_go(server, tmp_path):
    async def scenario() -> None:
        with members_of(server, tmp_path) as (members, start):
            async with lc.connect(server.address) as client:
                await client.create_stream(STREAM, partitions=PARTITIONS)
                async with client.publisher(STREAM, partitioner=lc.RoundRobin()) as publisher:
                    work = Work(publisher, members)
                    first, second = start(), start()
                    await work.until(20_000, lambda: first.read() and second.read())
                    third = start()
                    await work.until(40_000, third.read)
                    await second.leave()
                    await work.until(60_000)
                    await work.all_handled()  # by those who are left
                    await work.until(70_000)
                    await first.kill()
                    cursors = await fetch_cursors(client)
                    await work.until(80_000)
                    await work.all_handled()
                    assert third.partitions == set(range(PARTITIONS))
                    fourth = start()
                    await work.until(MESSAGES - BACKLOG // 2, fourth.read)
                    await work.all_handled()
                    for member in (third, fourth):
                        await member.leave()
                    # With the last member the group is gone; the next one goes on by its cursors.
                    await work.until(work.published + BACKLOG // 2)
                    last = start()
                    await work.all_handled()
                    await last.leave()
                    assert last.partitions == set(range(PARTITIONS))
                stored = await work.stored()
            assert len(stored) >= MESSAGES
            check(members, stored, first, cursors)

    async def main() -> None:
        with anyio.fail_after(SECONDS):
            await scenario()

    anyio.run(main, backend="trio")
