"""Events of operations: what the activity stream says."""

from __future__ import annotations

import uuid

import pytest
from metadata_cases import create

from liftbridge.metadata import activity
from liftbridge.metadata.operations import DeleteStream
from liftbridge.metadata.placement import Placement
from liftbridge.proto import api_pb2

PLACE = Placement(("alpha",), "alpha")


@pytest.mark.parametrize(
    ("operation", "op", "detail", "expected"),
    [
        (
            create("orders", partitions=(PLACE, PLACE)),
            api_pb2.CREATE_STREAM,
            "createStreamOp",
            api_pb2.CreateStreamOp(stream="orders", partitions=[0, 1]),
        ),
        (
            DeleteStream("orders", uuid.UUID(int=1)),
            api_pb2.DELETE_STREAM,
            "deleteStreamOp",
            api_pb2.DeleteStreamOp(stream="orders"),
        ),
    ],
)
def test_the_event_of_an_operation(operation, op, detail, expected):
    event = activity.event_of(7, operation)
    assert (event.id, event.op) == (7, op)
    assert [field.name for field, _ in event.ListFields()] == [
        name for name in ("id", "op", detail) if name != "op" or op
    ]
    assert getattr(event, detail) == expected


EVENTS = [
    (activity.stream_created(1, "s", [0, 1]), "createStreamOp", {"stream": "s", "partitions": [0, 1]}),
    (activity.stream_deleted(1, "s"), "deleteStreamOp", {"stream": "s"}),
    (
        activity.stream_paused(1, "s", [2], resume_all=True),
        "pauseStreamOp",
        {"stream": "s", "partitions": [2], "resumeAll": True},
    ),
    (activity.stream_resumed(1, "s", [2]), "resumeStreamOp", {"stream": "s", "partitions": [2]}),
    (
        activity.stream_readonly(1, "s", [2], readonly=True),
        "setStreamReadonlyOp",
        {"stream": "s", "partitions": [2], "readonly": True},
    ),
    (
        activity.group_joined(1, "g", "c", ["s", "t"]),
        "joinConsumerGroupOp",
        {"groupId": "g", "consumerId": "c", "streams": ["s", "t"]},
    ),
    (
        activity.group_left(1, "g", "c", expired=True),
        "leaveConsumerGroupOp",
        {"groupId": "g", "consumerId": "c", "expired": True},
    ),
]


@pytest.mark.parametrize(("number", "event", "detail", "fields"), [(n, *row) for n, row in enumerate(EVENTS)])
def test_exactly_the_detail_that_op_names_is_set(number, event, detail, fields):
    expected = api_pb2.ActivityStreamEvent(id=1, op=number)
    for name, value in fields.items():
        target = getattr(expected, detail)
        if isinstance(value, list):
            getattr(target, name).extend(value)
        else:
            setattr(target, name, value)
    assert event == expected


@pytest.mark.parametrize(("event", "detail", "fields"), EVENTS)
def test_an_abridged_event_lacks_lists_and_nothing_else(event, detail, fields):
    before = event.SerializeToString()
    short = activity.abridged(event)
    assert event.SerializeToString() == before
    assert (short.id, short.op, short.HasField(detail)) == (event.id, event.op, True)
    for name, value in fields.items():
        kept = getattr(getattr(short, detail), name)
        assert list(kept) == [] if isinstance(value, list) else kept == value
