"""The data directory and who this server is.

A data directory belongs to one running server: an exclusive lock, held by the open file and so released by
the system however the process ends, keeps a second one out. The file `lock` says which process holds it.

The file `liftbridge` in it says who the server is, in the original's format (a protobuf message whose first
field is the server id), and to which cluster it belongs. What is stored wins over flags and configuration: a
server that came back under another id would leave its partitions without a replica, and its data to nobody.

Blocking calls, for worker threads.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import secrets
import string
import uuid
from pathlib import Path

from google.protobuf.message import DecodeError

from liftbridge._log import crc32c
from liftbridge.broker.durable import TEMPORARY, StepHook, make_directory, no_hook, replace_file, write_all
from liftbridge.proto import internal_pb2

logger = logging.getLogger("liftbridge.identity")

LOCK_FILE = "lock"
STATE_FILE = "liftbridge"
MAX_ID_LENGTH = 128
_ID_ALPHABET = string.ascii_letters + string.digits
# Ids are tokens of NATS subjects and appear in log lines.
_UNFIT_IN_ID = re.compile(r"[\x00-\x20\x7f.*>/]")


class DataDirectoryError(Exception):
    """The data directory cannot be used; the text names it, says why and what to do."""


class DataDirectory:
    """An open, locked data directory. Made by `open`; `close` releases it.

    Attributes:
        path: where it is.
        server_id: who this server is.
        cluster_id: the cluster it belongs to, None before it has joined or created one.
    """

    def __init__(
        self, path: Path, lock: int, server_id: str, cluster_id: uuid.UUID | None, hook: StepHook
    ) -> None:
        self.path = path
        self.server_id = server_id
        self.cluster_id = cluster_id
        self._lock = lock
        self._hook = hook

    @classmethod
    def open(cls, path: Path, configured_id: str | None = None, *, hook: StepHook = no_hook) -> DataDirectory:
        """Create the directory when it is missing, lock it, and find out or decide who this server is.

        Arguments:
            path: the directory.
            configured_id: server id of flags or configuration; a stored one wins, without either one is made.

        Raises DataDirectoryError.
        """
        if configured_id is not None:
            check_server_id(configured_id)
        try:
            make_directory(path)
            lock = _take_lock(path)
        except OSError as error:
            raise DataDirectoryError(
                f"data directory {path} cannot be used: {error}; give this server another one with --data-dir"
            ) from error
        try:
            server_id, cluster_id = _establish(path, configured_id, hook)
        except BaseException:
            os.close(lock)
            raise
        return cls(path, lock, server_id, cluster_id, hook)

    def join_cluster(self, cluster_id: uuid.UUID) -> None:
        """Remember, durably, the cluster this server belongs to; it cannot be changed.

        Raises DataDirectoryError when it belongs to another one or the system refuses.
        """
        if self.cluster_id not in (None, cluster_id):
            raise DataDirectoryError(
                f"data directory {self.path} belongs to cluster {self.cluster_id}, not to {cluster_id}; "
                "restore the directory that belongs to this server"
            )
        if self.cluster_id is None:
            _store(self.path, self.server_id, cluster_id, self._hook)
            self.cluster_id = cluster_id

    def close(self) -> None:
        """Release the directory to the next server. May be called again."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def check_server_id(server_id: str) -> None:
    """Raise DataDirectoryError for an id that cannot be used: empty, long, or unfit for a NATS subject."""
    unfit = _UNFIT_IN_ID.search(server_id)
    if unfit:
        raise DataDirectoryError(
            f"server id {server_id!r} contains {unfit.group()!r}; blanks, dots, slashes, * and > are not "
            "allowed, choose another --server-id"
        )
    if not 1 <= len(server_id) <= MAX_ID_LENGTH:
        raise DataDirectoryError(
            f"server id {server_id[:40]!r} has {len(server_id)} characters; 1 to {MAX_ID_LENGTH} are allowed"
        )


def _take_lock(path: Path) -> int:
    lock_path = path / LOCK_FILE
    descriptor = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
            raise DataDirectoryError(
                f"data directory {path} is in use by another server (process {holder}); stop that one, or "
                "give this server its own with --data-dir"
            ) from error
        os.ftruncate(descriptor, 0)
        write_all(descriptor, f"{os.getpid()}\n".encode(), 0)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _establish(path: Path, configured_id: str | None, hook: StepHook) -> tuple[str, uuid.UUID | None]:
    state_path = path / STATE_FILE
    state_path.with_name(STATE_FILE + TEMPORARY).unlink(missing_ok=True)
    try:
        data = state_path.read_bytes()
    except FileNotFoundError:
        server_id = configured_id or "".join(secrets.choice(_ID_ALPHABET) for _ in range(22))
        _store(path, server_id, None, hook)
        return server_id, None
    except OSError as error:
        raise DataDirectoryError(f"{state_path} cannot be read: {error}") from error
    server_id, cluster_id = _decode(state_path, data)
    if configured_id not in (None, server_id):
        logger.warning(
            "this server is %r, as stored in %s; the configured server id %r is not used",
            server_id,
            state_path,
            configured_id,
        )
    return server_id, cluster_id


def _store(path: Path, server_id: str, cluster_id: uuid.UUID | None, hook: StepHook) -> None:
    state = internal_pb2.ServerState(server_id=server_id)
    if cluster_id is not None:
        state.cluster_id = cluster_id.bytes
    state.crc = crc32c(state.SerializeToString(deterministic=True))
    try:
        replace_file(path / STATE_FILE, state.SerializeToString(deterministic=True), hook)
    except OSError as error:
        raise DataDirectoryError(f"{path / STATE_FILE} cannot be written: {error}") from error


def _decode(path: Path, data: bytes) -> tuple[str, uuid.UUID | None]:
    """Server id and cluster id from the stored bytes. The original's file has no checksum and no cluster."""
    damaged = DataDirectoryError(
        f"{path} is damaged and does not say who this server is; restore it from a copy, or remove it to "
        "give the server a new identity (it then holds no replica of anything)"
    )
    state = internal_pb2.ServerState()
    try:
        state.ParseFromString(data)
    except DecodeError as error:
        raise damaged from error
    # Whatever is not exactly what we would write was not written by us.
    state.DiscardUnknownFields()
    if state.SerializeToString(deterministic=True) != data:
        raise damaged
    crc, with_crc = state.crc, bool(state.crc)
    state.crc = 0
    if (with_crc or state.cluster_id) and crc != crc32c(state.SerializeToString(deterministic=True)):
        raise damaged
    if len(state.cluster_id) not in (0, 16):
        raise damaged
    try:
        check_server_id(state.server_id)
    except DataDirectoryError as error:
        raise damaged from error
    return state.server_id, uuid.UUID(bytes=state.cluster_id) if state.cluster_id else None
