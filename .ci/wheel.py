"""Build the source distribution and, from it, the wheel; try the wheel in a clean environment (`make wheel`).

The wheel is built from the source distribution, so one that misses a file does not pass. The trial is what
a user does first: install, start a server with its embedded NATS server, create a stream, publish, read it
back, stop it with SIGTERM. All ports are chosen by the system, and the server's own log says which. Both
files end up in dist/.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DIST = ROOT / "dist"
START_SECONDS = 60
STOP_SECONDS = 30
IN_SDIST = (
    "src/liftbridge/_log.pyx",
    "src/liftbridge/_wire.pyx",
    "src/liftbridge/_log.pxd",
    "src/liftbridge/_wire_nats.pxi",
    "src/liftbridge/_batch.h",
    "proto/api.proto",
    "proto/generate.py",
    "tests/conftest.py",
    "tests/log/disk/shim.c",
    "LICENSE",
)
IN_WHEEL = (
    r"liftbridge/_log\..*\.so",
    r"liftbridge/_wire\..*\.so",
    r"liftbridge/bench/_load\..*\.so",
    r"liftbridge/_log\.pyi",
    r"liftbridge/_log\.pxd",
    r"liftbridge/py\.typed",
    r"liftbridge/proto/api_pb2\.pyi",
    r"liftbridge/proto/api_grpc\.py",
    r"liftbridge-.*\.dist-info/licenses/LICENSE",
)
NOT_IN_WHEEL = re.compile(r".*\.(c|h|pyx|pxi|pyc)|tests/.*")
CONFIG = """
listen: 127.0.0.1:0
data.dir: data
nats.embedded: true
nats.embedded.config: nats.conf
clustering.raft.bootstrap.seed: true
"""
NATS_CONFIG = 'host: "127.0.0.1"\nport: -1\n'


def build() -> tuple[Path, Path]:
    """Build both distributions into dist/; returns the paths of sdist and wheel."""
    for old in (*DIST.glob("liftbridge-*.tar.gz"), *DIST.glob("liftbridge-*.whl")):
        old.unlink()
    run(sys.executable, "-m", "build", "--outdir", DIST, ROOT)
    (sdist,), (wheel,) = DIST.glob("liftbridge-*.tar.gz"), DIST.glob("liftbridge-*.whl")
    return sdist, wheel


def check_contents(sdist: Path, wheel: Path) -> None:
    """End the program when a distribution lacks a file, or has one that it should not have."""
    with tarfile.open(sdist) as archive:
        in_sdist = {name.partition("/")[2] for name in archive.getnames()}
    missing = [name for name in IN_SDIST if name not in in_sdist]
    generated = sorted(
        name for name in in_sdist if name.endswith(".so") or (name.startswith("src/") and name.endswith(".c"))
    )
    if missing or generated:
        raise SystemExit(f"{sdist.name}: missing {missing}, not to be there {generated}; see MANIFEST.in")
    with zipfile.ZipFile(wheel) as archive:
        in_wheel = archive.namelist()
    missing = [form for form in IN_WHEEL if not any(re.fullmatch(form, name) for name in in_wheel)]
    unwanted = sorted(name for name in in_wheel if NOT_IN_WHEEL.fullmatch(name))
    if missing or unwanted:
        raise SystemExit(f"{wheel.name}: missing {missing}, not to be there {unwanted}; see pyproject.toml")


def try_wheel(wheel: Path, scratch: Path) -> None:
    """Install the wheel into an environment of its own in `scratch` and use it there."""
    run(sys.executable, "-m", "venv", scratch / "env")
    commands = scratch / "env" / "bin"
    run(commands / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", wheel)
    run(commands / "liftbridge", "--version", cwd=scratch)
    run(commands / "liftbridge-bench", "--help", cwd=scratch, stdout=subprocess.DEVNULL)
    (scratch / "liftbridge.yaml").write_text(CONFIG)
    (scratch / "nats.conf").write_text(NATS_CONFIG)
    server = subprocess.Popen(
        [commands / "liftbridge", "--config", "liftbridge.yaml"],
        cwd=scratch,
        env=clean_environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    watchdog = threading.Timer(START_SECONDS + STOP_SECONDS, server.kill)
    watchdog.start()
    try:
        nats, grpc = addresses(server)
        use(commands / "liftbridge", nats, grpc, scratch)
        server.send_signal(signal.SIGTERM)
        _, rest = server.communicate(timeout=STOP_SECONDS)
        if server.returncode != 0:
            raise SystemExit(f"the server ended with status {server.returncode} after SIGTERM:\n{rest}")
    finally:
        watchdog.cancel()
        server.kill()
        server.wait()


def addresses(server: subprocess.Popen[str]) -> tuple[str, str]:
    """Wait for the server; returns the NATS URL and the gRPC address that its log names."""
    assert server.stderr is not None
    lines, nats = [], ""
    for line in server.stderr:
        lines.append(line)
        if found := re.search(r"embedded NATS server listens on (\S+)", line):
            nats = found[1]
        if found := re.search(r"serving clients on (\S+)", line):
            return nats, found[1]
    raise SystemExit("the server did not start:\n" + "".join(lines))


def use(liftbridge: Path, nats: str, grpc: str, scratch: Path) -> None:
    """Create a stream, publish to it and read the message back."""
    value = "from the wheel"
    run(liftbridge, "stream", "create", "smoke", "--subject", "smoke.test", "--server", grpc, cwd=scratch)
    run(liftbridge, "publish", "smoke.test", value, "--nats", nats, cwd=scratch)
    # A plain publish has no ack: the subscription stays open until the message is there.
    subscriber = subprocess.Popen(
        [liftbridge, "subscribe", "smoke", "--server", grpc],
        cwd=scratch,
        env=clean_environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    watchdog = threading.Timer(STOP_SECONDS, subscriber.kill)
    watchdog.start()
    try:
        assert subscriber.stdout is not None
        line = subscriber.stdout.readline()
    finally:
        watchdog.cancel()
        subscriber.kill()
        subscriber.communicate()
    print(line, end="", flush=True)
    if line.rstrip("\n") != f"0\tsmoke.test\t{value}":
        raise SystemExit(f"the server gave back {line!r}, not the message that was published")


def run(*command: str | Path, cwd: Path = ROOT, stdout: int | None = None) -> None:
    """Run a command to its end; ends the program when it fails."""
    print("+", *command, flush=True)
    done = subprocess.run(command, cwd=cwd, env=clean_environment(), stdout=stdout, timeout=1800)
    if done.returncode != 0:
        raise SystemExit(f"{command[0]} ended with status {done.returncode}")


def clean_environment() -> dict[str, str]:
    """The environment without what could lead a program to the sources instead of the wheel."""
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    return {name: value for name, value in os.environ.items() if name not in hidden}


def main() -> None:
    """Build, check, try."""
    sdist, wheel = build()
    check_contents(sdist, wheel)
    scratch = Path(tempfile.mkdtemp(prefix="liftbridge-wheel-"))
    try:
        try_wheel(wheel, scratch)
    finally:
        shutil.rmtree(scratch)
    print(f"{sdist.name} and {wheel.name} are good: {DIST}")


if __name__ == "__main__":
    main()
