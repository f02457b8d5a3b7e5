"""CPU time of the processes that take part in a run, so that cost is told apart from speed.

On a machine that the server shares with its load, messages per second depend on everybody; CPU microseconds
per message depend on the server. The clock is the kernel's own for the whole process
(`clock_getcpuclockid`): exact to the nanosecond where utime and stime of /proc count ticks of 10 ms, and
threads that have ended are in it. It does not count child processes, so the server's figure is without its
nats-server.
"""

from __future__ import annotations

from collections.abc import Mapping

from liftbridge.bench._load import process_cpu_ns


class CpuMeter:
    """Measures how much CPU time processes use.

    Args:
        pids: a process id for each name that figures are wanted for; None where it is not known.
    """

    def __init__(self, pids: Mapping[str, int | None]) -> None:
        self._pids = dict(pids)
        self._start = self._read()

    def used(self) -> dict[str, float | None]:
        """Return the CPU seconds used by each process since this meter was made; None where unknown."""
        now = self._read()
        used: dict[str, float | None] = {}
        for name, before in self._start.items():
            after = now[name]
            used[name] = None if before is None or after is None else (after - before) / 1e9
        return used

    def _read(self) -> dict[str, int | None]:
        return {name: _cpu_ns(pid) for name, pid in self._pids.items()}


def cpu_figures(
    pids: Mapping[str, int | None], used: Mapping[str, float | None], messages: int, generator_ns: int
) -> dict[str, float | None]:
    """Return CPU us for each message, of each process, of all servers together, and of the load.

    Args:
        pids: processes of the target, None where there is none, or none is known.
        used: their CPU seconds.
        messages: how many messages that was for.
        generator_ns: CPU ns of the load.
    """
    known = [used[name] for name, pid in pids.items() if pid is not None]
    servers = [seconds for seconds in known if seconds is not None]
    seconds = {
        **used,
        "all": sum(servers) if servers and len(servers) == len(known) else None,
        "generator": generator_ns / 1e9,
    }
    return {
        f"{name}_cpu_us_per_message": None if spent is None else spent * 1e6 / messages
        for name, spent in seconds.items()
    }


def _cpu_ns(pid: int | None) -> int | None:
    """CPU time of a process in ns; None when there is no process, or a system that does not tell."""
    if pid is None:
        return None
    try:
        return process_cpu_ns(pid)
    except OSError:
        return None
