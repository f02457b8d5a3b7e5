"""This broker's own record in the metadata: made at every start, and again when it was lost.

A registration says which run of the process this is, how the last one ended, and where others reach it. The
index of the entry is the broker epoch, by which others tell this run from those before. One cluster that was
restored from a copy, or another process under the same id, may take the record away: then it is made anew.

Invariant: the record is this run's or there is none of this run yet; nothing is led or followed under
another's (`epoch` is None then).
"""

from __future__ import annotations

import logging

import trio

from liftbridge.broker.controller import Controller
from liftbridge.metadata.broker_operations import RegisterBroker
from liftbridge.metadata.errors import MetadataError

logger = logging.getLogger("liftbridge.cluster")

AGAIN_SECONDS = 0.5
# How often the reason why it is not registered is logged.
REMIND_ATTEMPTS = 20


class Registration:
    """Registers this broker. Have `run` run.

    `record` is what it says of itself.
    """

    def __init__(self, controller: Controller, record: RegisterBroker) -> None:
        self._controller = controller
        self._record = record

    @property
    def epoch(self) -> int | None:
        """The broker epoch of this run, None while it is not registered."""
        record = self._controller.state.brokers.get(self._record.broker)
        if record is None or record.incarnation != self._record.incarnation:
            return None
        return record.epoch

    async def run(self) -> None:
        """Keep this broker registered until cancelled."""
        attempts = 0
        while True:
            if self.epoch is None:
                try:
                    await self._controller.register(self._record)
                except MetadataError as error:
                    if attempts % REMIND_ATTEMPTS == 0:
                        logger.info("this broker is not registered yet: %s", error.text)
                    attempts += 1
                else:
                    attempts = 0
            await trio.sleep(AGAIN_SECONDS)
