"""Bugs of what the controller decides: who is alive, and who leads instead."""

from __future__ import annotations

from planted.bug import Bug

FILE = "metadata/control.py"


def _tests(*names: str) -> tuple[str, ...]:
    return tuple(f"tests/metadata/test_control.py::test_{name}" for name in names)


CONTROL = (
    Bug(
        "sessions-from-the-beginning",
        "a new controller fences those it had no time to hear of",
        FILE,
        "        return max(session.begun, session.heard, self._since) + self._session\n",
        "        return max(session.heard, 0.0) + self._session\n",
        _tests("a_new_controller_fences_nobody_for_the_time_before"),
    ),
    Bug(
        "away-and-judging",
        "a controller that stood still fences everybody it did not hear meanwhile",
        FILE,
        "        if now - self._looked > _AWAY * self._session:\n            self._since = now\n",
        "",
        _tests("a_controller_that_was_away_itself_fences_nobody_for_that_time"),
    ),
    Bug(
        "lease-beside-a-fence",
        "a heartbeat is confirmed while a fence of its broker is on its way",
        FILE,
        "        if record.alive and not self._may_be_fenced(record):\n",
        "        if record.alive:\n",
        _tests("no_heartbeat_is_confirmed_while_a_fence_is_on_its_way"),
    ),
    Bug(
        "fence-forgotten",
        "a fence whose outcome is not known is forgotten after a time",
        FILE,
        "            if proposed.unknown and proposed.kind is FenceBroker:\n",
        "            if False:\n",
        _tests("no_heartbeat_is_confirmed_while_a_fence_is_on_its_way"),
    ),
    Bug(
        "any-run-counts",
        "a heartbeat of an earlier run counts",
        FILE,
        "        if broker_epoch != record.epoch:\n            return Heard",
        "        if broker_epoch > record.epoch:\n            return Heard",
        _tests("what_a_heartbeat_is_worth"),
    ),
    Bug(
        "unfenced-unheard",
        "a broker is unfenced that nobody has heard of for long",
        FILE,
        "            heard = session.heard + self._session > now and session.leaving is None\n",
        "            heard = session.leaving is None\n",
        _tests("who_was_heard_long_ago_is_not_unfenced"),
    ),
    Bug(
        "from-one-dead-to-the-next",
        "who is silent leads instead of another that is",
        FILE,
        "        return now >= self._ends(session)\n",
        "        return False\n",
        _tests("of_two_that_are_silent_neither_is_to_lead_instead_of_the_other"),
    ),
    Bug(
        "recovery-by-the-first-answer",
        "the most complete of those that have answered leads, without waiting for the others",
        FILE,
        "            if len(fit) < len(asked):\n                return",
        "            if not fit:\n                return",
        _tests("the_most_complete_of_the_last_known_replicas_leads_when_all_have_answered"),
    ),
    Bug(
        "lost-and-chosen",
        "a replica that has lost what it had on disk leads, though another has it",
        FILE,
        "if each in known and self._takes_part(each, now)}\n"
        "        whole = {each: position for each, position in fit.items() if not position.lost}\n",
        "if each in known and self._takes_part(each, now)}\n        whole = dict(fit)\n",
        _tests("who_has_lost_more_is_not_chosen", "when_all_have_lost_more_nobody_leads"),
    ),
    Bug(
        "position-of-another-run",
        "what an earlier run of a broker has stated counts for this one",
        FILE,
        "            and brokers[broker].epoch == stated.broker_epoch\n",
        "",
        _tests("a_position_of_another_run_does_not_count"),
    ),
    Bug(
        "unclean-at-once",
        "an unclean election does not wait for those that have everything",
        FILE,
        "        enough = _UNCLEAN if len(fit) == len(asked) else 2 * _UNCLEAN\n",
        "        enough = 0.0\n",
        _tests("an_unclean_election_waits_for_who_may_come_back"),
    ),
    Bug(
        "gone-before-others-lead",
        "a broker that leaves is let go while it leads what another could lead",
        FILE,
        "            if partition.leader == record.id and others:\n                return False\n",
        "",
        _tests("who_leaves_is_let_go_when_another_leads_and_not_before"),
    ),
    Bug(
        "back-at-once",
        "leaderships move back to a broker that has just come back",
        FILE,
        "                and now >= session.active + _SETTLED * self._session\n",
        "",
        _tests("the_preferred_leader_leads_again_when_it_has_been_there_for_a_while"),
    ),
    Bug(
        "back-all-together",
        "all leaderships move back at the same time",
        FILE,
        "                if found == MOVES_AT_ONCE:\n                    return\n",
        "",
        _tests("leaderships_move_back_a_few_at_a_time"),
    ),
)
