"""Messages that go on being published while a test does something to their partition."""

from __future__ import annotations

import threading

from calls import PATIENCE, until

from liftbridge.proto import api_pb2


class Load:
    """PublishAsync of numbered messages, a window of them at a time, until it is told to stop."""

    WINDOW = 500

    def __init__(self, api, stream, partition=0):
        self.acked = {}
        self.sent = 0
        self.errors = []
        self._api, self._stream, self._partition = api, stream, partition
        self._stop = threading.Event()
        self._room = threading.Semaphore(self.WINDOW)
        self._thread = threading.Thread(target=self._run)

    def _requests(self):
        while True:
            self._room.acquire()
            if self._stop.is_set():
                return
            number = self.sent
            self.sent += 1
            yield api_pb2.PublishRequest(
                stream=self._stream,
                partition=self._partition,
                value=b"%d" % number,
                correlationId=f"{number}",
                ackPolicy="ALL" if number % 2 else "LEADER",
            )

    def _run(self):
        for answer in self._api.PublishAsync(self._requests(), timeout=2 * PATIENCE):
            if answer.HasField("asyncError"):
                self.errors.append(answer.asyncError)
            else:
                self.acked[int(answer.correlationId)] = answer.ack.offset
            self._room.release()

    def go_on(self, count):
        """Wait for so many more acks."""
        goal = len(self.acked) + count
        until(lambda: len(self.acked) >= goal)

    def __enter__(self):
        self._thread.start()
        self.go_on(100)
        return self

    def __exit__(self, *args):
        self._stop.set()
        self._room.release()
        self._thread.join()
