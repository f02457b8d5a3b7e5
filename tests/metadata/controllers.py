"""Controllers of several servers in one process: real journals, and what they say goes as bytes."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio
from journals import CLUSTER

from liftbridge.broker.controller import Controller
from liftbridge.broker.forwarding import PROPOSE, READ, REGISTER, LostError, UnreachableError
from liftbridge.broker.founding import METADATA_DIRECTORY, Join, found
from liftbridge.broker.identity import DataDirectory
from liftbridge.broker.journal import Journal
from liftbridge.broker.membership import Membership
from liftbridge.broker.registration import Registration
from liftbridge.metadata.broker_operations import Ended, RegisterBroker, UnfenceBroker
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
        self._roles: dict[int, list[trio.CancelScope]] = {}
        self._names: dict[int, int] = {}  # by the number of the node, where it is another one

    def create(self, name: int, voters: list[int]) -> None:
        """Make the data directory of a server that is one of the first voters."""
        path = self.directory / f"node{name}"
        data = DataDirectory.open(path, f"node{name}")
        members = Entry(1, 1, EntryKind.MEMBERS, encode_members(Members(frozenset(voters))))
        Journal.create(path / METADATA_DIRECTORY, CLUSTER, name, entries=[members]).close()
        data.close()

    def create_joining(self, name: int) -> None:
        """Make the data directory of a server that belongs to the cluster, and is no member yet. Its node has
        a number of its own making."""
        data = DataDirectory.open(self.directory / f"node{name}", f"node{name}")
        found(data, Join(CLUSTER, ()))
        data.close()

    async def register(self, name: int, incarnation: int, **changes: object) -> Registration:
        """Have a server register, and look after the members when it leads."""
        controller = self.running[name]
        node = controller.consensus.core.node_id
        record = RegisterBroker(
            f"node{name}", uuid.UUID(int=incarnation), node_id=node, ended=Ended.CLEAN, **changes
        )
        registration = Registration(controller, record)
        scope = self._scopes[name]
        membership = Membership(controller.consensus, controller.state, 0)
        for role in (registration, membership):
            self._nursery.start_soon(self._run_role, role, scope)
        while registration.epoch is None:
            await trio.sleep(TICK_SECONDS)
        return registration

    async def unfence(self, name: int) -> None:
        """Have a server taken for alive, as its session would."""
        broker = self.running[name].state.brokers[f"node{name}"]
        await self.running[name].propose(UnfenceBroker(broker.id, broker.epoch))

    async def _run_role(self, role, scope: trio.CancelScope) -> None:
        with trio.CancelScope() as own:
            self._roles.setdefault(id(scope), []).append(own)
            await role.run()

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
        self._names[controller.consensus.core.node_id] = name
        scope = self._scopes[name] = trio.CancelScope()
        self._nursery.start_soon(self._run, controller, scope)
        return controller

    async def stop(self, name: int) -> None:
        """End a server as a crash would."""
        for role in self._roles.pop(id(self._scopes[name]), []):
            role.cancel()
        self._scopes[name].cancel()
        await self.running.pop(name).close()
        self._data.pop(name).close()

    async def _run(self, controller: Controller, scope: trio.CancelScope) -> None:
        with scope:
            await controller.consensus.run(tick_seconds=TICK_SECONDS)

    def name_of(self, node: int) -> int:
        return self._names.get(node, 0)

    def reaches(self, source: int, target: int) -> bool:
        return source not in self.cut and target not in self.cut and target in self.running

    def _send(self, message) -> None:
        target = self.name_of(message.target)
        if self.reaches(self.name_of(message.source), target):
            self._nursery.start_soon(self._arrive, target, encode_message(message))

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
                known = controller.consensus.core.leader
                if name != leader and name not in self.cut and known and self.name_of(known) == leader:
                    return name
            await trio.sleep(TICK_SECONDS)


class _Links:
    """The way of one server to the others."""

    def __init__(self, controllers: Controllers, own: int) -> None:
        self._controllers = controllers
        self._own = own

    async def ask(self, node: int, kind: str, payload: bytes) -> bytes:
        return await self._ask(self._controllers.name_of(node), kind, payload)

    async def ask_anybody(self, kind: str, payload: bytes) -> bytes:
        for name in self._controllers.running:
            if name != self._own and self._controllers.reaches(self._own, name):
                return await self._ask(name, kind, payload)
        raise UnreachableError

    async def _ask(self, name: int, kind: str, payload: bytes) -> bytes:
        controllers = self._controllers
        await trio.lowlevel.checkpoint()
        if not controllers.reaches(self._own, name):
            raise UnreachableError
        controller = controllers.running[name]
        handlers = {
            PROPOSE: controller.answer_propose,
            READ: controller.answer_read,
            REGISTER: controller.answer_register,
        }
        answer = await handlers[kind](payload)
        if kind == PROPOSE and name in controllers.swallow:
            controllers.swallow.remove(name)
            raise LostError
        if not controllers.reaches(name, self._own):
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
