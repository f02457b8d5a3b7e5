"""`liftbridge dev`: one server with an embedded NATS and a cluster of its own, on this machine only."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path

from liftbridge.broker.app import Addresses
from liftbridge.broker.config import load
from liftbridge.cli.server import run_server


def parser() -> argparse.ArgumentParser:
    """The command line of `liftbridge dev`."""
    parser = argparse.ArgumentParser(
        prog="liftbridge dev",
        description="Start a server with an embedded NATS server on this machine, to try things out.",
    )
    parser.add_argument("--data-dir", "-d", default="./data", help="where streams are kept (default: ./data)")
    parser.add_argument("--port", "-p", type=int, default=9292, help="gRPC port (default: 9292)")
    parser.add_argument("--nats-port", type=int, default=4222, help="NATS port (default: 4222)")
    parser.add_argument("--http-port", type=int, help="port of metrics and health (default: none)")
    parser.add_argument("--level", "-l", default="warn", help="log level (default: warn)")
    parser.set_defaults(run=_run)
    return parser


def _run(options: argparse.Namespace) -> int:
    return run_server(
        lambda: load(None, overrides(options), os.environ),
        embedded_host="127.0.0.1",
        embedded_port=options.nats_port,
        started=lambda addresses: print(welcome(addresses, options), flush=True),
    )


def overrides(options: argparse.Namespace) -> dict[str, object]:
    """The configuration that `liftbridge dev` stands for."""
    http = {} if options.http_port is None else {"http.listen": f"127.0.0.1:{options.http_port}"}
    return {
        **http,
        "nats.embedded": True,
        "clustering.raft.bootstrap.seed": True,
        # Off in a plain server, as in the original; here everything is to be tried.
        "cursors.stream.partitions": 8,
        "activity.stream.enabled": True,
        "data.dir": options.data_dir,
        "listen": f"127.0.0.1:{options.port}",
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
    return f"""
liftbridge is up
    gRPC   {addresses.grpc_host}:{addresses.grpc_port}
    NATS   {", ".join(addresses.nats)}
    data   {options.data_dir}

Try, in another terminal:
    {liftbridge} stream create greetings --subject hello.world{server}
    {liftbridge} publish hello.world 'Good morning'{server}
    {liftbridge} subscribe greetings{server}

Ctrl-C stops the server; what it has recorded stays.
"""
