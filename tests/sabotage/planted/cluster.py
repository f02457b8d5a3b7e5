"""Bugs of what several servers do together: who decides, and what the others know of it."""

from __future__ import annotations

from planted.bug import Bug


def _asked(*names: str) -> tuple[str, ...]:
    return tuple(f"tests/metadata/test_controller_members.py::test_{name}" for name in names)


def _nodes(*names: str) -> tuple[str, ...]:
    return tuple(f"tests/metadata/test_consensus_members.py::test_{name}" for name in names)


DECIDING = (
    Bug(
        "decided-on-an-old-state",
        "a server that does not lead decides on what it knew before it was asked",
        "broker/controller.py",
        "                    await self._consensus.wait_applied(index)\n                    return\n",
        "                    return\n",
        _asked(
            "what_any_server_is_asked_for_is_there_on_that_server_at_once",
            "a_server_that_was_away_for_long_knows_what_is_deleted",
        ),
    ),
    Bug(
        "told-before-applied-here",
        "a change is told before the server that was asked has applied it",
        "broker/controller.py",
        "        await self._consensus.wait_applied(index)\n        return self._metadata",
        "        return self._metadata",
        _asked("what_any_server_is_asked_for_is_there_on_that_server_at_once"),
    ),
    Bug(
        "everything-repeatable",
        "what must not be done twice is asked for again when its answer was lost",
        "broker/forwarding.py",
        "    return isinstance(operation, _REPEATABLE)\n",
        "    return True\n",
        _asked("what_must_not_be_done_twice_is_not_asked_for_again"),
    ),
    Bug(
        "second-attempt-refused",
        "a client is told that its stream exists already, which it has created itself",
        "broker/controller.py",
        "                if not done_before(operation, refusal, self.state):\n",
        "                if True:\n",
        _asked("an_answer_that_is_lost_is_asked_for_again_and_done_once"),
    ),
    Bug(
        "anybody-answers-reads",
        "a server that does not lead says how much is agreed on",
        "broker/controller.py",
        "                return answer_elsewhere()\n            return answer(await self._newest())\n",
        "                pass\n            return answer(self._consensus.applied)\n",
        _asked("only_who_decides_carries_out_what_others_ask"),
    ),
    Bug(
        "read-without-majority",
        "a leader that is cut off answers how much is agreed on",
        "broker/consensus.py",
        "            index = await waiter.wait()\n",
        "            index = self.core.commit\n",
        _nodes("a_leader_that_is_cut_off_answers_no_read"),
    ),
    Bug(
        "unanswered-answered",
        "who asked a leader that was lost meanwhile is told that it need not wait for anything",
        "broker/consensus.py",
        "                self._asking[question].finish(None, NotLeadingError())\n",
        "                self._asking[question].finish(0, None)\n",
        _nodes("a_leader_that_is_cut_off_answers_no_read"),
    ),
    Bug(
        "proposals-without-bound",
        "a leader without a majority takes any number of proposals",
        "broker/consensus.py",
        "        if len(self._waiting) >= MAX_WAITING:\n",
        "        if False:\n",
        _nodes("so_many_wait_for_a_majority_and_no_more"),
    ),
    Bug(
        "second-cluster-begun",
        "a seed begins a cluster although it has heard of one",
        "broker/founding.py",
        "        return Join(cluster_id, tuple(sorted(servers)))\n    if seed:\n",
        "        if not seed:\n            return Join(cluster_id, tuple(sorted(servers)))\n    if seed:\n",
        ("tests/clustering/test_founding.py::test_nobody_begins_a_second_cluster",),
    ),
    Bug(
        "everybody-begins",
        "each of those who are to begin a cluster together begins one",
        "broker/founding.py",
        "    return Begin() if first == own_id else Wait",
        "    return Begin() if first else Wait",
        ("tests/clustering/test_founding.py::test_of_those_who_begin_together_the_first_does_it",),
    ),
    Bug(
        "hearsay-believed",
        "a cluster is joined that nobody was asked for",
        "broker/founding.py",
        "                if await cluster_of(server_id) == decision.cluster_id:\n",
        "                if await cluster_of(server_id) or True:\n",
        ("tests/clustering/test_founding.py::test_hearsay_is_not_enough",),
    ),
    Bug(
        "announcement-without-proof",
        "a server that does not know the secret is heard",
        "broker/discovery.py",
        "    if secret and not hmac.compare_digest(proof, _proof(secret, message)):\n",
        "    if secret and not hmac.compare_digest(_proof(secret, message), _proof(secret, message)):\n",
        ("tests/clustering/test_discovery.py::test_those_who_do_not_know_the_secret_are_not_heard",),
    ),
    Bug(
        "old-disk-keeps-its-vote",
        "the node of a disk that was replaced stays a member",
        "broker/membership.py",
        "    found: list[Change] = [Remove(node) for node in sorted(nodes - present.keys() - {own})]\n",
        "    found: list[Change] = []\n",
        ("tests/clustering/test_membership.py",),
    ),
    Bug(
        "vote-for-the-dead",
        "a broker that is not alive gets a vote",
        "broker/membership.py",
        "    waiting = [node for node in sorted(members.learners & present.keys()) if present[node].alive]\n",
        "    waiting = sorted(members.learners & present.keys())\n",
        ("tests/clustering/test_membership.py",),
    ),
)
