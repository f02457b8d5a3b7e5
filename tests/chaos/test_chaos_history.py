"""The checks of a history find what cannot be, and nothing else."""

import pytest

from chaos.history import History

FINAL = {0: b"a", 1: b"b", 2: b"b"}


def history():
    made = History()
    for value in (b"a", b"b", b"c"):
        made.sends(value)
    made.acks(b"a", 0)
    made.acks(b"b", 2)  # it was sent twice, and the first ack was lost
    made.reads(0, 0, b"a")
    made.reads(1, 1, b"b")
    return made


def replicas(**changes):
    return {"s0": dict(FINAL), "s1": dict(FINAL), **changes}


def test_what_can_be_is_no_finding():
    assert history().check(replicas(), "s0") == []


@pytest.mark.parametrize(
    ("held", "text"),
    [
        ({0: b"a", 1: b"b"}, "b'b' was acked at 2, where None is"),
        ({0: b"b", 1: b"a", 2: b"b"}, "b'a' was read at 0, where b'b' is"),
        ({0: b"a", 1: b"x", 2: b"b"}, "b'x' was never sent"),
        ({0: b"a", 2: b"b"}, "offsets are missing"),
    ],
)
def test_what_a_leader_may_not_have(held, text):
    assert text in history().check(replicas(s0=held), "s0")


def test_a_replica_that_differs():
    found = history().check(replicas(s1={0: b"a", 1: b"b"}), "s0")
    assert found == ["s1 has None at 2, and s0 has b'b'"]


def test_readers_that_see_what_they_may_not():
    made = history()
    made.reads(2, 3, b"c")
    made.reads(1, 1, b"c")
    found = made.check(replicas(), "s0")
    assert "a reader at 2 got 3" in found
    assert "offset 1 was b'b', and then b'c'" in found
