"""Creates and deletes streams until it is killed, and says so after each; run by the crash test.

Arguments: data directory, number of the round. Prints `ready`, then `+name` or `-name` for what is done.
"""

from __future__ import annotations

import itertools
import sys
import time
from pathlib import Path

import trio

from liftbridge.broker.controller import Controller
from liftbridge.broker.identity import DataDirectory


async def main(directory: Path, run: str) -> None:
    data = DataDirectory.open(directory, "node1")
    controller = await Controller.start(
        data, namespace="test", bootstrap=True, clock=time.time_ns, snapshot_entries=7
    )
    print("ready", flush=True)
    for number in itertools.count():
        name = f"stream-{run}-{number}"
        await controller.create_stream(name=name, subject=name)
        print(f"+{name}", flush=True)
        if number % 3 == 2:
            name = f"stream-{run}-{number - 1}"
            await controller.delete_stream(name)
            print(f"-{name}", flush=True)


trio.run(main, Path(sys.argv[1]), sys.argv[2])
