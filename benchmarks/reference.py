"""A fixed piece of work whose CPU time tells how fast this machine is for what a server does.

A server's CPU time goes to system calls that copy, to C that walks over bytes, and to the Python interpreter;
each has its part here, done with what the interpreter brings, so that nothing of ours changes it. Its time
divides that of the server where two machines are to be compared, or one at two times: a virtual machine is
not equally fast from one quarter of an hour to the next.
"""

from __future__ import annotations

import os
import socket
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

BLOCK = 1 << 18
BLOCKS = 64
LINES = 20_000
TIMES = 5


def measure(directory: Path) -> dict[str, float]:
    """Return CPU ms of each part, the best of `TIMES`.

    Args:
        directory: where the files are that the servers' data is compared with.
    """
    data = os.urandom(BLOCK)
    line = b"HMSG subject.of.a.stream 17 _INBOX.abcdef.0123456789 12 140"
    with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
        parts: dict[str, Callable[[], object]] = {
            "checksum": lambda: [zlib.crc32(data) for _ in range(BLOCKS)],
            "interpreter": lambda: sum(int(line.split(b" ")[-1]) for _ in range(LINES)),
            "file": lambda: [os.pwrite(file.fileno(), data, 0) for _ in range(BLOCKS)],
            "socket": lambda: _through_a_socket(data),
        }
        return {name: min(_cpu_ms(work) for _ in range(TIMES)) for name, work in parts.items()}


def _cpu_ms(work: Callable[[], object]) -> float:
    began = time.thread_time_ns()
    work()
    return (time.thread_time_ns() - began) / 1e6


def _through_a_socket(data: bytes) -> None:
    ours, theirs = socket.socketpair()
    room = bytearray(BLOCK)
    with ours, theirs:
        ours.setblocking(False)
        for _ in range(BLOCKS):
            done = 0
            while done < BLOCK:
                sent = ours.send(memoryview(data)[done:])
                done += sent
                while sent:
                    sent -= theirs.recv_into(room, sent)
