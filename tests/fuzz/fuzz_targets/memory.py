"""Where targets put their files: in memory, where there is such a place, as they write thousands of them."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import tempfile
from pathlib import Path


@functools.cache
def scratch() -> Path:
    """A directory of this process, removed when it ends."""
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    directory = Path(tempfile.mkdtemp(prefix="liftbridge-fuzz-", dir=place))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return directory
