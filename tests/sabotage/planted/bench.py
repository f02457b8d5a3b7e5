"""Bugs of the load generator that would make figures better than what is true."""

from __future__ import annotations

from planted.bug import Bug

_TESTS = "tests/bench/test_bench_jetstream.py::test_"


def _consumer(name: str, what: str, old: str, new: str, test: str) -> Bug:
    return Bug(name, what, "bench/_load_jetstream.pxi", old, new, (_TESTS + test,))


MEASURING = (
    _consumer(
        "gap-not-noticed",
        "an ordered consumer does not notice that a message is missing",
        "return dots == ACK_DOTS and sequence == self.messages + 1",
        "return dots == ACK_DOTS",
        "a_message_that_is_missing_is_noticed",
    ),
    _consumer(
        "flow-control-unanswered",
        "the other system waits for answers to its flow control that never come",
        "            return self.reply_to(reply.data, reply.size)\n",
        "            return OK\n",
        "flow_control_is_answered",
    ),
    _consumer(
        "pulled-too-late",
        "a pull consumer is asked again only when nothing more is to come",
        "2 * (self.asked - self.messages) < self.batch",
        "self.asked == self.messages",
        "a_pull_consumer_is_asked_again_when_half_has_come",
    ),
    Bug(
        "heartbeat-is-a-message",
        "a server that sends signs of life and no messages is waited for without end",
        "bench/_load_receive.pxi",
        "                if self.messages > counted:\n",
        "                if True:\n",
        (_TESTS + "heartbeats_are_no_messages",),
    ),
    Bug(
        "delivered-twice",
        "a message that is delivered twice counts for the one that is lost",
        "bench/_load_stamps.pxi",
        "        if self.seen[serial >> 3] & bit:\n",
        "        if False:\n",
        ("tests/bench/test_bench_receive.py::test_what_was_not_published_is_an_error",),
    ),
    Bug(
        "loss-excused",
        "messages that the server under test has lost do not fail the command",
        "bench/main.py",
        'result.settings.get("target") == results[0].settings.get("target")',
        'result.settings.get("target") != results[0].settings.get("target")',
        ("tests/bench/test_bench_parts.py::test_what_another_system_loses_is_not_ours",),
    ),
)
