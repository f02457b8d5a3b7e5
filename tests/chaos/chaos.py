"""Real servers under faults, with producers and a reader all the time, and then the checks of `history.py`.

    python tests/chaos/chaos.py [--seed N] [--minutes 5] [--servers 3] [--sync always]

Servers are killed (one, several, all at once), stopped and frozen, for shorter and for longer than a session,
and started again. The seed decides which fault comes when; what the machine makes of it is another story each
time. Producers publish with policy ALL through any server; the reader goes on at the leader after every
fault. At the end all servers run, every replica has to be in sync, and the history is checked.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import grpc

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness import Api, Server
from servers import Servers, described, until

from chaos.history import History
from liftbridge.proto import api_pb2

STREAM = "chaos"
PRODUCERS = 3
ATTEMPT_SECONDS = 1.0
FAULTS = ("kill", "kill", "stop", "freeze", "kill two", "kill all")


class Chaos:
    """A run on some servers."""

    def __init__(self, servers: Servers, seed: int) -> None:
        self.history = History()
        self.faults: Counter[str] = Counter()
        self._servers = servers
        self._chance = random.Random(seed)
        self._seed = seed
        self._over = threading.Event()

    # -- clients

    @contextlib.contextmanager
    def _api(self, server: Server) -> Iterator[Api]:
        api = server.api()
        try:
            yield api
        finally:
            api.channel.close()

    def produce(self, number: int) -> None:
        """Publish through one server after the other until it is over."""
        chance, count = random.Random(self._seed * PRODUCERS + number), 0
        while not self._over.is_set():
            server = chance.choice(self._servers.all)
            if server.process is None:
                time.sleep(0.05)
                continue
            with self._api(server) as api, contextlib.suppress(grpc.RpcError):
                for _ in range(50):
                    count += 1
                    value = b"%d-%d" % (number, count)
                    self.history.sends(value)
                    request = api_pb2.PublishRequest(stream=STREAM, value=value, ackPolicy=api_pb2.ALL)
                    ack = api.Publish(request, timeout=ATTEMPT_SECONDS).ack
                    self.history.acks(value, ack.offset)

    def consume(self) -> None:
        """Read on from where it was, wherever that is possible, until it is over."""
        offset = 0
        while not self._over.is_set():
            for server in self._servers.all:
                if server.process is None:
                    continue
                with self._api(server) as api, contextlib.suppress(grpc.RpcError):
                    request = api_pb2.SubscribeRequest(
                        stream=STREAM, startPosition="OFFSET", startOffset=offset
                    )
                    call = api.Subscribe(request, timeout=3 * ATTEMPT_SECONDS)
                    next(call)
                    for message in call:
                        self.history.reads(offset, message.offset, message.value)
                        offset = message.offset + 1

    # -- faults

    def trouble(self, seconds: float) -> None:
        """Faults, one after the other, for so long."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(self._chance.uniform(0.2, 4))
            fault = self._chance.choice(FAULTS)
            self.faults[fault] += 1
            victims = self._chance.sample(self._servers.all, self._number(fault))
            print(
                f"{fault} {', '.join(each.server_id for each in victims)}; {len(self.history.acked)} acked",
                flush=True,
            )
            if fault == "freeze":
                os.kill(victims[0].pid, signal.SIGSTOP)
                time.sleep(self._chance.choice([0.5, 2, 5]))
                os.kill(victims[0].pid, signal.SIGCONT)
                continue
            for victim in victims:
                if fault == "stop":
                    assert victim.stop() == 0
                else:
                    victim.kill()
            time.sleep(self._chance.choice([0, 0.5, 4]))
            for victim in victims:
                victim.spawn()
            for victim in victims:
                victim.wait_up()

    def _number(self, fault: str) -> int:
        return {"kill two": 2, "kill all": len(self._servers.all)}.get(fault, 1)

    # -- the run

    def run(self, seconds: float) -> list[str]:
        """Everything; returns the findings."""
        with self._api(next(self._servers.running())) as api:
            api.CreateStream(
                api_pb2.CreateStreamRequest(
                    name=STREAM,
                    subject=STREAM,
                    replicationFactor=3,
                    minIsr=api_pb2.NullableInt32(value=2),
                ),
                timeout=30,
            )
        threads = [threading.Thread(target=self.produce, args=(number,)) for number in range(PRODUCERS)]
        threads.append(threading.Thread(target=self.consume))
        for thread in threads:
            thread.start()
        try:
            self.trouble(seconds)
            leader = self._servers.leader_of(STREAM)
            until(lambda: len(described(leader.api(), STREAM).isr) == 3)
        finally:
            self._over.set()
            for thread in threads:
                thread.join()
        leader = self._servers.leader_of(STREAM)
        held = [self._servers.named(each) for each in described(leader.api(), STREAM).replicas]
        return self.history.check({each.server_id: self.content(each) for each in held}, leader.server_id)

    def content(self, server: Server) -> dict[int, bytes]:
        """What a replica holds, as far as it is committed there."""
        newest = described(self._servers.leader_of(STREAM).api(), STREAM).newestOffset
        found: dict[int, bytes] = {}
        with self._api(server) as api:
            request = api_pb2.SubscribeRequest(stream=STREAM, startPosition="EARLIEST", readISRReplica=True)
            call = api.Subscribe(request, timeout=60)
            next(call)
            while newest not in found:
                message = next(call)
                found[message.offset] = message.value
            call.cancel()
        return found


def main() -> int:
    """Run as the command line says; the exit status says whether anything was found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--servers", type=int, default=3)
    parser.add_argument("--sync", choices=("never", "interval", "always"), default="always")
    options = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="liftbridge-chaos-"))
    print(f"seed {options.seed}, {options.servers} servers in {directory}")
    servers = Servers(directory, options.servers, {"streams.sync.policy": options.sync})
    with servers:
        chaos = Chaos(servers, options.seed)
        findings = chaos.run(60 * options.minutes)
    logs = {server.server_id: server.log for server in servers.all}
    findings += [f"{server} has failed: see its log" for server, log in logs.items() if "Traceback" in log]
    print(f"{len(chaos.history.acked)} acked, {len(chaos.history.read)} read, faults: {dict(chaos.faults)}")
    if not findings:
        shutil.rmtree(directory)
        print("nothing found")
        return 0
    for server, log in logs.items():
        (directory / f"{server}.log").write_text(log)
    print("\n".join(findings[:20]))
    print(f"{len(findings)} findings; data and logs are in {directory}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
