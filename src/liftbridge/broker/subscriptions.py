"""Subscriptions: where they start, where they stop, and the batches in between.

A subscription is a position in a log that this module moves forward (or backward) by whole batches: each read
gives a buffer of ready gRPC messages, which goes to the connection as it is. Only committed messages are
delivered.

Positions are resolved once, before the first message; everything that can be wrong with a request is found
there, so that a subscription that fails never sends the handshake.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, replace
from functools import partial

import trio

from liftbridge.broker.frames import FrameCache
from liftbridge.broker.partition import Partition, State
from liftbridge.log import CorruptBatchError, LogClosedError, LogError
from liftbridge.proto import api_pb2
from liftbridge.rpc import Frames, RpcFailedError, StatusCode, rpc_error

# An empty Message as a gRPC frame: it tells the client that its subscription is live.
HANDSHAKE = Frames(b"\0\0\0\0\0")
READ_BYTES = 262144

_logger = logging.getLogger("liftbridge.subscriptions")


@dataclass(frozen=True)
class Range:
    """What a subscription delivers: from `start` to `stop`, both inclusive; `stop` is None when it is
    endless.

    `ended` is set when there is nothing to deliver: the subscription ends right after the handshake.
    `readonly` says that it stops because the partition takes no more messages, `replica` that a server that
    does not lead may serve it.
    """

    start: int
    stop: int | None
    reverse: bool
    ended: bool = False
    readonly: bool = False
    replica: bool = False


async def resolve(partition: Partition, request: api_pb2.SubscribeRequest) -> Range:
    """The offsets that a request asks for. Raises the RpcFailedError that the request deserves."""
    replica = request.readISRReplica
    try:
        start = await _start(partition, request)
        _check_state(partition, replica=replica)
        stop = await _stop(partition, request)
    except (OSError, LogError) as error:  # finding a timestamp reads the log
        raise _unreadable(partition, "to find a timestamp", error) from error
    readonly_end = partition.model.readonly and request.stopPosition == api_pb2.STOP_ON_CANCEL
    if request.reverse:
        return replace(_reversed(partition, start, stop), replica=replica)
    if readonly_end:
        stop = partition.newest_offset
        return Range(start, stop, reverse=False, ended=start > stop, readonly=True, replica=replica)
    if stop is not None and stop < start:
        raise rpc_error(
            StatusCode.INVALID_ARGUMENT, f"the subscription would stop at {stop}, before it starts at {start}"
        )
    return Range(start, stop, reverse=False, replica=replica)


async def _start(partition: Partition, request: api_pb2.SubscribeRequest) -> int:
    newest = partition.newest_offset
    position = request.startPosition
    if position == api_pb2.NEW_ONLY:
        start = partition.log.next_offset
    elif position == api_pb2.OFFSET:
        start = request.startOffset
    elif position == api_pb2.EARLIEST:
        start = partition.oldest_offset
    elif position == api_pb2.LATEST:
        start = newest
    elif position == api_pb2.TIMESTAMP:
        start = await trio.to_thread.run_sync(partition.log.offset_at_or_after, request.startTimestamp)
    else:
        raise rpc_error(StatusCode.INVALID_ARGUMENT, f"unknown start position {position}")
    # Below the oldest message: begin there. Beyond the end: begin with the next message that is stored.
    return max(0, partition.log.start_offset, min(start, partition.log.next_offset))


async def _stop(partition: Partition, request: api_pb2.SubscribeRequest) -> int | None:
    position = request.stopPosition
    if position == api_pb2.STOP_ON_CANCEL:
        return None
    if position == api_pb2.STOP_OFFSET:
        return None if request.stopOffset == -1 else request.stopOffset
    if position == api_pb2.STOP_LATEST:
        if partition.newest_offset == -1:
            raise rpc_error(StatusCode.RESOURCE_EXHAUSTED, "the partition is empty")
        return partition.newest_offset
    if position == api_pb2.STOP_TIMESTAMP:
        stop = await trio.to_thread.run_sync(partition.log.offset_at_or_before, request.stopTimestamp)
        if stop == -1:
            raise rpc_error(StatusCode.INTERNAL, "the stop timestamp is before the first message")
        return stop
    raise rpc_error(StatusCode.INVALID_ARGUMENT, f"unknown stop position {position}")


def _reversed(partition: Partition, start: int, stop: int | None) -> Range:
    start = min(start, partition.high_watermark)
    if stop is not None and stop > start:
        raise rpc_error(
            StatusCode.INVALID_ARGUMENT,
            f"a reverse subscription would stop at {stop}, before it reaches its start at {start}",
        )
    floor = max(partition.oldest_offset, 0 if stop is None else stop)
    return Range(start, floor, reverse=True, ended=start < floor or partition.oldest_offset == -1)


async def refuse_paused(partition: Partition) -> AsyncIterator[Frames]:
    """What a subscription to a paused partition gets: clients take FAILED_PRECONDITION for "paused" only
    behind the handshake, and for "not the leader" in its place."""
    yield HANDSHAKE
    raise ended(partition)


async def deliver(partition: Partition, wanted: Range, shared: FrameCache) -> AsyncGenerator[Frames, None]:
    """The handshake, then the messages of a range; `shared` is where subscribers share what they read.

    Always ends with an RpcFailedError that says why.
    """
    partition.subscribers += 1
    try:
        yield HANDSHAKE
        if wanted.readonly and wanted.ended:
            raise _readonly_end()
        if wanted.ended:
            raise rpc_error(StatusCode.RESOURCE_EXHAUSTED, "there is nothing to deliver")
        batches = _backward(partition, wanted) if wanted.reverse else _forward(partition, wanted, shared)
        async for frames in batches:
            yield frames
        if wanted.readonly:
            raise _readonly_end()
        raise rpc_error(StatusCode.RESOURCE_EXHAUSTED, "the stop position is reached")
    finally:
        partition.subscribers -= 1


async def _forward(partition: Partition, wanted: Range, shared: FrameCache) -> AsyncIterator[Frames]:
    offset = wanted.start
    while wanted.stop is None or offset <= wanted.stop:
        _check_state(partition, replica=wanted.replica)
        limit = partition.high_watermark + 1
        if wanted.stop is not None:
            limit = min(limit, wanted.stop + 1)
        if offset >= limit:
            if partition.model.readonly and offset > partition.written_offset:
                raise _readonly_end()
            await partition.wait_change()
            continue
        read = partial(_read, partition, offset, limit, reverse=False)
        # Frames of messages that expire must not outlive them.
        shareable = offset >= partition.log.start_offset and not partition.log.may_expire
        if partition.subscribers > 1 and shareable:
            data, offset = await shared.read(partition.place, offset, limit, read)
        else:
            data, offset = await read()
        if data:
            yield Frames(data)


async def _backward(partition: Partition, wanted: Range) -> AsyncIterator[Frames]:
    offset = wanted.start
    floor = wanted.stop
    assert floor is not None, "a reverse range always has an end"
    # Retention may remove what is still to come; then the end is where the log begins now.
    while offset >= max(floor, partition.log.start_offset):
        _check_state(partition, replica=wanted.replica)
        data, offset = await _read(partition, offset, floor, reverse=True)
        if data:
            yield Frames(data)


async def _read(partition: Partition, offset: int, bound: int, *, reverse: bool) -> tuple[bytes, int]:
    """One batch read: at once when the data is in memory, in a worker thread when it is on disk."""
    try:
        log = partition.log
        read = log.read_frames_reverse if reverse else log.read_frames
        try:
            return read(offset, bound, partition.prefix, READ_BYTES, nowait=True)
        except BlockingIOError:
            return await trio.to_thread.run_sync(
                partial(read, offset, bound, partition.prefix, READ_BYTES, nowait=False)
            )
    except (OSError, LogError) as error:
        raise _unreadable(partition, f"at offset {offset}", error) from error


def _unreadable(partition: Partition, where: str, error: Exception) -> RpcFailedError:
    """The status for a read that failed."""
    if partition.state not in (State.LEADING, State.FOLLOWING):
        return ended(partition)
    if isinstance(error, LogClosedError):  # the stop of the server is under way
        return rpc_error(StatusCode.UNAVAILABLE, f"partition {partition} is closing; try again")
    _logger.error("%s: reading %s failed: %s", partition, where, error)
    if isinstance(error, CorruptBatchError):
        return rpc_error(StatusCode.DATA_LOSS, f"the log is damaged {where}: {error}")
    return rpc_error(StatusCode.INTERNAL, f"reading {where} failed: {error}")


def _readonly_end() -> RpcFailedError:
    return rpc_error(StatusCode.RESOURCE_EXHAUSTED, "End of readonly partition")


def _check_state(partition: Partition, *, replica: bool) -> None:
    """Raise the status that ends subscriptions here: the partition does not lead, or, where a `replica` will
    do, is none that may be read."""
    if not (partition.readable if replica else partition.state is State.LEADING):
        raise ended(partition)


def ended(partition: Partition) -> RpcFailedError:
    """The status for users of a partition that does not lead (any more)."""
    name = f"partition {partition.model.id} of stream {partition.stream.name!r}"
    if partition.state is State.DELETED:
        return rpc_error(StatusCode.NOT_FOUND, f"stream {partition.stream.name!r} was deleted")
    if partition.state in (State.FOLLOWING, State.MOVED):
        return led_elsewhere(partition.model.leader, name)
    if partition.state is State.PAUSED:
        return rpc_error(StatusCode.FAILED_PRECONDITION, f"{name} is paused")
    if partition.state is State.OFFLINE:
        return rpc_error(StatusCode.INTERNAL, f"{name} is offline: {partition.reason}")
    return rpc_error(StatusCode.UNAVAILABLE, f"{name} is {partition.state.value}; try again")


def led_elsewhere(leader: str, name: str) -> RpcFailedError:
    """The status for users of a partition that another broker leads; clients look for the first words."""
    who = f"{leader!r} leads" if leader else "nobody leads"
    return rpc_error(StatusCode.FAILED_PRECONDITION, f"Server not partition leader: {who} {name}")
