"""Builds the C cores: log, wire, load generator. Everything else about the package is in pyproject.toml."""

from __future__ import annotations

import multiprocessing
import os
import sys
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

if sys.platform == "win32":
    raise SystemExit("liftbridge runs on Linux and macOS only; its log needs POSIX file calls")

# Assertions of the C core are part of the product, so NDEBUG is never defined for it. Debug information,
# which many Pythons ask for, would make the libraries four times larger and the build a quarter slower.
FLAGS = ["-O3", "-g0", "-UNDEBUG", "-fno-strict-aliasing", "-Wall", "-Wno-unused-function"]
if os.environ.get("LIFTBRIDGE_SANITIZE"):
    FLAGS = ["-O1", "-g", "-UNDEBUG", f"-fsanitize={os.environ['LIFTBRIDGE_SANITIZE']}"]

NAMES = ["_log", "_wire", "bench._load"]
# For `make test-the-tests`, which builds again and again: "all" or one extension, soon rather than fast.
if only := os.environ.get("LIFTBRIDGE_QUICK_BUILD"):
    FLAGS[0] = "-O1"
    NAMES = NAMES if only == "all" else [only]

SHARED = sorted(path for kind in ("*.pxd", "*.pxi", "*.h") for path in Path("src/liftbridge").rglob(kind))
EXTENSIONS = [
    Extension(
        f"liftbridge.{name}",
        [f"src/liftbridge/{name.replace('.', '/')}.pyx"],
        extra_compile_args=FLAGS,
        # What a fuzzer's coverage calls is in the library that is preloaded, and the sanitizers are too.
        extra_link_args=FLAGS if "sanitize" in FLAGS[-1] and "fuzzer" not in FLAGS[-1] else [],
        depends=[str(path) for path in SHARED],
    )
    for name in NAMES
]

CORES = os.cpu_count() or 1

setup(
    ext_modules=cythonize(
        EXTENSIONS,
        include_path=["src"],
        # A worker that is not forked would run this file again.
        nthreads=CORES if multiprocessing.get_start_method() == "fork" else 0,
        compiler_directives={"language_level": "3", "embedsignature": True, "warn.unused": True},
    ),
    options={"build_ext": {"parallel": CORES}},
)
