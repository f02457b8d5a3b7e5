"""What a data link between two brokers costs: batches and MiB for a second of processor time, at both ends.

    python benchmarks/links.py [--tls] [--seconds 3]

Leader and follower are processes of their own, each measures its own processor time. The leader sends from
memory and the follower drops what comes, so this is the link alone: codec, gRPC, HTTP/2, sockets. Batches of
a few sizes; the smallest is a message published by itself, the largest a follower that catches up.

A round trip is one batch, and the statement that acknowledges it, with nothing else on the way.
"""

from __future__ import annotations

import argparse
import logging
import ssl
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

import trio

from liftbridge.broker.peers import FollowLink, LeadLink, Own, Peers
from liftbridge.replication.messages import Batch, Data, Statement
from liftbridge.rpc import RpcServer

SIZES = (200, 4096, 65_536, 1 << 20)
CLUSTER, STREAM = uuid.UUID(int=1), uuid.UUID(int=2)
SECRET = b"of no importance"
KEYS = [(STREAM, number) for number in range(16)]


class Whereabouts:
    """The leader's address."""

    def __init__(self, port: int) -> None:
        self.port = port

    def by_node(self, node: int) -> None:
        return None

    def by_server(self, server_id: str) -> list[tuple[str, int]]:
        return [("127.0.0.1", self.port)]

    def anybody(self) -> list[str]:
        return []


def peers(number: int, port: int, tls: ssl.SSLContext | None) -> Peers:
    """Those of one broker."""
    own = Own(f"s{number}", number, CLUSTER, uuid.uuid4())

    async def answer(server_id: str, kind: str, payload: bytes) -> bytes:
        return payload

    return Peers(
        lambda: own,
        secret=SECRET,
        ssl_context=tls,
        whereabouts=Whereabouts(port),
        deliver=lambda message: None,
        answer=answer,
    )


async def follow(port: int, directory: str) -> None:
    """The follower's process: state everything that has come at once."""
    tls = None
    if directory:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        tls.load_verify_locations(Path(directory) / "ca.pem")

    async def session(link: FollowLink) -> None:
        for key in KEYS:
            link.send(key, Statement("s1", 1, 1, 1, 0, 1, 0, 0))
        while True:
            for key, said, payload in await link.receive():
                assert isinstance(said, Data)
                if said.high_watermark == 1:  # a measurement has ended: the time goes with the statement
                    used = int(time.process_time() * 1e6)
                    link.send(key, Statement("s1", 1, 1, 1, 0, 1, used, 0))
                elif said.batches:
                    link.dealt_with(len(payload))
                    end = said.batches[-1].next_offset
                    link.send(key, Statement("s1", 1, 1, 1, end, 1, 0, 0))

    await peers(1, port, tls).follow("s2", session)


class Leader:
    """The leader's end, and what it measures."""

    def __init__(self, link: LeadLink) -> None:
        self.link = link
        self.offsets = dict.fromkeys(KEYS, 0)

    async def their_time(self) -> float:
        """The follower's processor time, when all that was sent has been dealt with."""
        await self.link.send_data(KEYS[0], Data(1, 1, (), 1, 0), b"")
        while True:
            for _, statement in await self.link.receive():
                if statement.synced_offset:
                    await self.link.send_data(KEYS[0], Data(1, 1, (), 0, 0), b"")
                    return statement.synced_offset / 1e6

    def _data(self, key: tuple[uuid.UUID, int], size: int) -> Data:
        first = self.offsets[key]
        self.offsets[key] = first + 1
        return Data(1, 1, (Batch(first, first + 1, 1, size),), 0, 0)

    async def stream(self, size: int, seconds: float) -> tuple[int, float, float, float]:
        """Send as fast as credit comes; returns batches, wall seconds, own and the follower's processor
        seconds."""
        turns, payload = self.link.turns, bytes(size)
        theirs, own, begin = await self.their_time(), time.process_time(), time.perf_counter()
        count = 0
        for key in KEYS:
            turns.offer(key)
        while time.perf_counter() < begin + seconds:
            turn = turns.next()
            if turn is None:
                await self.link.receive()
                continue
            key = turn[0]
            await self.link.send_data(key, self._data(key, size), payload)
            turns.sent(key, size, more=True)
            count += 1
        for key in KEYS:
            turns.withdraw(key)
        theirs = await self.their_time() - theirs
        return count, time.perf_counter() - begin, time.process_time() - own, theirs

    async def round_trips(self, seconds: float) -> tuple[int, float, float, float]:
        """One batch at a time."""
        payload = bytes(200)
        theirs, own, begin = await self.their_time(), time.process_time(), time.perf_counter()
        count = 0
        while time.perf_counter() < begin + seconds:
            await self.link.send_data(KEYS[0], self._data(KEYS[0], 200), payload)
            while not any(key == KEYS[0] for key, _ in await self.link.receive()):
                pass
            count += 1
        wall, used = time.perf_counter() - begin, time.process_time() - own
        return count, wall, used, await self.their_time() - theirs


async def lead(directory: str, seconds: float) -> None:
    """The leader's process."""
    tls = server_tls = None
    if directory:
        server_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server_tls.load_cert_chain(Path(directory) / "server.pem")
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    own = peers(2, 0, tls)
    async with trio.open_nursery() as nursery:

        async def accept(link: LeadLink) -> None:
            known = 0
            while known < len(KEYS):
                known += len(await link.receive())
            leader = Leader(link)
            print(f"{'batch':>12} {'batches/s':>10} {'MiB/s':>8} | for a CPU second:", end="")
            print(f" {'leader':>18} {'follower':>18}")
            for size in SIZES:
                show(f"{size} B", size, *await leader.stream(size, seconds))
            show("round trip", 200, *await leader.round_trips(seconds))
            nursery.cancel_scope.cancel()

        own.lead(accept)
        server = RpcServer([own.service], ssl_context=server_tls)
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        await nursery.start(server.serve, listeners)
        port = listeners[0].socket.getsockname()[1]
        command = [sys.executable, __file__, "--follow", str(port), "--directory", directory]
        await nursery.start(trio.run_process, command)


def show(what: str, size: int, count: int, wall: float, own: float, theirs: float) -> None:
    """A line of the table."""
    mib = count * size / (1 << 20)
    ends = " ".join(f"{count / used:9.0f} {mib / used:4.0f} MiB" for used in (own, theirs))
    print(f"{what:>12} {count / wall:10.0f} {mib / wall:8.1f} | {'':17} {ends}", flush=True)


def issue(directory: str) -> None:
    """Certificates for this run."""
    import trustme

    ca = trustme.CA()
    issued = ca.issue_cert("127.0.0.1")
    ca.cert_pem.write_to_path(str(Path(directory) / "ca.pem"))
    issued.private_key_and_cert_chain_pem.write_to_path(str(Path(directory) / "server.pem"))


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description="Measure a data link between two brokers.")
    parser.add_argument("--tls", action="store_true", help="encrypt the link")
    parser.add_argument("--seconds", type=float, default=3.0, help="for each line")
    parser.add_argument("--follow", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--directory", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    if arguments.follow:
        trio.run(follow, arguments.follow, arguments.directory)
        return
    with tempfile.TemporaryDirectory() as directory:
        if arguments.tls:
            issue(directory)
        trio.run(lead, directory if arguments.tls else "", arguments.seconds)


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        sys.exit(f"the follower has failed: {error}")
