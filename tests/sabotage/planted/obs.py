"""Bugs of what tells how a server is."""

from __future__ import annotations

from planted.bug import Bug

_ENDPOINT = "tests/obs/test_obs_endpoint.py::test_"

OBSERVING = (
    Bug(
        "ready-without-nats",
        "a server without NATS says that clients can be sent to it",
        "broker/observed.py",
        "            if not connection.connected\n",
        "            if connection.refused_sends < 0\n",
        (_ENDPOINT + "a_server_without_nats_is_not_ready_and_says_why",),
    ),
    Bug(
        "ready-while-stopping",
        "a server that stops says that clients can be sent to it",
        "broker/app.py",
        "                observed.stopping = True\n",
        "                observed.stopping = False\n",
        (_ENDPOINT + "a_server_that_stops_says_that_it_is_not_ready",),
    ),
    Bug(
        "series-without-end",
        "there are series of each partition however many there are",
        "obs/metrics.py",
        "partitions if len(partitions) <= most else ()",
        "partitions if most >= 0 else ()",
        (_ENDPOINT + "of_too_many_partitions_there_are_sums_only",),
    ),
    Bug(
        "http-connections-without-end",
        "HTTP connections are not bounded",
        "obs/endpoint.py",
        "        if self._connections >= MAX_CONNECTIONS:",
        "        if self._connections < 0:",
        (_ENDPOINT + "too_many_connections_are_closed_and_room_comes_back",),
    ),
    Bug(
        "http-room-lost",
        "an HTTP connection that has ended counts for ever",
        "obs/endpoint.py",
        "            self._connections -= 1\n",
        "            self._connections -= 0\n",
        (_ENDPOINT + "too_many_connections_are_closed_and_room_comes_back",),
    ),
    Bug(
        "buckets-not-cumulative",
        "a bucket of a histogram lacks what is below it",
        "obs/exposition.py",
        "            below += count\n",
        "            below = count\n",
        ("tests/obs/test_obs_exposition.py",),
    ),
    Bug(
        "labels-not-escaped",
        "a quote in a name ends the label",
        "obs/exposition.py",
        '{text.translate(_LABEL)}"',
        '{text}"',
        ("tests/obs/test_obs_exposition.py",),
    ),
    Bug(
        "delay-measured-from-now",
        "the event loop never seems late",
        "obs/stalls.py",
        "                self.note(max(0.0, time.perf_counter() - self._due))",
        "                self.note(max(0.0, time.perf_counter() - time.perf_counter()))",
        ("tests/obs/test_obs_stalls.py",),
    ),
)
