"""Runs `liftbridge-bench`, as a process of its own, so that no run inherits anything from the one before."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

Report = dict[str, Any]


def bench(arguments: Sequence[str]) -> tuple[Report | None, bool]:
    """Run one workload; its progress and its errors go to standard error.

    Returns:
        Its report, None if there is none, and whether it failed or lost messages.
    """
    print(f"liftbridge-bench {shlex.join(arguments)}", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "liftbridge.bench.main", *arguments, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    return (json.loads(done.stdout) if done.stdout else None), done.returncode != 0
