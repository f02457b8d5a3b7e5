"""A real liftbridge server as a child process, for tests of every kind.

Ports are chosen by the system at the first start and kept over restarts, as clients remember them.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import grpc
import yaml

from liftbridge.nats.embedded import find_nats_server
from liftbridge.proto import api_pb2

START_SECONDS = 30.0
SERVING = re.compile(r"serving clients on ([\d.]+):(\d+) as server (\S+)")
NATS_UP = re.compile(r"the embedded NATS server listens on (nats://\S+)")

METHODS = {
    "CreateStream": ("unary_unary", "CreateStreamRequest", "CreateStreamResponse"),
    "DeleteStream": ("unary_unary", "DeleteStreamRequest", "DeleteStreamResponse"),
    "PauseStream": ("unary_unary", "PauseStreamRequest", "PauseStreamResponse"),
    "SetStreamReadonly": ("unary_unary", "SetStreamReadonlyRequest", "SetStreamReadonlyResponse"),
    "Subscribe": ("unary_stream", "SubscribeRequest", "Message"),
    "FetchMetadata": ("unary_unary", "FetchMetadataRequest", "FetchMetadataResponse"),
    "FetchPartitionMetadata": (
        "unary_unary",
        "FetchPartitionMetadataRequest",
        "FetchPartitionMetadataResponse",
    ),
    "Publish": ("unary_unary", "PublishRequest", "PublishResponse"),
    "PublishAsync": ("stream_stream", "PublishRequest", "PublishResponse"),
    "PublishToSubject": ("unary_unary", "PublishToSubjectRequest", "PublishToSubjectResponse"),
    "SetCursor": ("unary_unary", "SetCursorRequest", "SetCursorResponse"),
    "FetchCursor": ("unary_unary", "FetchCursorRequest", "FetchCursorResponse"),
    "JoinConsumerGroup": ("unary_unary", "JoinConsumerGroupRequest", "JoinConsumerGroupResponse"),
    "LeaveConsumerGroup": ("unary_unary", "LeaveConsumerGroupRequest", "LeaveConsumerGroupResponse"),
    "FetchConsumerGroupAssignments": (
        "unary_unary",
        "FetchConsumerGroupAssignmentsRequest",
        "FetchConsumerGroupAssignmentsResponse",
    ),
    "ReportConsumerGroupCoordinator": (
        "unary_unary",
        "ReportConsumerGroupCoordinatorRequest",
        "ReportConsumerGroupCoordinatorResponse",
    ),
}


def freeze(pid: int) -> None:
    """SIGSTOP a child process and wait until it has stopped; until then it still answers."""
    os.kill(pid, signal.SIGSTOP)
    os.waitid(os.P_PID, pid, os.WSTOPPED)


class Api:
    """grpcio stubs of proto.API: `api.CreateStream(request, timeout=...)`."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.channel = channel
        for name, (kind, request, response) in METHODS.items():
            method = getattr(channel, kind)(
                f"/proto.API/{name}",
                request_serializer=getattr(api_pb2, request).SerializeToString,
                response_deserializer=getattr(api_pb2, response).FromString,
            )
            setattr(self, name, method)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)


class Server:
    """`liftbridge -c FILE` with a configuration of its own, and an embedded NATS server unless told
    otherwise.

    `config` is what goes into the YAML file on top of the defaults of this harness; `nats` the content of the
    embedded NATS server's own file, `prefix` a command that becomes the server. Use `start`, then `stop`
    (SIGTERM, must end with 0) or `kill` (SIGKILL); as a context manager it starts and, whatever happens,
    leaves nothing running.
    """

    def __init__(
        self,
        directory: Path,
        config: dict[str, Any] | None = None,
        *,
        embedded: bool = True,
        nats: str = "",
        environment: dict[str, str] | None = None,
        prefix: tuple[str, ...] = (),
    ) -> None:
        self.directory = directory
        self.data_dir = directory / "data"
        self.config = {"listen": "127.0.0.1:0", "clustering.raft.bootstrap.seed": True, **(config or {})}
        self.embedded = embedded
        self.nats_config = nats
        self.environment = environment or {}
        self.prefix = prefix
        self.process: subprocess.Popen[str] | None = None
        self.grpc_port = 0
        self.nats_url = ""
        self.server_id = ""
        self.lines: list[str] = []
        self._up = threading.Event()
        self._channels: list[grpc.Channel] = []

    @property
    def log(self) -> str:
        """Everything the server has printed since the first start."""
        return "".join(self.lines)

    @property
    def address(self) -> str:
        """host:port of the gRPC API."""
        return f"127.0.0.1:{self.grpc_port}"

    @property
    def pid(self) -> int:
        """The process id of the running server."""
        assert self.process is not None, "the server does not run"
        return self.process.pid

    @property
    def nats_pid(self) -> int:
        """The process id of the embedded NATS server."""
        (ports,) = (self.data_dir / "nats" / "ports").glob("*.ports")
        return int(ports.stem.rpartition("_")[2])

    def command(self) -> list[str]:
        """The command line, with the files it needs written."""
        self.directory.mkdir(parents=True, exist_ok=True)
        config = dict(self.config)
        if self.grpc_port:
            config["listen"] = self.address
        if self.embedded:
            port = self.nats_url.rpartition(":")[2] or "-1"
            nats_file = self.directory / "nats.conf"
            nats_file.write_text(f"host: 127.0.0.1\nport: {port}\nmax_pending: 512MB\n{self.nats_config}\n")
            config["nats.embedded.config"] = str(nats_file)
        file = self.directory / "liftbridge.yaml"
        file.write_text(yaml.safe_dump(config))
        return [
            *self.prefix,
            sys.executable,
            "-m",
            "liftbridge.cli.main",
            "-c",
            str(file),
            "-d",
            str(self.data_dir),
        ]

    def spawn(self) -> None:
        """Start the process without waiting for it to serve."""
        assert self.process is None, "the server runs already"
        up = self._up = threading.Event()
        self.process = subprocess.Popen(
            self.command(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **self.environment},
            start_new_session=True,
        )
        threading.Thread(target=self._read, args=(self.process, up), daemon=True).start()

    def start(self) -> Server:
        """Start and wait until the server serves clients."""
        self.spawn()
        return self.wait_up()

    def wait_up(self) -> Server:
        """Wait until a spawned server serves clients."""
        if not self._up.wait(START_SECONDS) or self.process is None or self.process.poll() is not None:
            self.close()
            raise AssertionError(f"the server did not start:\n{self.log}")
        return self

    def _read(self, process: subprocess.Popen[str], up: threading.Event) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self.lines.append(line)
            if found := SERVING.search(line):
                self.grpc_port, self.server_id = int(found[2]), found[3]
                up.set()
            if found := NATS_UP.search(line):
                self.nats_url = found[1]
        process.stdout.close()
        up.set()  # it ended: whoever waits for it to come up finds out

    def wait_log(self, text: str, seconds: float = 30.0) -> None:
        """Wait until the server has printed `text`."""
        deadline = time.monotonic() + seconds
        while text not in self.log:
            assert time.monotonic() < deadline, f"{text!r} never came; the log is:\n{self.log}"
            time.sleep(0.01)

    def wait_end(self, seconds: float = 30.0) -> int:
        """Wait for the process to end by itself; returns its exit status."""
        assert self.process is not None
        status = self.process.wait(seconds)
        self.process = None
        return status

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Ask the server to stop; returns its exit status."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.wait_end()

    def kill(self) -> None:
        """kill -9."""
        assert self.process is not None
        self.process.kill()
        self.wait_end()

    def api(self, credentials: grpc.ChannelCredentials | None = None, **options: Any) -> Api:
        """grpcio stubs on a new channel to the server, over TLS with `credentials`."""
        # With connections of its own, a channel does not wait until those to a killed server are tried again.
        options = {"grpc.use_local_subchannel_pool": 1, **options}
        if credentials is None:
            channel = grpc.insecure_channel(self.address, options=list(options.items()))
        else:
            channel = grpc.secure_channel(self.address, credentials, options=list(options.items()))
        self._channels.append(channel)
        return Api(channel)

    def close(self) -> None:
        """Leave nothing running."""
        for channel in self._channels:
            channel.close()
        self._channels.clear()
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()
            self.process.wait(10)
            self.process = None

    def __enter__(self) -> Server:
        return self.start()

    def __exit__(self, *args: object) -> None:
        self.close()


class Nats:
    """A nats-server of its own, for servers that do not embed one. `port` is kept over restarts."""

    def __init__(self, directory: Path, config: str = "", port: int = -1) -> None:
        self.directory = directory
        self.config = config
        self.port = port
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The URL for clients."""
        return f"nats://127.0.0.1:{self.port}"

    def start(self) -> Nats:
        """Start and wait until it has told its port."""
        ports = self.directory / "ports"
        ports.mkdir(parents=True, exist_ok=True)
        for old in ports.iterdir():
            old.unlink()
        file = self.directory / "nats-server.conf"
        file.write_text(f"host: 127.0.0.1\nport: {self.port}\nports_file_dir: {ports}\n{self.config}\n")
        self.process = subprocess.Popen(
            [str(find_nats_server()), "-c", str(file)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + START_SECONDS
        while not (found := [path for path in ports.iterdir() if path.stat().st_size]):
            assert self.process.poll() is None, "nats-server ended at start"
            assert time.monotonic() < deadline, "nats-server told no port"
            time.sleep(0.01)
        self.port = int(yaml.safe_load(found[0].read_text())["nats"][0].rpartition(":")[2])
        return self

    def stop(self, number: int = signal.SIGKILL) -> None:
        """End it, at once unless another signal is given."""
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait(10)
            self.process = None

    def __enter__(self) -> Nats:
        return self.start()

    def __exit__(self, *args: object) -> None:
        self.stop()
