"""Removing a log for good.

The files go one by one, so a crash leaves some of them. Whoever deletes a log has recorded that first, and
calls this again at the next start; it may be repeated, and removing what is gone is no error. The stream's
UUID in the directory's name is never used again, so what is left over can never be taken for another log.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from liftbridge.log.files import sync_directory


def delete_log(directory: Path) -> None:
    """Remove a directory of logs and all in it, durably; blocking. Raises OSError, and may be repeated."""
    if directory.exists():
        shutil.rmtree(directory)
    if directory.parent.exists():
        sync_directory(directory.parent)
