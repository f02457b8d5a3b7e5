"""The links of one server with all others: who is connected to, who is let in, and what goes over which link.

Every server opens a control link to every other that it knows of, unless that one has opened one already; a
message goes over whichever is open. A data link is opened by the followers' broker, for all the partitions
that it follows from one leader's.

Tasks: `run` owns one for each server that is connected to; `follow` is one; links that others open live in
the tasks of their gRPC calls. Each ends by itself and is begun anew, with growing pauses, at once when the
address has changed.
"""

from __future__ import annotations

import logging
import random
import ssl
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import trio

from liftbridge.broker.forwarding import UnreachableError
from liftbridge.raft import Message
from liftbridge.rpc import RawCall, RawService, StatusCode, rpc_error

from . import bounds
from .control import Answer, ControlLink
from .data import FollowLink, LeadLink
from .greeting import Greeting, check_certificate, check_identity
from .link import Link
from .model import GreetingError, LinkError, Own, Purpose, Reason, Whereabouts
from .pipe import SERVICE, Answered, Dialed, One, dial
from .registry import Registry

logger = logging.getLogger("liftbridge.peers")

_TELL_AGAIN_SECONDS = 30.0
_STATUS = {
    Reason.SECRET: StatusCode.UNAUTHENTICATED,
    Reason.CERTIFICATE: StatusCode.UNAUTHENTICATED,
    Reason.MALFORMED: StatusCode.INVALID_ARGUMENT,
    Reason.NO_CLUSTER: StatusCode.UNAVAILABLE,
    Reason.TWIN: StatusCode.ALREADY_EXISTS,
    Reason.TOO_MANY: StatusCode.RESOURCE_EXHAUSTED,
}


class Peers:
    """The links of this server.

    Arguments:
        own: who this server is; None as long as it belongs to no cluster: then it asks others for theirs, and
            is asked, and nothing else.
        secret: of the cluster, empty for none.
        ssl_context: with which others are connected to, None for plaintext. Without a secret it must check
            certificates and hosts.
        whereabouts: where others are.
        deliver: takes the messages of the consensus that are for this server.
        answer: answers a question of another server: its id, the kind of the question, and its payload. An
            UnansweredError says that nothing was done; after any other error the asking server has to take it
            that something may have been.
        window: bytes of credit that this server gives as a follower.

    Attributes:
        dropped: messages of the consensus that were not sent, as there was no link or its queue was full.
        refusals: greetings that have failed, by reason, those of others and own ones.
    """

    def __init__(
        self,
        own: Callable[[], Own | None],
        *,
        secret: bytes,
        ssl_context: ssl.SSLContext | None,
        whereabouts: Whereabouts,
        deliver: Callable[[Message], None],
        answer: Answer,
        window: int = bounds.WINDOW,
    ) -> None:
        assert bounds.MIN_WINDOW <= window <= bounds.MAX_WINDOW, window
        self.dropped = 0
        self.refusals: Counter[Reason] = Counter()
        self._own = own
        self._secret = secret
        self._whereabouts = whereabouts
        self._deliver = deliver
        self._answer = answer
        self._window = window
        self._accept: Callable[[LeadLink], Awaitable[None]] | None = None
        self._links = Registry()
        self._greetings: Counter[str] = Counter()  # by address, those that have begun
        self._demanded: dict[str, float] = {}  # when something was to be sent last, by server id
        self._demand = trio.Event()
        self._dialing: set[str] = set()
        self._told: dict[tuple[str, Reason], float] = {}
        self._tls = ssl_context
        if ssl_context is not None:
            self.use_tls(ssl_context)
        self._to_be_warned_of = ssl_context is None and not secret

    @property
    def service(self) -> RawService:
        """What `RpcServer` serves beside the API."""
        return RawService(
            SERVICE,
            {purpose.value: partial(self._answer_call, purpose) for purpose in Purpose},
            bounds.MAX_PIECE + 1,
        )

    @property
    def linked(self) -> Sequence[str]:
        """Ids of the servers to which links are open."""
        return tuple(self._links.servers)

    def use_tls(self, ssl_context: ssl.SSLContext) -> None:
        """Connect with another context from now on."""
        assert self._tls is not None, "links do not change from plaintext to TLS"
        assert self._secret or (
            ssl_context.verify_mode is ssl.CERT_REQUIRED and ssl_context.check_hostname
        ), "without a secret certificates are all that tells who a server is"
        ssl_context.set_alpn_protocols(["h2"])
        self._tls = ssl_context

    # The consensus.

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep control links to the others until cancelled."""
        async with trio.open_nursery() as nursery:
            task_status.started()
            while True:
                for server_id in self._wanted():
                    if server_id not in self._dialing and len(self._dialing) < bounds.MAX_DIALED:
                        self._dialing.add(server_id)
                        nursery.start_soon(self._keep, server_id)
                self._demand = trio.Event()
                with trio.move_on_after(bounds.LOOK_SECONDS):
                    await self._demand.wait()

    def _wanted(self) -> list[str]:
        """Servers that control links are kept to; none while this one belongs to no cluster."""
        if self._own() is None:
            return []
        since = trio.current_time() - bounds.DEMAND_SECONDS
        self._demanded = {server: when for server, when in self._demanded.items() if when > since}
        return list(dict.fromkeys((*self._demanded, *self._whereabouts.anybody())))

    async def _keep(self, server_id: str) -> None:
        """Keep a control link to a server for as long as that is wanted."""
        try:
            pause = _Pause()
            while True:
                while self._links.control_of(server_id) is not None:
                    await self._links.wait_changed()
                    pause.begin_anew()
                own = self._own()
                if own is None or server_id not in self._wanted():
                    return
                addresses = self._whereabouts.by_server(server_id)
                if await self._dial(server_id, addresses, partial(self._control, own)):
                    pause.begin_anew()
                await pause.wait(partial(self._have_changed, server_id, addresses))
        finally:
            self._dialing.discard(server_id)

    def _have_changed(self, server_id: str, addresses: Sequence[tuple[str, int]]) -> bool:
        return self._whereabouts.by_server(server_id) != addresses

    async def _control(self, own: Own, server_id: str, pipe: Dialed) -> None:
        """Greet a server and keep a control link to it until it is lost."""
        messages, other = await self._greet(own, server_id, pipe, Purpose.CONTROL)
        link = ControlLink(messages, own, other, self._deliver, self._answer)
        await self._run(link, answered=False)

    def send(self, message: Message) -> None:
        """Send a message of the consensus to its target. It is dropped, and counted, when there is no link to
        that or too much waits on it."""
        link = self._links.control(message.target)
        if link is None:
            self.dropped += 1
            self._want(message.target)
        elif not link.send(message):
            self.dropped += 1

    def _want(self, node: int) -> None:
        """Have a node connected to."""
        found = self._whereabouts.by_node(node)
        if found is not None:
            self._demanded[found[0]] = trio.current_time()
            self._demand.set()

    async def ask(self, node: int, kind: str, payload: bytes) -> bytes:
        """The answer of the server with that node to a question. Waits a while for a link to it.

        Raises UnreachableError: it was not asked, or has done nothing; LostError: it may have been asked.
        """
        with trio.move_on_after(bounds.LINK_WAIT_SECONDS):
            while (link := self._links.control(node)) is None:
                self._want(node)
                await self._links.wait_changed()
        if link is None:
            raise UnreachableError(f"there is no link to node {node:#x}")
        return await link.ask(kind, payload)

    async def ask_anybody(self, kind: str, payload: bytes) -> bytes:
        """The answer of one of `Whereabouts.anybody()`. Raises as `ask` does."""
        link: ControlLink | None = None
        with trio.move_on_after(bounds.LINK_WAIT_SECONDS):
            while (link := self._any_link()) is None:
                self._demand.set()
                await self._links.wait_changed()
        if link is None:
            raise UnreachableError("there is no link to any server of the cluster")
        return await link.ask(kind, payload)

    def _any_link(self) -> ControlLink | None:
        links = [self._links.control_of(server_id) for server_id in self._whereabouts.anybody()]
        open_ones = [link for link in links if link is not None]
        return random.choice(open_ones) if open_ones else None  # noqa: S311  # spreads load, no secret

    async def cluster_of(self, server_id: str) -> uuid.UUID | None:
        """Connect to a server and ask for its cluster; None when it belongs to none or cannot be asked."""
        found: list[Own | None] = []

        async def ask(server_id: str, pipe: Dialed) -> None:
            _, other = await self._greeted(self._own(), server_id, pipe, Purpose.CLUSTER)
            found.append(other)

        await self._dial(server_id, self._whereabouts.by_server(server_id), ask, Purpose.CLUSTER)
        return found[0].cluster_id if found and found[0] is not None else None

    # Replication.

    async def follow(self, leader: str, session: Callable[[FollowLink], Awaitable[None]]) -> None:
        """Keep a data link to the broker of leaders until cancelled.

        `session` is run for each link, and cancelled when that is lost; when it returns, the link is ended
        and made anew. What it raises, except LinkError, goes on to the caller.
        """
        pause = _Pause()
        while True:
            addresses = self._whereabouts.by_server(leader)
            own = self._own()
            if own is not None:
                work = partial(self._follow, own, session)
                if await self._dial(leader, addresses, work, Purpose.DATA):
                    pause.begin_anew()
            await pause.wait(partial(self._have_changed, leader, addresses))

    async def _follow(
        self, own: Own, session: Callable[[FollowLink], Awaitable[None]], leader: str, pipe: Dialed
    ) -> None:
        messages, other = await self._greet(own, leader, pipe, Purpose.DATA)
        link = FollowLink(messages, own, other, self._window)
        await self._run(link, partial(session, link), answered=False)

    def lead(self, accept: Callable[[LeadLink], Awaitable[None]]) -> None:
        """Who serves the data links that followers open: is called for each in a task of its own, which is
        cancelled when the link is lost. When it returns the link is ended."""
        self._accept = accept

    # Connecting.

    async def _dial(
        self,
        server_id: str,
        addresses: Sequence[tuple[str, int]],
        work: Callable[[str, Dialed], Awaitable[None]],
        purpose: Purpose = Purpose.CONTROL,
    ) -> bool:
        """Connect to a server at one address after the other, until one was linked; whether one was."""
        for address in addresses:
            if await self._dial_one(server_id, address, work, purpose):
                return True
        return False

    async def _dial_one(
        self,
        server_id: str,
        address: tuple[str, int],
        work: Callable[[str, Dialed], Awaitable[None]],
        purpose: Purpose,
    ) -> bool:
        try:
            await dial(address, self._tls, purpose, partial(work, server_id))
        except LinkError as error:
            logger.debug("no link to server %s at %s:%d: %s", server_id, *address, error)
        except GreetingError as error:
            self._note(server_id, error)
        else:
            return True
        return False

    async def _greet(self, own: Own, server_id: str, pipe: Dialed, purpose: Purpose) -> tuple[One, Own]:
        messages, other = await self._greeted(own, server_id, pipe, purpose)
        assert other is not None, "the greeting has seen to it"
        check_identity(own, other)
        self._links.check(other)
        return messages, other

    async def _greeted(
        self, own: Own | None, server_id: str, pipe: Dialed, purpose: Purpose
    ) -> tuple[One, Own | None]:
        messages = One(pipe)
        with trio.move_on_after(bounds.GREETING_SECONDS):
            try:
                other = await Greeting(messages, purpose, own, self._secret).connect(server_id, self._window)
            except LinkError as error:
                if error.refused:
                    raise GreetingError(Reason.REFUSED, str(error)) from error
                raise
            return messages, other
        raise LinkError(f"server {server_id} does not greet")

    # Being connected to.

    async def _answer_call(self, purpose: Purpose, call: RawCall) -> None:
        """Serve a call of another server, or of who says to be one."""
        address = call.context.peer.rpartition(":")[0]
        self._greetings[address] += 1
        try:
            self._check_greetings(address)
            link = await self._let_in(purpose, call)
            if link is None:
                return
            self._links.make_room(link)  # others may have been let in since it was looked at
        except GreetingError as error:
            self._note(address, error)
            raise rpc_error(_STATUS.get(error.reason, StatusCode.FAILED_PRECONDITION), str(error)) from error
        except LinkError as error:
            raise rpc_error(StatusCode.CANCELLED, str(error)) from error
        finally:
            self._greetings[address] -= 1
            if not self._greetings[address]:
                del self._greetings[address]
        call.uncount()
        work = None
        if isinstance(link, LeadLink):
            assert self._accept is not None, "it would not have been let in"
            work = partial(self._accept, link)
        await self._run(link, work, answered=True)
        raise rpc_error(StatusCode.UNAVAILABLE, f"the link is over: {link.lost}")

    def _check_greetings(self, address: str) -> None:
        """Whether not too many greet at a time, so that a stranger cannot keep others out."""
        all_of_them, same = self._greetings.total(), self._greetings[address]
        if all_of_them > bounds.MAX_GREETINGS or same > bounds.MAX_GREETINGS_PER_ADDRESS:
            raise GreetingError(
                Reason.TOO_MANY, f"{all_of_them - 1} servers greet at this moment, {same - 1} of {address}"
            )

    async def _let_in(self, purpose: Purpose, call: RawCall) -> Link | None:
        """Greet who has called; returns the link, None if there is to be none. Raises GreetingError."""
        own = self._own()
        if purpose is not Purpose.CLUSTER and own is None:
            raise GreetingError(Reason.NO_CLUSTER, "this server belongs to no cluster yet")
        if purpose is Purpose.DATA and self._accept is None:
            raise GreetingError(Reason.NO_CLUSTER, "this server leads no partitions yet")
        messages = One(Answered(call))
        greeting = Greeting(messages, purpose, own, self._secret)
        with trio.move_on_after(bounds.GREETING_SECONDS):
            other = await greeting.answer()
            if purpose is Purpose.CLUSTER:
                await greeting.welcome()
                return None
            assert own is not None, purpose
            assert other is not None, purpose
            self._check(own, other, call)
            link: Link
            if purpose is Purpose.DATA:
                if not bounds.MIN_WINDOW <= greeting.window <= bounds.MAX_WINDOW:
                    raise GreetingError(Reason.MALFORMED, f"a window of {greeting.window} bytes")
                link = LeadLink(messages, other, greeting.window, bounds.QUANTUM)
            else:
                link = ControlLink(messages, own, other, self._deliver, self._answer)
            self._links.make_room(link)
            await greeting.welcome()
            return link
        raise GreetingError(Reason.MALFORMED, f"no greeting within {bounds.GREETING_SECONDS:g} seconds")

    def _check(self, own: Own, other: Own, call: RawCall) -> None:
        """Whether who has proved to be `other` may be linked. Raises GreetingError."""
        if self._tls is not None and not self._secret:
            addresses = self._whereabouts.by_server(other.server_id)
            check_certificate(call.context.peer_certificate, addresses, other.server_id)
        check_identity(own, other)
        self._links.check(other)

    # Both.

    async def _run(
        self, link: Link, work: Callable[[], Awaitable[None]] | None = None, *, answered: bool
    ) -> None:
        self._links.add(link, answered=answered)
        kind = "control" if isinstance(link, ControlLink) else "data"
        logger.info("%s link with server %s", kind, link.other.server_id)
        if self._to_be_warned_of:
            self._to_be_warned_of = False
            logger.warning(
                "servers of this cluster do not prove to each other who they are: set clustering.secret, or "
                "use TLS with client certificates, unless nobody else can reach their ports"
            )
        try:
            await link.run(work)
        finally:
            self._links.remove(link, answered=answered)
            logger.info("%s link with server %s is over: %s", kind, link.other.server_id, link.lost)

    def _note(self, who: str, error: GreetingError) -> None:
        """Count and log a greeting that has failed; the same not too often."""
        self.refusals[error.reason] += 1
        now = trio.current_time()
        if self._told.get((who, error.reason), -_TELL_AGAIN_SECONDS) + _TELL_AGAIN_SECONDS <= now:
            self._told = {key: at for key, at in self._told.items() if at + _TELL_AGAIN_SECONDS > now}
            if len(self._told) >= bounds.MAX_TOLD:
                return
            self._told[who, error.reason] = now
            quiet = error.reason is Reason.NO_CLUSTER
            logger.log(logging.INFO if quiet else logging.WARNING, "no link with %s: %s", who, error)


class _Pause:
    """Between two attempts to connect: longer each time, with jitter."""

    def __init__(self) -> None:
        self._next = bounds.PAUSE_SECONDS

    def begin_anew(self) -> None:
        """There was a link."""
        self._next = bounds.PAUSE_SECONDS

    async def wait(self, early: Callable[[], bool]) -> None:
        """Wait; at an end at once when `early` is true."""
        seconds = self._next * random.uniform(0.5, 1.0)  # noqa: S311  # spreads load, no secret
        self._next = min(2 * self._next, bounds.MAX_PAUSE_SECONDS)
        end = trio.current_time() + seconds
        while not early():
            now = trio.current_time()
            if now >= end:
                return
            await trio.sleep_until(min(end, now + bounds.LOOK_SECONDS))
