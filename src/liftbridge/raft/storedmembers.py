"""Members as they are stored, in entries and in snapshots: a protobuf message (`proto/internal.proto`)."""

from __future__ import annotations

from google.protobuf.message import DecodeError

from liftbridge.proto import internal_pb2
from liftbridge.raft.messages import Members


class MembersError(ValueError):
    """Bytes that say nothing of members."""


def encode_members(members: Members) -> bytes:
    """The stored form; the same members have the same bytes."""
    return internal_pb2.RaftMembers(
        voters=sorted(members.voters), learners=sorted(members.learners)
    ).SerializeToString(deterministic=True)


def decode_members(data: bytes) -> Members:
    """Members from their stored form. Raises MembersError."""
    message = internal_pb2.RaftMembers()
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise MembersError("the members of the cluster cannot be decoded") from error
    voters, learners = frozenset(message.voters), frozenset(message.learners)
    if voters & learners or 0 in voters | learners:
        raise MembersError("the members of the cluster contradict each other")
    return Members(voters, learners)
