"""Bugs of the links between brokers: who is let in, what is kept apart, what is bounded."""

from __future__ import annotations

from planted.bug import Bug


def _greeting(*names: str) -> tuple[str, ...]:
    return tuple(f"tests/peers/test_peers_greeting.py::test_{name}" for name in names)


def _control(*names: str) -> tuple[str, ...]:
    return tuple(f"tests/peers/test_peers_control.py::test_{name}" for name in names)


def _data(*names: str) -> tuple[str, ...]:
    return tuple(f"tests/peers/test_peers_data.py::test_{name}" for name in names)


def _apart(*names: str) -> tuple[str, ...]:
    return tuple(f"tests/peers/test_peers_apart.py::test_{name}" for name in names)


LINKS = (
    Bug(
        "link-without-proof",
        "a server links whoever connects, whatever it proves",
        "broker/peers/greeting.py",
        "        if not hmac.compare_digest(message.proof, self._proof(side)):",
        "        if side == _ANSWERS and not hmac.compare_digest(message.proof, self._proof(side)):",
        _greeting("a_proof_is_of_no_use_a_second_time", "a_stranger_gets_no_proof_to_try_secrets_with"),
    ),
    Bug(
        "link-one-sided-proof",
        "a server that connects believes whoever is there",
        "broker/peers/greeting.py",
        "        if not hmac.compare_digest(message.proof, self._proof(side)):",
        "        if side == _CONNECTS and not hmac.compare_digest(message.proof, self._proof(side)):",
        _greeting("the_one_that_is_connected_to_has_to_prove_it_too"),
    ),
    Bug(
        "link-proof-without-purpose",
        "a proof for one kind of link opens the other",
        "broker/peers/greeting.py",
        "        parts = (self._purpose.value.encode(), hello, challenge)",
        "        parts = (hello, challenge)",
        _greeting("a_proof_for_one_kind_of_link_opens_no_other"),
    ),
    Bug(
        "link-same-nonce",
        "a proof can be used a second time",
        "broker/peers/greeting.py",
        "internal_pb2.PeerChallenge(version=VERSION, nonce=secrets.token_bytes(_NONCE_BYTES))",
        "internal_pb2.PeerChallenge(version=VERSION, nonce=bytes(_NONCE_BYTES))",
        _greeting("a_proof_is_of_no_use_a_second_time"),
    ),
    Bug(
        "link-other-cluster",
        "servers of two clusters are linked",
        "broker/peers/greeting.py",
        "    if other.cluster_id != own.cluster_id:",
        "    if other.cluster_id.version != own.cluster_id.version:",
        _greeting("another_cluster_is_not_linked"),
    ),
    Bug(
        "link-twin",
        "two processes under one server id are linked",
        "broker/peers/registry.py",
        "            if link.lost is None and link.other.incarnation != other.incarnation:",
        "            if link.lost and link.other.incarnation != other.incarnation:",
        _greeting("the_twin_of_a_linked_server_is_refused_until_that_is_gone"),
    ),
    Bug(
        "link-client-certificate",
        "the certificate of a client is as good as that of a server",
        "broker/peers/greeting.py",
        "    if not any(_covers(name, host) for host, _ in addresses for name in names):",
        "    if not names:",
        ("tests/peers/test_peers_tls.py::test_the_certificate_of_a_client_opens_no_link",),
    ),
    Bug(
        "link-api-rights",
        "calls of clients are served on a link",
        "rpc/connection.py",
        "        self._internal = True\n",
        "        self._internal = False\n",
        _apart("a_link_gives_no_right_to_the_api"),
    ),
    Bug(
        "link-counted-as-client",
        "links take the places of clients",
        "rpc/connection.py",
        "        if self._on_uncount is not None:",
        "        if self._on_uncount is None:",
        _apart("links_are_not_counted_among_the_connections_of_clients"),
    ),
    Bug(
        "link-foreign-node",
        "a server speaks for another's node in the consensus",
        "broker/peers/control.py",
        "        if message.source != self.other.node_id or message.target != self._own.node_id:",
        "        if message.target != self._own.node_id:",
        _control("nobody_speaks_for_another_node"),
    ),
    Bug(
        "link-snapshot-first",
        "a heartbeat waits until a snapshot has gone",
        "broker/peers/control.py",
        "            lane = Lane.SNAPSHOTS",
        "            lane = Lane.CONSENSUS",
        _control("a_heartbeat_overtakes_a_snapshot"),
    ),
    Bug(
        "link-half-open",
        "a link to a server that is silent stays open",
        "broker/peers/link.py",
        "            if now >= due:",
        "            if now >= due + 3600:",
        _control("a_silent_server_is_noticed"),
    ),
    Bug(
        "link-lost-question",
        "a question whose link is lost is never answered",
        "broker/peers/control.py",
        "        for waiting in asked.values():",
        "        for waiting in list(asked.values())[1:]:",
        _control("a_question_whose_link_is_lost_may_have_been_asked"),
    ),
    Bug(
        "link-cancelled-question",
        "nobody tells the other side that an answer is not waited for",
        "broker/peers/control.py",
        "            if self._asked.pop(number, None) is not None and self.lost is None:",
        "            if self._asked.pop(number, None) is not None and self.lost:",
        _control("whoever_stops_waiting_has_the_other_side_stop_too"),
    ),
    Bug(
        "link-beyond-credit",
        "a leader may send as much as it likes",
        "broker/peers/data.py",
        "            if self._outstanding >= self._window:",
        "            if self._outstanding >= 1000 * self._window:",
        _data("a_leader_that_sends_beyond_its_credit_loses_the_link"),
    ),
    Bug(
        "link-credit-of-the-forgotten",
        "batches of a forgotten partition are never credit again",
        "broker/peers/data.py",
        "            self.dealt_with(size)  # of a partition that was forgotten",
        "            self.dealt_with(0)  # of a partition that was forgotten",
        _data("what_comes_for_a_forgotten_partition_is_dropped_and_given_back"),
    ),
    Bug(
        "link-half-a-batch",
        "a link goes on behind a half of a batch",
        "broker/peers/data.py",
        "            if not whole:",
        "            if whole:",
        _data("sending_that_is_cancelled_in_the_middle_loses_the_link"),
    ),
    Bug(
        "link-alias-again",
        "data on its way goes to another partition",
        "replication/codec.py",
        "            alias = self._next_alias\n            self._next_alias += 1\n",
        "            alias = len(self._aliases)\n            self._next_alias += 1\n",
        ("tests/peers/test_peers_codec.py::test_an_alias_is_not_used_again",),
    ),
)
