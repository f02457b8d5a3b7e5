"""A server in the foreground, in a process of its own."""

import subprocess
import sys

PROGRAM = """
import gc, os, signal, sys
from liftbridge.broker.config import load
from liftbridge.cli.server import run_server

def started(addresses):
    print(gc.get_freeze_count(), len(gc.get_objects()), flush=True)
    os.kill(os.getpid(), signal.SIGTERM)

flags = {"nats.embedded": True, "clustering.raft.bootstrap.seed": True, "listen": "127.0.0.1:0"}
flags["data.dir"] = sys.argv[1]
raise SystemExit(run_server(lambda: load(None, flags, {}), embedded_port=0, started=started))
"""


def test_what_stays_is_not_collected_again_and_again(tmp_path):
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 0, result.stderr
    frozen, looked_at = map(int, result.stdout.split())
    assert frozen > 20_000
    assert looked_at < 1_000
