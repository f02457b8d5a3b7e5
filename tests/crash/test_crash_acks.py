"""kill -9 at random moments: what was acked is there, at its offset, with the same bytes.

A kill leaves the page cache alone, so every sync policy has to pass. The moments come from a seed that is
printed; `LIFTBRIDGE_CRASH_SEED=<seed>` repeats them, `LIFTBRIDGE_CRASH_ROUNDS=<n>` kills n times as often.
"""

import os
import random
import time
from functools import partial

import pytest
from calls import PATIENCE, create, nullable
from crash_publishers import AsyncPublisher, History, NatsPublisher
from harness import Nats, Server

from liftbridge.proto.api_pb2 import ALL, LEADER, DeleteStreamRequest, FetchMetadataRequest

SEED = int(os.environ.get("LIFTBRIDGE_CRASH_SEED") or random.SystemRandom().randrange(1 << 32))
ROUNDS = int(os.environ.get("LIFTBRIDGE_CRASH_ROUNDS") or 1)
# The kill comes so long after every publisher has its first ack, at most.
LATEST_KILL_SECONDS = 0.2
# A server that is killed while it starts lives so long, at most; by then it has opened its logs.
START_SECONDS = 0.8


class Cluster:
    """A server under kills, what is published to it, and the streams it must know."""

    def __init__(self, server: Server, moments: random.Random) -> None:
        self.server = server
        self.moments = moments
        self.publishers = {
            "leader": partial(AsyncPublisher, policy=LEADER),
            "all": partial(AsyncPublisher, policy=ALL),
            "nats": NatsPublisher,
        }
        self.histories = {stream: History(stream) for stream in self.publishers}
        api = server.api()
        for stream in self.publishers:
            create(api, stream, segmentMaxBytes=nullable(30_000))  # so that kills meet new files, too
        api.channel.close()
        self.extra = ""

    def live_and_die(self) -> None:
        """Publish, kill the server at a random moment, sometimes again while it starts, and start it."""
        publishers = [start(self.server, self.histories[s]) for s, start in self.publishers.items()]
        try:
            for publisher in publishers:
                assert publisher.first_ack.wait(PATIENCE), f"no ack for {publisher.history.stream}"
            self.change_metadata()
            time.sleep(self.moments.uniform(0, LATEST_KILL_SECONDS))
        finally:
            self.server.kill()
            for publisher in publishers:
                publisher.stop()
        if self.moments.random() < 0.2:
            self.server.spawn()
            time.sleep(self.moments.uniform(0, START_SECONDS))
            self.server.kill()
        self.server.start()

    def change_metadata(self) -> None:
        """Delete the stream that the life before created, and create one for the next."""
        api = self.server.api()
        if self.extra:
            api.DeleteStream(DeleteStreamRequest(name=self.extra), timeout=PATIENCE)
        self.extra = create(api)
        api.channel.close()

    def check(self, *, whole: bool = False) -> None:
        """Everything acked is there, and nothing else than what was sent."""
        api = self.server.api()
        metadata = api.FetchMetadata(FetchMetadataRequest(), timeout=PATIENCE)
        assert {stream.name for stream in metadata.streamMetadata} == {*self.publishers, self.extra}
        for history in self.histories.values():
            history.check(api, whole=whole)
        api.channel.close()


@pytest.mark.timeout(600 * ROUNDS)
@pytest.mark.parametrize(
    "policy, embedded, kills",
    [
        ("always", False, 13),
        ("interval", False, 11),
        ("never", False, 11),
        ("always", True, 5),
        ("interval", True, 5),
        ("never", True, 5),
    ],
)
def test_nothing_acked_is_lost(tmp_path, policy, embedded, kills):
    print(f"LIFTBRIDGE_CRASH_SEED={SEED}")
    config = {"streams.sync.policy": policy}
    with Nats(tmp_path / "nats") as nats:
        if not embedded:
            config["nats.servers"] = [nats.url]
        with Server(tmp_path / "server", config, embedded=embedded) as server:
            server.nats_url = server.nats_url or nats.url
            cluster = Cluster(server, random.Random(f"{SEED} {policy} {embedded}"))
            for _ in range(kills * ROUNDS):
                cluster.live_and_die()
                cluster.check()
            acked = {stream: len(history.acked) for stream, history in cluster.histories.items()}
            print(f"acked: {acked}")
            assert min(acked.values()) >= kills * ROUNDS
            cluster.check(whole=True)
            assert server.stop() == 0
            server.start()
            cluster.check(whole=True)
            assert "Traceback" not in server.log
