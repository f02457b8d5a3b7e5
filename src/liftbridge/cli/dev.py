"""`liftbridge dev`: one server with an embedded NATS and a cluster of its own, on this machine only.

With `--nodes` there are several: the first one in this process, and each other in one of its own, which it
ends with itself.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from liftbridge.broker.app import Addresses
from liftbridge.broker.config import load
from liftbridge.cli.server import run_server


def parser() -> argparse.ArgumentParser:
    """The command line of `liftbridge dev`."""
    parser = argparse.ArgumentParser(
        prog="liftbridge dev",
        description="Start a server with an embedded NATS server on this machine, or several, to try things "
        "out.",
    )
    parser.add_argument("--data-dir", "-d", default="./data", help="where streams are kept (default: ./data)")
    parser.add_argument("--port", "-p", type=int, default=9292, help="gRPC port (default: 9292)")
    parser.add_argument("--nats-port", type=int, default=4222, help="NATS port (default: 4222)")
    parser.add_argument("--http-port", type=int, help="port of metrics and health (default: none)")
    parser.add_argument(
        "--nodes",
        type=int,
        default=1,
        help="servers of one cluster, on ports from --port on and in directories of their own (default: 1)",
    )
    parser.add_argument("--member", help=argparse.SUPPRESS)
    parser.add_argument("--level", "-l", default="warn", help="log level (default: warn)")
    parser.set_defaults(run=_run)
    return parser


def _run(options: argparse.Namespace) -> int:
    if options.member is not None:
        return _run_member(options.member)
    options.secret = secrets.token_hex(16)  # nothing else is to be taken for one of these servers
    if options.nodes < 1:
        print("liftbridge: --nodes: at least one server is needed", file=sys.stderr)
        return 2
    if options.nodes == 1:
        return _run_first(options, lambda addresses: print(welcome(addresses, options), flush=True))
    with contextlib.ExitStack() as members:
        # The others join what this one serves, so it must not wait for them.
        return _run_first(
            options,
            lambda addresses: threading.Thread(
                target=_start_others, args=(addresses, options, members), daemon=True
            ).start(),
        )


def _run_first(options: argparse.Namespace, started: Callable[[Addresses], None]) -> int:
    """Run the server that begins the cluster and brings NATS along."""
    return run_server(
        lambda: load(None, overrides(options, 1), os.environ),
        embedded_host="127.0.0.1",
        embedded_port=options.nats_port,
        started=started,
    )


def _start_others(addresses: Addresses, options: argparse.Namespace, members: contextlib.ExitStack) -> None:
    """In a thread: start the other servers, and tell when they are there."""
    for number in range(2, options.nodes + 1):
        directory = _directory(options, number)
        directory.mkdir(parents=True, exist_ok=True)
        file = directory / "dev.json"  # JSON is YAML
        config = {**overrides(options, number), "nats.servers": list(addresses.nats)}
        secret = config.pop("clustering.secret")
        file.write_text(json.dumps(config))
        member = subprocess.Popen(
            [sys.executable, "-m", "liftbridge.cli.main", "dev", "--member", str(file)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "LIFTBRIDGE_CLUSTERING_SECRET": str(secret)},
            start_new_session=True,  # Ctrl-C is for the first server, which then ends the others
        )
        members.callback(_end, member)
        assert member.stdout is not None
        if not member.stdout.readline():
            print(f"liftbridge: server {number} has not come up; {directory} is its directory", flush=True)
            return
    print(welcome(addresses, options), flush=True)


def _end(member: subprocess.Popen[str]) -> None:
    assert member.stdin is not None
    member.stdin.close()
    member.wait()


def _run_member(file: str) -> int:
    """Run one of the other servers, for as long as the first one holds the other end of standard input."""

    def end_with_the_first() -> None:
        sys.stdin.read()
        os.kill(os.getpid(), signal.SIGTERM)

    def started(addresses: Addresses) -> None:
        print(addresses.grpc_port, flush=True)

    threading.Thread(target=end_with_the_first, daemon=True).start()
    return run_server(lambda: load(file, {}, os.environ), started=started)


def _directory(options: argparse.Namespace, number: int) -> Path:
    """Where the server of that number keeps its data; a single one right in the directory that is named."""
    return Path(options.data_dir) / f"server{number}" if options.nodes > 1 else Path(options.data_dir)


def overrides(options: argparse.Namespace, number: int = 1) -> dict[str, object]:
    """The configuration that `liftbridge dev` stands for, of the server of that number."""
    first, behind = number == 1, number - 1
    http = {} if options.http_port is None else {"http.listen": f"127.0.0.1:{options.http_port + behind}"}
    return {
        **http,
        "nats.embedded": first,
        "clustering.raft.bootstrap.seed": first,
        "clustering.secret": options.secret,
        # Off in a plain server, as in the original; here everything is to be tried.
        "cursors.stream.partitions": 8,
        "activity.stream.enabled": True,
        "data.dir": str(_directory(options, number)),
        "listen": f"127.0.0.1:{options.port + behind}",
        "logging.level": options.level,
    }


def program() -> str:
    """How to start this program from another terminal in the same directory: as it was started here."""
    name = Path(sys.argv[0])
    if name.name != "liftbridge":
        return f"{sys.executable} -m liftbridge.cli.main"
    on_path = shutil.which("liftbridge")
    return "liftbridge" if on_path and Path(on_path).resolve() == name.resolve() else str(name)


def welcome(addresses: Addresses, options: argparse.Namespace) -> str:
    """What is printed when the server is up."""
    server = "" if addresses.grpc_port == 9292 else f" --server {addresses.grpc_host}:{addresses.grpc_port}"
    liftbridge = program()
    host, port = addresses.grpc_host, addresses.grpc_port
    served = ", ".join(f"{host}:{each}" for each in range(port, port + options.nodes))
    replicas = " --replication-factor 3" if options.nodes >= 3 else ""
    return f"""
liftbridge is up
    gRPC   {served}
    NATS   {", ".join(addresses.nats)}
    data   {options.data_dir}

Try, in another terminal:
    {liftbridge} stream create greetings --subject hello.world{replicas}{server}
    {liftbridge} publish hello.world 'Good morning'{server}
    {liftbridge} subscribe greetings{server}

Ctrl-C stops the server; what it has recorded stays.
"""
