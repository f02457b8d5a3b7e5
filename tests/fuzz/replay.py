"""Run inputs through a target once, without a fuzzer: replay.py TARGET FILE ..."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

if __name__ == "__main__":
    target = importlib.import_module(f"fuzz_targets.{sys.argv[1]}")
    for name in sys.argv[2:]:
        target.run(Path(name).read_bytes())
        print(f"{name}: the property holds")
