"""Stubs that grpcio-tools makes of proto/api.proto, as a user of any language would make them."""

import importlib.util
import subprocess
import sys
from pathlib import Path

from calls import PATIENCE

ROOT = Path(__file__).parents[2]
PROGRAM = Path(__file__).with_name("generated_stubs_client.py")


def test_stubs_generated_from_the_published_proto(server, tmp_path):
    assert importlib.util.find_spec("grpc_tools"), "install grpcio-tools: pip install --group proto"
    command = [
        sys.executable,
        "-m",
        "grpc_tools.protoc",
        f"-I{ROOT / 'proto'}",
        f"--python_out={tmp_path}",
        f"--grpc_python_out={tmp_path}",
        "api.proto",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=4 * PATIENCE)
    assert done.returncode == 0, done.stderr
    # In a process of its own: the generated messages have the names of the package's own.
    done = subprocess.run(
        [sys.executable, PROGRAM, tmp_path, server.address],
        capture_output=True,
        text=True,
        timeout=4 * PATIENCE,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "all calls answered as they should"
