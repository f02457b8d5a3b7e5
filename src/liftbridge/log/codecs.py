"""Which codec a segment of a log gets: by the options of the log when it is new, else by its header.

An encrypted segment has a data key of its own from the moment it is created. One that exists is opened with
the master keys of the server; when its key is wrapped with an older one, that is changed on the way, so a log
is changed over to a new master key by opening it. Where that fails, the old wrapping stays and does.

Invariants:

- A log that is to be encrypted takes no record in a segment without a data key; nor does it open without a
  master key to make one.
- A segment whose master key is missing keeps the log from being opened: what it holds is neither lost nor
  skipped. One whose own key is damaged does not: what is encrypted with it is damage, like any other.
"""

from __future__ import annotations

import logging
import os
import threading
import uuid
from pathlib import Path

from liftbridge.log.codec import BatchCodec
from liftbridge.log.keys import (
    VARIABLE,
    DamagedKeyError,
    Keyring,
    MissingKeyError,
    encode_slot,
    key_of,
    needs_rewrap,
    new_data_key,
    rewrap,
    unwrap,
)
from liftbridge.log.options import LogOptions

logger = logging.getLogger("liftbridge.log")


class SegmentCodecs:
    """The codecs of one log's segments.

    Arguments:
        stream_id, partition: whose log it is.
        options: how segments to come are encoded.
        keyring: the master keys, or None when the server has none.
    """

    def __init__(
        self, stream_id: uuid.UUID, partition: int, options: LogOptions, keyring: Keyring | None
    ) -> None:
        self._stream_id = stream_id
        self._partition = partition
        self._options = options
        self._keyring = keyring
        self._lock = threading.Lock()

    def fresh(self) -> tuple[BatchCodec, bytes]:
        """The codec of a new segment, and what goes into the key slots of its header block.

        Raises MissingKeyError when the log is to be encrypted and there is no master key.
        """
        if not self._options.encryption:
            return self._codec(None), b""  # also without compression: batches of other servers may have some
        if self._keyring is None:
            raise MissingKeyError(
                "the log is to be encrypted, and this server has no usable master key; "
                f"start it with one in {VARIABLE}"
            )
        data_key = new_data_key()
        return self._codec(data_key), encode_slot(self._keyring.wrap(data_key))

    def plain(self) -> BatchCodec:
        """A codec for batches of the log that are not encrypted, whatever their compression."""
        return self._codec(None)

    def of(self, block: bytes, path: Path) -> BatchCodec:
        """The codec of an existing segment, by its header block.

        A data key that is wrapped with an older master key is wrapped anew, which writes to the file. Raises
        MissingKeyError; DamagedKeyError when the key is not what the master key has wrapped; LogError.
        """
        try:
            key = key_of(block, path)
        except DamagedKeyError as error:
            # Damage costs what is damaged: batches that need the key, if there are any.
            logger.error("%s", error)  # noqa: TRY400
            key = None
        if key is None:
            return self._codec(None)
        data_key = unwrap(key, self._keyring, path)
        assert self._keyring is not None
        if needs_rewrap(block, key, self._keyring):
            self._rotate(path, self._keyring)
        return self._codec(data_key)

    def _codec(self, data_key: bytes | None) -> BatchCodec:
        return BatchCodec(self._stream_id, self._partition, self._options.compression, data_key)

    def _rotate(self, path: Path, keyring: Keyring) -> None:
        try:
            with self._lock:
                fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
                try:
                    rewrap(fd, path, keyring)
                    logger.debug("%s is encrypted under master key %08x from now on", path, keyring.active.id)
                finally:
                    os.close(fd)
        except OSError as error:
            # It can be read all the same; but its old master key must not be thrown away yet.
            logger.warning("%s is still encrypted under an older master key: %s", path, error)
