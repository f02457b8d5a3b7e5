"""A member of a consumer group as a process: it writes down every message that it has handled.

    python group_member.py BACKEND ADDRESS GROUP MEMBER STREAM FILE

A line of the file is time (ns of the monotonic clock, which all processes share), partition, offset and value
of a message; when it is there, the message is handled. Each is one write, so a kill leaves whole lines.
SIGTERM makes the member leave in order.
"""

from __future__ import annotations

import os
import signal
import sys
import time

import anyio

import liftbridge.client as lc

CHECKPOINT_SECONDS = 1.0
HANDOVER_SECONDS = 2.0


async def work(address: str, group: str, member: str, stream: str, file: str) -> None:
    records = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    with anyio.open_signal_receiver(signal.SIGTERM) as signals:
        async with (
            lc.connect(address) as client,
            client.consumer(
                group,
                member,
                streams=[stream],
                start="earliest",
                checkpoint_interval=CHECKPOINT_SECONDS,
                handover=HANDOVER_SECONDS,
            ) as messages,
            anyio.create_task_group() as tasks,
        ):

            async def handle() -> None:
                async for message in messages:
                    entry = time.monotonic_ns(), message.partition, message.offset, int(message.value)
                    os.write(records, b"%d %d %d %d\n" % entry)

            tasks.start_soon(handle)
            async for _ in signals:
                tasks.cancel_scope.cancel()
                break
    os.close(records)


if __name__ == "__main__":
    anyio.run(work, *sys.argv[2:], backend=sys.argv[1])
