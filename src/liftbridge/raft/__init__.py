"""Consensus on metadata: an own Raft, pure. Its caller stores, sends and applies what it says."""

from __future__ import annotations

from liftbridge.raft.codec import CodecError, decode_message, encode_message
from liftbridge.raft.core import Raft
from liftbridge.raft.invariant import InvariantError
from liftbridge.raft.messages import (
    Append,
    AppendReply,
    Entry,
    EntryKind,
    HardState,
    Members,
    Message,
    NodeId,
    Removed,
    Snapshot,
    SnapshotChunk,
    SnapshotMeta,
    SnapshotReply,
    TimeoutNow,
    VoteReply,
    VoteRequest,
)
from liftbridge.raft.options import Options
from liftbridge.raft.ready import Ready, Refusal, Role, Stored
from liftbridge.raft.storedmembers import MembersError, decode_members, encode_members

__all__ = [
    "Append",
    "AppendReply",
    "CodecError",
    "Entry",
    "EntryKind",
    "HardState",
    "InvariantError",
    "Members",
    "MembersError",
    "Message",
    "NodeId",
    "Options",
    "Raft",
    "Ready",
    "Refusal",
    "Removed",
    "Role",
    "Snapshot",
    "SnapshotChunk",
    "SnapshotMeta",
    "SnapshotReply",
    "Stored",
    "TimeoutNow",
    "VoteReply",
    "VoteRequest",
    "decode_members",
    "decode_message",
    "encode_members",
    "encode_message",
]
