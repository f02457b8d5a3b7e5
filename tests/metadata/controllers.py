"""Controllers of several servers in one process: real journals, and what they say goes as bytes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio
from journals import CLUSTER

from liftbridge.broker.controller import METADATA_DIRECTORY, Controller
from liftbridge.broker.forwarding import PROPOSE, LostError, UnreachableError
from liftbridge.broker.identity import DataDirectory
from liftbridge.broker.journal import Journal
from liftbridge.raft import (
    Entry,
    EntryKind,
    Members,
    Options,
    decode_message,
    encode_members,
    encode_message,
)

NOW = 1_700_000_000_000_000_000
OPTIONS = Options(retained_entries=8)
TICK_SECONDS = 0.02


class Controllers:
    """Servers by the numbers of their nodes.

    Attributes:
        running: those that run.
        cut: those that nobody reaches, and who reach nobody.
        swallow: whose answers to a proposal are lost, once for each time that it is named.
    """

    def __init__(self, directory: Path, nursery: trio.Nursery) -> None:
        self.directory = directory
        self.running: dict[int, Controller] = {}
        self.cut: set[int] = set()
        self.swallow: list[int] = []
        self._nursery = nursery
        self._data: dict[int, DataDirectory] = {}
        self._scopes: dict[int, trio.CancelScope] = {}

    def create(self, name: int, voters: list[int]) -> None:
        """Make the data directory of a server that is one of the first voters."""
        path = self.directory / f"node{name}"
        data = DataDirectory.open(path, f"node{name}")
        members = Entry(1, 1, EntryKind.MEMBERS, encode_members(Members(frozenset(voters))))
        Journal.create(path / METADATA_DIRECTORY, CLUSTER, name, entries=[members]).close()
        data.close()

    async def start(self, name: int) -> Controller:
        data = self._data[name] = DataDirectory.open(self.directory / f"node{name}")
        controller = self.running[name] = await Controller.start(
            data,
            namespace="test",
            bootstrap=False,
            clock=lambda: NOW,
            snapshot_entries=16,
            send=self._send,
            links=_Links(self, name),
            options=OPTIONS,
        )
        scope = self._scopes[name] = trio.CancelScope()
        self._nursery.start_soon(self._run, controller, scope)
        return controller

    async def stop(self, name: int) -> None:
        """End a server as a crash would."""
        self._scopes[name].cancel()
        await self.running.pop(name).close()
        self._data.pop(name).close()

    async def _run(self, controller: Controller, scope: trio.CancelScope) -> None:
        with scope:
            await controller.consensus.run(tick_seconds=TICK_SECONDS)

    def reaches(self, source: int, target: int) -> bool:
        return source not in self.cut and target not in self.cut and target in self.running

    def _send(self, message) -> None:
        if self.reaches(message.source, message.target):
            self._nursery.start_soon(self._arrive, message.target, encode_message(message))

    async def _arrive(self, name: int, data: bytes) -> None:
        if name in self.running:
            self.running[name].consensus.deliver(decode_message(data))

    async def leader(self) -> int:
        """Whoever decides, of those that are not cut off."""
        while True:
            for name, controller in self.running.items():
                if controller.is_leader and name not in self.cut:
                    return name
            await trio.sleep(TICK_SECONDS)

    async def follower(self) -> int:
        """Whoever does not decide and knows who does, of those that are not cut off."""
        while True:
            leader = await self.leader()
            for name, controller in self.running.items():
                if name != leader and name not in self.cut and controller.consensus.core.leader == leader:
                    return name
            await trio.sleep(TICK_SECONDS)


class _Links:
    """The way of one server to the others."""

    def __init__(self, controllers: Controllers, own: int) -> None:
        self._controllers = controllers
        self._own = own

    async def ask(self, node: int, kind: str, payload: bytes) -> bytes:
        controllers = self._controllers
        await trio.lowlevel.checkpoint()
        if not controllers.reaches(self._own, node):
            raise UnreachableError
        controller = controllers.running[node]
        answer = await (
            controller.answer_propose(payload) if kind == PROPOSE else controller.answer_read(payload)
        )
        if kind == PROPOSE and node in controllers.swallow:
            controllers.swallow.remove(node)
            raise LostError
        if not controllers.reaches(node, self._own):
            raise LostError
        return answer


@asynccontextmanager
async def controllers_of(directory: Path, count: int = 3) -> AsyncIterator[Controllers]:
    with trio.fail_after(120):
        async with trio.open_nursery() as nursery:
            controllers = Controllers(directory, nursery)
            names = list(range(1, count + 1))
            for name in names:
                controllers.create(name, names)
                await controllers.start(name)
            yield controllers
            for name in list(controllers.running):
                await controllers.stop(name)
            nursery.cancel_scope.cancel()
