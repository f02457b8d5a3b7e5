"""What `liftbridge publish` publishes: lines, NUL-terminated records, JSON objects or a whole file.

Reading is as fast as publishing and no faster: a chunk is read when the messages of the one before it have
been taken, so a file of any size goes through in bounded memory, and a pipe feels the back-pressure. A
descriptor is read with what it has, so that lines typed on a terminal are sent as they are typed.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import trio

from liftbridge.cli.exits import CommandError, Exit
from liftbridge.client import Outgoing

FORMS = ("lines", "null", "json", "whole")
CHUNK = 256 * 1024
BATCH = 1000  # messages
# NATS takes 1 MiB unless it is told otherwise, and 64 MiB at most.
MAX_MESSAGE = 64 << 20
_FIELDS = {"value", "value_base64", "key", "key_base64", "headers", "partition"}
# What `subscribe --json` tells about a message, and publishing gives it anew.
_IGNORED = {"stream", "offset", "timestamp", "time", "subject", "reply"}


class Numbered(NamedTuple):
    """A message and where it stands in the input, from 1."""

    number: int
    message: Outgoing


@dataclass(frozen=True)
class Common:
    """What the command line says about every message."""

    key: bytes = b""
    headers: Mapping[str, bytes] | None = None
    partition: int | None = None
    separator: bytes | None = None
    """Between the key and the value of a line."""

    def outgoing(self, value: bytes, where: str) -> Outgoing:
        """The message of a value. Raises CommandError when a line has no key."""
        key = self.key
        if self.separator is not None:
            key, found, value = value.partition(self.separator)
            if not found:
                text = f"{where}: there is no {self.separator!r} between a key and a value"
                raise CommandError(text, Exit.USAGE)
        return Outgoing(value, key, self.headers or {}, self.partition)


class Source:
    """Messages out of a descriptor.

    Args:
        descriptor: read to its end.
        name: of the file, for errors.
        form: one of `FORMS`.
        common: what the command line says.
    """

    def __init__(self, descriptor: int, name: str, form: str, common: Common) -> None:
        self._descriptor = descriptor
        self._name = name
        self._form = form
        self._common = common
        self.bytes_read = 0

    async def batches(self) -> AsyncIterator[list[Numbered]]:
        """Messages in the order of the input, some at a time; an empty line is an empty message.

        Raises:
            CommandError: the input cannot be read, or is none of what it should be; the messages before that
                have been handed out.
        """
        number = 0
        batch: list[Numbered] = []
        async for records in self._records():
            for record in records:
                number += 1
                try:
                    batch.append(Numbered(number, self._message(record, number)))
                except CommandError:
                    if batch:
                        yield batch
                    raise
                if len(batch) >= BATCH:
                    yield batch
                    batch = []
            if batch:
                yield batch
                batch = []

    async def _records(self) -> AsyncIterator[list[bytes]]:
        rest: list[bytes] = []
        size = 0
        end = {"whole": None, "null": b"\0"}.get(self._form, b"\n")
        while chunk := await self._read():
            first, *others = [chunk] if end is None else chunk.split(end)
            rest.append(first)
            size += len(first)
            if size > MAX_MESSAGE:
                text = (
                    f"{self._name}: a message is longer than {MAX_MESSAGE >> 20} MiB, which NATS never takes"
                )
                raise CommandError(text, Exit.USAGE)
            if others:
                yield [b"".join(rest), *others[:-1]]
                rest, size = [others[-1]], len(others[-1])
        if size or end is None:
            yield [b"".join(rest)]

    async def _read(self) -> bytes:
        try:
            # Abandoned by Ctrl-C: a terminal may say nothing for ever.
            chunk = await trio.to_thread.run_sync(os.read, self._descriptor, CHUNK, abandon_on_cancel=True)
        except OSError as error:
            raise CommandError(f"{self._name}: {error.strerror}", Exit.USAGE) from error
        self.bytes_read += len(chunk)
        return chunk

    def _message(self, record: bytes, number: int) -> Outgoing:
        where = f"{self._name}, line {number}"
        if self._form != "json":
            return self._common.outgoing(record, where)
        try:
            return _from_json(json.loads(record), self._common)
        except (ValueError, RecursionError) as error:
            raise CommandError(f"{where}: {error}; docs/cli.md tells the fields", Exit.USAGE) from error


def _from_json(document: Any, common: Common) -> Outgoing:
    """The message of an object such as `liftbridge subscribe --json` prints. Raises ValueError."""
    if not isinstance(document, dict):
        raise ValueError("it is no JSON object")  # noqa: TRY004  # what JSON says is a value
    unknown = document.keys() - _FIELDS - _IGNORED
    if unknown:
        raise ValueError(f"there is no field {min(unknown)!r}")
    partition = common.partition if common.partition is not None else document.get("partition")
    if partition is not None and (type(partition) is not int or not 0 <= partition < 1 << 31):
        raise ValueError(f"{partition!r} is no partition")
    headers = document.get("headers", {})
    if not isinstance(headers, dict):
        raise ValueError("headers must be an object")  # noqa: TRY004
    found = {name: _header(name, value) for name, value in headers.items()}
    value, key = _bytes(document, "value"), _bytes(document, "key")
    if value is None:
        raise ValueError("there is no value")
    return Outgoing(value, common.key if key is None else key, {**found, **(common.headers or {})}, partition)


def _bytes(document: Mapping[str, Any], name: str) -> bytes | None:
    encoded = document.get(f"{name}_base64")
    if encoded is not None:
        return _decoded(name, encoded)
    text = document.get(name)
    if text is None:
        return None
    if not isinstance(text, str):
        raise ValueError(f"{name} must be a text")  # noqa: TRY004
    return text.encode()


def _header(name: str, value: Any) -> bytes:
    name.encode()  # half a surrogate pair is no text
    if isinstance(value, dict) and value.keys() == {"base64"}:
        return _decoded(f"header {name!r}", value["base64"])
    if not isinstance(value, str):
        raise ValueError(f"header {name!r} must be a text, or an object with base64")  # noqa: TRY004
    return value.encode()


def _decoded(name: str, encoded: Any) -> bytes:
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, TypeError, ValueError):
        raise ValueError(f"{name} is no base64") from None
