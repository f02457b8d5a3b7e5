"""The commands that talk to a running server: create, list and delete streams, publish, subscribe."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import h2.exceptions
import nats
import nats.errors
import purerpc
import trio

from liftbridge.metadata.validation import SETTING_WORDS
from liftbridge.proto import api_grpc, api_pb2

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup

CONNECT_SECONDS = 5.0


class CommandError(Exception):
    """The command cannot be carried out; the text says why and what to do."""


def stream(arguments: Sequence[str]) -> int:
    """`liftbridge stream create|list|delete`."""
    parser = argparse.ArgumentParser(prog="liftbridge stream", description="Create, list and delete streams.")
    actions = parser.add_subparsers(dest="action", required=True)
    create = actions.add_parser("create", help="create a stream on a NATS subject")
    create.add_argument("name")
    create.add_argument("--subject", required=True, help="NATS subject to record; wildcards are allowed")
    create.add_argument("--partitions", type=int, default=1)
    create.add_argument("--group", default="", help="load-balance group (NATS queue group)")
    create.add_argument(
        "--encryption", action=argparse.BooleanOptionalAction, help="encrypt it on disk, or do not"
    )
    create.add_argument("--compression", choices=SETTING_WORDS["compression"], help="how it is stored")
    create.add_argument(
        "--sync-policy", choices=SETTING_WORDS["sync_policy"], help="when messages are forced to disk"
    )
    actions.add_parser("list", help="list the streams")
    delete = actions.add_parser("delete", help="delete a stream and its data")
    delete.add_argument("name")
    for action in actions.choices.values():
        _add_server(action)
    options = parser.parse_args(arguments)
    actions_by_name: dict[str, Callable[[argparse.Namespace], Awaitable[None]]] = {
        "create": _create_stream,
        "list": _list_streams,
        "delete": _delete_stream,
    }
    return _run(actions_by_name[options.action], options)


def publish(arguments: Sequence[str]) -> int:
    """`liftbridge publish SUBJECT VALUE`."""
    parser = argparse.ArgumentParser(
        prog="liftbridge publish", description="Publish a plain message on a NATS subject."
    )
    parser.add_argument("subject")
    parser.add_argument("value")
    parser.add_argument("--nats", default="nats://127.0.0.1:4222", help="NATS server")
    options = parser.parse_args(arguments)
    try:
        asyncio.run(_publish(options))
    except (OSError, nats.errors.Error, asyncio.TimeoutError) as error:
        return _fail(f"cannot publish through {options.nats}: {error or type(error).__name__}")
    return 0


def subscribe(arguments: Sequence[str]) -> int:
    """`liftbridge subscribe STREAM`."""
    parser = argparse.ArgumentParser(
        prog="liftbridge subscribe",
        description="Print the messages of a stream: the old ones, then new ones.",
    )
    parser.add_argument("stream")
    parser.add_argument("--partition", type=int, default=0)
    parser.add_argument("--new-only", action="store_true", help="begin with the next message")
    parser.add_argument("--until-end", action="store_true", help="stop after the newest message there is now")
    _add_server(parser)
    return _run(_subscribe, parser.parse_args(arguments))


def _add_server(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--server", default="127.0.0.1:9292", help="gRPC address (default: 127.0.0.1:9292)")


def _run(action: Callable[[argparse.Namespace], Awaitable[None]], options: argparse.Namespace) -> int:
    try:
        trio.run(action, options)
    except BaseException as error:
        if _interrupted(error):
            return 0
        reason = _reason(error, options.server)
        if reason is None:
            raise
        return _fail(reason)
    return 0


def _interrupted(error: BaseException) -> bool:
    """Whether Ctrl-C ended it; inside a nursery that arrives in a group."""
    if isinstance(error, BaseExceptionGroup):
        return any(_interrupted(inner) for inner in error.exceptions)
    return isinstance(error, KeyboardInterrupt)


def _reason(error: BaseException, server: str) -> str | None:
    """What to print for an exception that says something about the request; None for a defect."""
    if isinstance(error, BaseExceptionGroup):
        return _reason(error.exceptions[0], server)
    if isinstance(error, purerpc.RpcFailedError):
        return str(error.status.status_message or error.status.status_code.name)
    if isinstance(error, CommandError):
        return str(error)
    if isinstance(error, h2.exceptions.ProtocolError):
        # To h2 a connection is over with GOAWAY; the status of a call comes behind it.
        return f"the server at {server} has ended the connection; it is probably stopping"
    if isinstance(error, (OSError, trio.TooSlowError)):
        return f"no server answers at {server}; start one with `liftbridge dev`, or name it with --server"
    return None


def _fail(reason: str) -> int:
    print(f"liftbridge: {reason}", file=sys.stderr)
    return 1


@asynccontextmanager
async def _api(options: argparse.Namespace) -> AsyncIterator[api_grpc.APIStub]:
    host, _, port = options.server.rpartition(":")
    if not host or not port.isdigit():
        raise CommandError(f"--server {options.server!r} is not of the form host:port")
    with trio.fail_after(CONNECT_SECONDS) as scope:
        async with purerpc.insecure_channel(host, int(port)) as channel:
            scope.deadline = float("inf")
            yield api_grpc.APIStub(channel)


async def _create_stream(options: argparse.Namespace) -> None:
    request = api_pb2.CreateStreamRequest(
        name=options.name,
        subject=options.subject,
        partitions=options.partitions,
        group=options.group,
        compression=options.compression or "",
        syncPolicy=options.sync_policy or "",
    )
    if options.encryption is not None:
        request.encryption.value = options.encryption
    async with _api(options) as api:
        await api.CreateStream(request)
    print(f"stream {options.name} records {options.subject}")


async def _list_streams(options: argparse.Namespace) -> None:
    async with _api(options) as api:
        metadata = await api.FetchMetadata(api_pb2.FetchMetadataRequest())
    for entry in sorted(metadata.streamMetadata, key=lambda entry: entry.name):
        messages = sum(partition.highWatermark + 1 for partition in entry.partitions.values())
        print(f"{entry.name}\t{entry.subject}\t{len(entry.partitions)} partitions\t{messages} offsets")


async def _delete_stream(options: argparse.Namespace) -> None:
    async with _api(options) as api:
        await api.DeleteStream(api_pb2.DeleteStreamRequest(name=options.name))
    print(f"stream {options.name} is deleted")


async def _publish(options: argparse.Namespace) -> None:
    async def ignore(error: Exception) -> None:
        """What goes wrong is raised as well."""

    client = await nats.connect(
        options.nats, allow_reconnect=False, max_reconnect_attempts=1, connect_timeout=5, error_cb=ignore
    )
    await client.publish(options.subject, options.value.encode())
    await client.flush()
    await client.close()


async def _subscribe(options: argparse.Namespace) -> None:
    request = api_pb2.SubscribeRequest(
        stream=options.stream,
        partition=options.partition,
        startPosition=api_pb2.NEW_ONLY if options.new_only else api_pb2.EARLIEST,
        stopPosition=api_pb2.STOP_LATEST if options.until_end else api_pb2.STOP_ON_CANCEL,
    )
    async with _api(options) as api:
        live = False
        try:
            async for message in api.Subscribe(request):
                if live:
                    value = message.value.decode(errors="replace")
                    print(f"{message.offset}\t{message.subject}\t{value}", flush=True)
                live = True
        except purerpc.ResourceExhaustedError:
            if not options.until_end:
                raise
