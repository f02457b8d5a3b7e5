"""`make fuzz`: every target under a coverage-guided fuzzer for a while, and what came of it as a table.

    fuzzer.py [target ...]             search, FUZZ_SECONDS (60) for each
    fuzzer.py --minimise [target ...]  keep the smallest part of the corpus that has the same coverage

The fuzzer is libFuzzer, driven by atheris, so Python code and C code guide one search. The C cores are a copy
of their own in build/fuzz, made by clang with its coverage, AddressSanitizer and UndefinedBehaviorSanitizer;
their runtime comes with atheris and is preloaded (docs/decisions/0020-fuzzing.md).

A target runs in a process of its own with bounded memory and time for each input. An input that breaks the
property ends it: the input is kept in build/fuzz/findings, and the search goes on for the rest of its time.
New inputs with new coverage go into build/fuzz/corpus; `--minimise` brings them into tests/fuzz/corpus.

Exit status: 0 nothing found, 1 findings, 2 it cannot run here.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fuzz_targets import NAMES

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
BUILD = ROOT / "build" / "fuzz"
CORES = BUILD / "lib"
MEMORY_MB = 1024  # of a process; the sanitizer takes some 300 of it
INPUT_SECONDS = 10
MOST_FINDINGS = 5  # of a target in one run
KEPT = 100_000  # bytes of corpus of a target


class CannotRunError(Exception):
    """What is missing here, and what to do."""


@dataclass
class Result:
    """What came of one target."""

    name: str
    executions: int = 0
    coverage: int = 0
    inputs: int = 0
    peak_mb: int = 0
    findings: list[Path] = field(default_factory=list)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "targets", nargs="*", metavar="target", help=f"of {', '.join(NAMES)}; all without any"
    )
    parser.add_argument(
        "--minimise", action="store_true", help="rewrite tests/fuzz/corpus instead of searching"
    )
    options = parser.parse_args()
    if unknown := set(options.targets) - set(NAMES):
        parser.error(f"no such target: {', '.join(sorted(unknown))}")
    names = options.targets or NAMES
    try:
        preloaded = runtime()
        build()
    except CannotRunError as error:
        print(f"fuzzer: {error}", file=sys.stderr)
        return 2
    if options.minimise:
        for name in names:
            minimise(name, preloaded)
        return 0
    seconds = int(os.environ.get("FUZZ_SECONDS", "60"))
    results = []
    for name in names:
        results.append(search(name, seconds, preloaded))
        print(row(results[-1]) if len(results) > 1 else f"{HEAD}\n{row(results[-1])}", flush=True)
    findings = [path for result in results for path in result.findings]
    for path in findings:
        print(f"\n{path.relative_to(ROOT)}: {reason(path)}\n  again: {again(path)}")
    return 1 if findings else 0


# What is needed


def runtime() -> Path:
    """The library with sanitizers and libFuzzer that belongs to atheris."""
    if sys.platform != "linux" or importlib.util.find_spec("atheris") is None:
        raise CannotRunError(
            "atheris is not installed; it has wheels for Linux on x86-64 with glibc, CPython 3.10 to 3.14: "
            "use such a machine; elsewhere `make test` runs the targets over the corpus that is kept"
        )
    import atheris

    library = Path(atheris.path()) / "asan_with_fuzzer.so"
    if not library.exists():
        raise CannotRunError(
            f"{library} is missing: this atheris was built without its sanitizers; install its wheel"
        )
    return library


def build() -> None:
    """Build the C cores with coverage and sanitizers, if there is no such copy yet or it is old."""
    compiler = os.environ.get("FUZZ_CC", "clang")
    if shutil.which(compiler) is None:
        raise CannotRunError(
            f"no {compiler} in PATH, and gcc has no coverage for libFuzzer; install clang 14 or newer, "
            "or set FUZZ_CC to where it is"
        )
    done = subprocess.run(
        [sys.executable, "setup.py", "build_ext", f"--build-lib={CORES}", f"--build-temp={BUILD / 'temp'}"],
        cwd=ROOT, capture_output=True, text=True,
        env=os.environ | {"CC": compiler, "LIFTBRIDGE_SANITIZE": "address,undefined,fuzzer-no-link"},
    )  # fmt: skip
    if done.returncode:
        raise CannotRunError(f"the C cores cannot be built with {compiler}:\n{done.stderr[-2000:]}")


def environment(preloaded: Path) -> dict[str, str]:
    """Of a process that runs a target."""
    return os.environ | {
        "LD_PRELOAD": str(preloaded),
        # Python frees little at its end, which is no leak; what grows meanwhile meets the bound of memory.
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1:quarantine_size_mb=16:handle_abort=1",
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
        "PYTHONHASHSEED": "0",
    }  # fmt: skip


def command(name: str, *arguments: str | Path) -> list[str]:
    """Runs a target with arguments of libFuzzer."""
    limits = (f"-rss_limit_mb={MEMORY_MB}", f"-timeout={INPUT_SECONDS}")
    return [sys.executable, str(HERE / "fuzz_one.py"), name, *limits, *map(str, arguments)]


# The search


def search(name: str, seconds: int, preloaded: Path) -> Result:
    """Search for `seconds`, over and over when something is found."""
    corpus, seeds, findings = (BUILD / kind / name for kind in ("corpus", "seeds", "findings"))
    for directory in (corpus, seeds, findings):
        directory.mkdir(parents=True, exist_ok=True)
    target = importlib.import_module(f"fuzz_targets.{name}")
    for number, seed in enumerate(target.seeds()):
        (seeds / f"seed-{number}").write_bytes(seed)
    words = BUILD / f"{name}.words"
    words.write_text("".join(f'"{escaped(word)}"\n' for word in target.WORDS))
    kept = [path for path in (HERE / "corpus" / name, HERE / "regressions") if path.is_dir()]
    if kept[-1:] == [HERE / "regressions"]:
        kept[-1] = copied_regressions(name)
    result = Result(name)
    end = time.monotonic() + seconds
    while (left := int(end - time.monotonic())) > 0 and len(result.findings) < MOST_FINDINGS:
        done = subprocess.run(
            command(
                name, f"-max_total_time={left}", f"-max_len={target.MAX_LENGTH}", f"-dict={words}",
                "-use_value_profile=1", f"-artifact_prefix={findings}/", "-print_final_stats=1",
                corpus, seeds, *kept,
            ),
            env=environment(preloaded), text=True, errors="replace",
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        note(result, done.stdout)
        written = [Path(path) for path in re.findall(r"Test unit written to (\S+)", done.stdout)]
        if done.returncode and not written:
            raise SystemExit(f"fuzzer: {name} does not run:\n{done.stdout[-3000:]}")
        for path in written:
            path.with_name(path.name + ".txt").write_text(done.stdout[-20_000:])
        if set(written) <= set(result.findings) and done.returncode:
            break  # the first thing it tries is what it has found before
        result.findings += [path for path in written if path not in result.findings]
    result.inputs = sum(1 for _ in corpus.iterdir())
    return result


def escaped(word: bytes) -> str:
    """A word as a dictionary of libFuzzer has it."""
    return "".join(f"\\x{byte:02x}" for byte in word)


def copied_regressions(name: str) -> Path:
    """The regressions of one target in a directory of their own, as libFuzzer takes all that is in one."""
    directory = BUILD / "regressions" / name
    directory.mkdir(parents=True, exist_ok=True)
    for path in (HERE / "regressions").glob(f"{name}-*"):
        shutil.copy(path, directory / path.name)
    return directory


def note(result: Result, output: str) -> None:
    """Take what libFuzzer tells at its end."""
    for key, value in re.findall(r"^stat::(\w+): +(\d+)$", output, re.MULTILINE):
        if key == "number_of_executed_units":
            result.executions += int(value)
        elif key == "peak_rss_mb":
            result.peak_mb = max(result.peak_mb, int(value))
    for value in re.findall(r" cov: (\d+) ", output):
        result.coverage = max(result.coverage, int(value))


HEAD = f"{'target':12}{'executions':>12}{'coverage':>10}{'inputs':>8}{'peak MB':>9}{'findings':>10}"


def row(result: Result) -> str:
    return (
        f"{result.name:12}{result.executions:12,}{result.coverage:10,}{result.inputs:8,}"
        f"{result.peak_mb:9,}{len(result.findings):10}"
    )


def reason(path: Path) -> str:
    """The line of the output that says what was wrong."""
    output = path.with_name(path.name + ".txt").read_text()
    for pattern in (
        r"^ *=== Uncaught Python exception: ===\n(.*)",
        r"^.*(runtime error: .*)",
        r"^.*ERROR: (.*)",
    ):
        if found := re.search(pattern, output, re.MULTILINE):
            return found[1]
    return "see the .txt beside it"


def again(path: Path) -> str:
    """What repeats a finding, without a fuzzer: enough unless a sanitizer has found it."""
    python = Path(sys.executable).relative_to(ROOT)
    return f"{python} tests/fuzz/replay.py {path.parent.name} {path.relative_to(ROOT)}"


# The corpus


def minimise(name: str, preloaded: Path) -> None:
    """Keep the fewest, smallest inputs that have all the coverage, up to `KEPT` bytes."""
    target, kept = BUILD / "merged" / name, HERE / "corpus" / name
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    sources = [path for path in (BUILD / "seeds" / name, kept, BUILD / "corpus" / name) if path.is_dir()]
    subprocess.run(
        command(name, "-merge=1", target, *sources),
        env=environment(preloaded),
        check=True,
        capture_output=True,
    )
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir(parents=True)
    count, size = 0, 0
    for path in smallest_first(target):
        size += path.stat().st_size
        if size > KEPT:
            break
        shutil.copy(path, kept / path.name[:16])
        count += 1
    print(f"{name:12}{count:6} of {sum(1 for _ in target.iterdir())} inputs kept")


def smallest_first(directory: Path) -> Iterator[Path]:
    yield from sorted(directory.iterdir(), key=lambda path: (path.stat().st_size, path.name))


if __name__ == "__main__":
    sys.exit(main())
