"""A process that appends as fast as it can under a sync policy, to be killed at any moment.

It does what the leader of a partition does: appends, asks the flusher, and acks what the policy allows, with
a roll every few appends and retention now and then. Each ack is a line in a pipe: the first offset that is
not acked. It goes no farther ahead of the disk than a few hundred records, so that its log stays small.
"""

from __future__ import annotations

import os
from pathlib import Path

import trio
from log_helpers import batch, open_log

from disk.workload import record
from liftbridge.log import Flusher

OPTIONS = {"segment_max_bytes": 30_000, "retention_max_messages": 300}
POLICIES = ("always", "interval", "never")
TOO_EARLY = "too early"  # no policy but a fault: an ack for what was not appended
INTERVAL_SECONDS = 0.001
APPENDS_PER_TURN = 3
AHEAD = 300  # records that are not on the disk yet, about


def write(directory: str, pipe: str, policy: str, cycle: int) -> None:
    """Append for ever; `cycle` tells this process's records from those of others."""
    trio.run(_Writer(Path(directory), pipe, policy, cycle).run)


class _Writer:
    def __init__(self, directory: Path, pipe: str, policy: str, cycle: int) -> None:
        self.log = open_log(directory, **OPTIONS)
        self.flusher = Flusher()
        self.policy = policy
        self.cycle = cycle
        self.pipe = os.open(pipe, os.O_WRONLY)
        self.synced = trio.Event()

    async def run(self) -> None:
        self.ack(self.log.next_offset)
        async with trio.open_nursery() as nursery:
            await nursery.start(self.flusher.run)
            nursery.start_soon(self.retain)
            if self.policy == TOO_EARLY:
                self.ack(self.log.next_offset + 1)
                await trio.sleep_forever()
            while True:
                for _ in range(APPENDS_PER_TURN):
                    self.append()
                self.commit()
                await trio.lowlevel.checkpoint()
                while self.log.next_offset - self.log.synced_offset > AHEAD:
                    self.synced = trio.Event()
                    self.request()
                    await self.synced.wait()

    def append(self) -> None:
        base = self.log.next_offset
        self.log.append(batch(record(base + n, self.cycle) for n in range(1 + base % 7)))

    def commit(self) -> None:
        """Ack and ask for syncs as the policy has it."""
        if self.policy == "always":
            self.request()
            return
        self.ack(self.log.next_offset)
        if self.policy == "interval":
            self.request(INTERVAL_SECONDS)
        elif self.log.needs_sync:
            self.request()

    def request(self, delay: float = 0) -> None:
        self.flusher.request(self.log, self.on_synced, self.on_failed, delay=delay)

    def on_synced(self, offset: int) -> None:
        if self.policy == "always":
            self.ack(offset)
        self.synced.set()

    def on_failed(self, error: Exception) -> None:
        raise error

    def ack(self, offset: int) -> None:
        os.write(self.pipe, b"%d\n" % offset)

    async def retain(self) -> None:
        while True:
            now, limit = 1000 * self.log.next_offset, self.log.synced_offset
            await trio.to_thread.run_sync(self.log.retain, now, limit)
            await trio.sleep(INTERVAL_SECONDS)
