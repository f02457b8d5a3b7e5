"""Whether the machine may have stopped since a data directory was in use last.

A process that ends leaves the page cache behind, a machine that stops does not: only then may data that
no sync had covered be lost in part, and recovery has to know which of the two it was. The file `boot` in
the data directory holds the id that the kernel gave to the boot during which the logs were opened last.

Invariant: the id is written only when every log has been opened, and so synced, since that boot. Whatever is
unknown counts as a stop of the machine. Where it was none that changes nothing for a log that is whole.
"""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from liftbridge.broker.durable import replace_file

BOOT_FILE = "boot"
_LINUX = Path("/proc/sys/kernel/random/boot_id")


def boot_id() -> str:
    """The id of the current boot, "" when the system has none."""
    with suppress(OSError, subprocess.SubprocessError):
        if sys.platform == "darwin":
            command = ["/usr/sbin/sysctl", "-n", "kern.bootsessionuuid"]
            done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=5)
            return done.stdout.strip()
        return _LINUX.read_text().strip()
    return ""


def power_may_be_lost(data_dir: Path) -> bool:
    """Whether the machine may have stopped since the logs in the directory were opened last; blocking."""
    try:
        stored = (data_dir / BOOT_FILE).read_text(errors="replace")
    except OSError:
        return True
    current = boot_id()
    return not current or stored != current


def remember_boot(data_dir: Path) -> None:
    """Every log has been opened since this boot; blocking. Raises OSError."""
    replace_file(data_dir / BOOT_FILE, boot_id().encode())
