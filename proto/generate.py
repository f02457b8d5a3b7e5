"""Generate src/liftbridge/proto from proto/*.proto (`make proto`), or check that it is up to date.

Messages come from protoc, servicers and stubs from purerpc's plugin. One thing is changed in what protoc
writes: our messages live in a descriptor pool of their own. The package name `proto` is fixed by the
clients' contract, so every Liftbridge client registers the same names; in the default pool a program could
not load ours beside theirs.
"""

from __future__ import annotations

import pathlib
import re
import sys
import tempfile

from grpc_tools import protoc

ROOT = pathlib.Path(__file__).resolve().parent.parent
TARGET = ROOT / "src" / "liftbridge" / "proto"
DEFAULT_POOL = "_descriptor_pool.Default()"
OWN_POOL = "_pool.POOL"


def generate(into: pathlib.Path) -> None:
    """Write the generated modules of every proto file into the directory `into`."""
    package = into / "liftbridge" / "proto"
    package.mkdir(parents=True)
    sources = sorted((ROOT / "proto").glob("*.proto"))
    arguments = [
        "protoc",
        f"-Iliftbridge/proto={ROOT / 'proto'}",
        f"--python_out={into}",
        f"--pyi_out={into}",
        f"--purerpc_out={into}",
        *(f"liftbridge/proto/{source.name}" for source in sources),
    ]
    if protoc.main(arguments) != 0:
        raise SystemExit("protoc failed; its message is above")
    for module in package.glob("*_pb2.py"):
        text = module.read_text()
        assert DEFAULT_POOL in text, f"{module.name}: protoc no longer names the default pool"
        text = text.replace(DEFAULT_POOL, OWN_POOL)
        text = re.sub(
            r"^from google\.protobuf import descriptor_pool as _descriptor_pool$",
            "from liftbridge.proto import _pool",
            text,
            flags=re.MULTILINE,
        )
        module.write_text(text)
    for module in package.glob("*_grpc.py"):
        # The plugin also writes a file for a proto without services; only imports are in it.
        if "class " not in module.read_text():
            module.unlink()


def main() -> int:
    """Generate, or with --check compare; returns the exit status."""
    check = "--check" in sys.argv[1:]
    with tempfile.TemporaryDirectory() as scratch:
        generate(pathlib.Path(scratch))
        fresh = {
            path.name: path.read_bytes()
            for path in (pathlib.Path(scratch) / "liftbridge" / "proto").iterdir()
        }
    present = {
        path.name: path.read_bytes()
        for pattern in ("*_pb2.py", "*_pb2.pyi", "*_grpc.py")
        for path in TARGET.glob(pattern)
    }
    if check:
        stale = sorted(name for name in fresh.keys() | present.keys() if fresh.get(name) != present.get(name))
        if stale:
            print(f"generated code is not up to date: {', '.join(stale)}; run `make proto`", file=sys.stderr)
            return 1
        return 0
    for name in present.keys() - fresh.keys():
        (TARGET / name).unlink()
    for name, content in fresh.items():
        (TARGET / name).write_bytes(content)
    return 0


if __name__ == "__main__":
    sys.exit(main())
