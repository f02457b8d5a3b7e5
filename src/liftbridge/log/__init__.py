"""The commit log of a partition: segments, indexes, recovery, retention, group commit."""

from liftbridge._log import BatchBuilder, CorruptBatchError, ReceivedBatches
from liftbridge.log.compaction import Compacted
from liftbridge.log.deletion import delete_log
from liftbridge.log.errors import (
    CleaningStoppedError,
    ForeignLogError,
    LogClosedError,
    LogDamagedError,
    LogError,
    LogFailedError,
)
from liftbridge.log.flusher import Flusher
from liftbridge.log.keys import DamagedKeyError, Keyring, MissingKeyError
from liftbridge.log.log import Log
from liftbridge.log.options import LogOptions
from liftbridge.log.recovery import Damage
from liftbridge.log.throttle import Throttle

__all__ = [
    "Log",
    "LogOptions",
    "Damage",
    "Throttle",
    "Compacted",
    "BatchBuilder",
    "ReceivedBatches",
    "Flusher",
    "delete_log",
    "LogError",
    "CorruptBatchError",
    "LogDamagedError",
    "ForeignLogError",
    "LogFailedError",
    "LogClosedError",
    "Keyring",
    "MissingKeyError",
    "DamagedKeyError",
    "CleaningStoppedError",
]
