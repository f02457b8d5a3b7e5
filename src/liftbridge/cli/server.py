"""A server in the foreground: what `liftbridge [flags]` and `liftbridge dev` do.

What can be wrong at start ends it with one line on standard error and exit status 1.
"""

from __future__ import annotations

import gc
import logging
import sys
from collections.abc import Callable

import trio

from liftbridge.broker.app import Addresses, Server, ServerStartError, run_until_signal
from liftbridge.broker.config import Config, ConfigError
from liftbridge.broker.controller import ControllerStartError
from liftbridge.broker.founding import FoundingError
from liftbridge.broker.identity import DataDirectoryError
from liftbridge.broker.internal_streams import InternalStreamError
from liftbridge.nats.embedded import EmbeddedNatsError
from liftbridge.obs import logs
from liftbridge.obs.endpoint import Endpoint

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup

START_ERRORS = (
    ConfigError,
    ServerStartError,
    DataDirectoryError,
    ControllerStartError,
    FoundingError,
    EmbeddedNatsError,
    InternalStreamError,
)


def run_server(
    configure: Callable[[], Config],
    *,
    embedded_host: str | None = None,
    embedded_port: int | None = None,
    started: Callable[[Addresses], None] = lambda addresses: None,
) -> int:
    """Run a server in the foreground until a signal ends it; returns the exit status."""
    try:
        config = configure()
        logs.setup(
            config.logging.level,
            recovery=config.logging.recovery,
            raft=config.logging.raft,
            nats=config.logging.nats,
        )
        for warning in config.warnings:
            logging.getLogger("liftbridge").warning("%s", warning)
        server = Server(config, embedded_host=embedded_host, embedded_port=embedded_port, observe=Endpoint)

        def up(addresses: Addresses) -> None:
            # What is there now stays: it need not be looked through by every full collection.
            gc.collect()
            gc.freeze()
            started(addresses)

        trio.run(run_until_signal, server, up)
    except (*START_ERRORS, BaseExceptionGroup) as error:
        reason = _start_error(error)
        if reason is None:
            _tell_defects(error)
            raise
        print(f"liftbridge: {reason}", file=sys.stderr)
        return 1
    return 0


def _tell_defects(error: BaseException) -> None:
    """Log each exception of a group by itself: a traceback of the tree of tasks ends before it gets there."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            _tell_defects(inner)
    else:
        logging.getLogger("liftbridge").critical("the server has failed", exc_info=error)


def _start_error(error: BaseException) -> str | None:
    """The text of the start-up error in an exception, or None when there is something else in it."""
    if isinstance(error, BaseExceptionGroup):
        texts = [_start_error(inner) for inner in error.exceptions]
        return None if None in texts else texts[0]
    return str(error) if isinstance(error, START_ERRORS) else None
