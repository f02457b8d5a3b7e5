"""What the system says of this process."""

from __future__ import annotations

import gc
import os
import resource
import sys
import threading
import time
from pathlib import Path

from liftbridge.obs.exposition import Family

_STARTED = time.time()


def families() -> list[Family]:
    """CPU time, memory, descriptors, threads, garbage collection."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    found = []

    def gauge(name: str, text: str, value: float | None) -> None:
        if value is not None:
            family = Family(name, "gauge", text)
            family.add(value)
            found.append(family)

    cpu = Family("process_cpu_seconds_total", "counter", "CPU time of user and system, seconds.")
    cpu.add(used.ru_utime + used.ru_stime)
    found.append(cpu)
    gauge("process_start_time_seconds", "When the process started, seconds since 1970.", _STARTED)
    gauge("process_resident_memory_bytes", "Memory that is in use.", _resident())
    gauge("process_open_fds", "Open file descriptors.", _descriptors())
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    gauge("process_max_fds", "Descriptors that may be open.", limit)
    gauge("process_threads", "Threads of Python.", threading.active_count())
    collections = Family("python_gc_collections_total", "counter", "Garbage collections, by generation.")
    for generation, stats in enumerate(gc.get_stats()):
        collections.add(stats["collections"], generation=str(generation))
    found.append(collections)
    return found


def _resident() -> float | None:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        # What the process had at most is all that other systems tell.
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    return pages * os.sysconf("SC_PAGE_SIZE")


def _descriptors() -> float | None:
    place = Path("/proc/self/fd" if sys.platform == "linux" else "/dev/fd")
    try:
        return len(list(place.iterdir())) - 1  # of the listing itself
    except OSError:
        return None
