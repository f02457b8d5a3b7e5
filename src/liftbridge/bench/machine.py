"""What a result was measured on: without it a figure cannot be compared with another."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

import liftbridge
from liftbridge.nats.embedded import EmbeddedNatsError, find_nats_server

_PACKAGE = Path(liftbridge.__file__).resolve().parent


def describe() -> dict[str, str]:
    """Return machine, system and versions, each as a short text."""
    return {
        "liftbridge": liftbridge.__version__,
        "commit": commit(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "nats_server": _nats_server(),
        "kernel": f"{platform.system()} {platform.release()}",
        "cpu": f"{len(_own_cpus())} x {_cpu_model()}",
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB",
        "load": " ".join(f"{value:.2f}" for value in os.getloadavg()),
    }


def commit() -> str:
    """Return the commit that the running code is of, "modified" added if it is not quite; else "unknown"."""
    git = shutil.which("git")
    # An installed package may lie in a checkout of something else.
    if git is None or not (_PACKAGE.parent.parent / ".git").exists():
        return "unknown"
    try:
        name = _output(git, "-C", str(_PACKAGE), "rev-parse", "--short=12", "HEAD")
        changes = _output(git, "-C", str(_PACKAGE), "status", "--porcelain", "--untracked-files=no", ".")
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return f"{name}, modified" if changes else name


def _own_cpus() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _nats_server() -> str:
    try:
        return _output(str(find_nats_server()), "--version").removeprefix("nats-server:").strip()
    except (EmbeddedNatsError, OSError, subprocess.SubprocessError):
        return "unknown"


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
