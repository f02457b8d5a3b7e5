"""What a request must satisfy before it is worth asking the cluster, as pure functions on plain values.

The order of the checks is part of the contract: it decides which error a request with several faults gets.
`check_create_stream` is for the server that answers the client, `resolve_replication_factor` for the one that
leads the cluster; between them lie authorization and forwarding.

Names are addresses, never paths: on disk and in internal subjects a stream's UUID stands for it. They are
restricted all the same, so that a name can be shown, typed, quoted in a URL and written in a policy file.

NATS subjects are sent in a line protocol: a blank or a line break inside one would end it early and make the
rest of the line a command. That is why subjects, groups and inboxes are checked for what NATS cannot carry,
even where clients are not otherwise restricted.
"""

from __future__ import annotations

import re
from dataclasses import fields

from liftbridge.metadata.errors import invalid
from liftbridge.metadata.model import REQUEST_FIELDS, StreamSettings

ACTIVITY_STREAM = "__activity"
CURSORS_STREAM = "__cursors"
RESERVED_NAMES = frozenset({ACTIVITY_STREAM, CURSORS_STREAM})
MAX_NAME_LENGTH = 249
MAX_PARTITIONS = 100_000
# nats-server reads at most 4096 bytes of a command line, where a subject shares room with a reply subject or
# a queue group.
MAX_SUBJECT_BYTES = 2048
MAX_GROUP_BYTES = 1024

# What a setting that is a text may be.
SETTING_WORDS = {
    "compression": ("none", "lz4", "zstd"),
    "sync_policy": ("always", "interval", "never"),
}

_NAME = re.compile(r"(?:[A-Za-z0-9._:@-]|%[0-9A-Fa-f]{2})+")
# Blanks and control characters: what NATS cannot carry in a subject or a group.
_UNFIT = re.compile(r"[\x00-\x20\x7f]")
_SUBJECT = re.compile(rb"[^\x00-\x20\x7f.]+(?:\.[^\x00-\x20\x7f.]+)*")


def check_create_stream(
    *,
    name: str,
    subject: str,
    group: str,
    partitions: int,
    settings: StreamSettings,
    namespace: str,
) -> int:
    """Check a client's request to create a stream, as far as no state is needed.

    Arguments:
        name, subject, group, partitions: as in the request.
        settings: the overrides of the request.
        namespace: the cluster's namespace; subjects under it are the servers' own.

    Returns the number of partitions to create. Raises MetadataError INVALID_ARGUMENT.
    """
    if not name:
        raise invalid("the stream needs a name")
    check_stream_subject(subject)
    if name in RESERVED_NAMES:
        raise invalid(f"the stream name {name!r} is reserved for the server's own stream; choose another")
    _check_name(name)
    _check_foreign_subject(subject, namespace)
    _check_group(group)
    partitions = _resolve_partitions(partitions, subject)
    _check_settings(settings)
    return partitions


def resolve_replication_factor(requested: int, brokers: int) -> int:
    """How many replicas each partition of a new stream gets.

    Arguments:
        requested: as in the request: 0 stands for 1, -1 for every broker.
        brokers: how many brokers the cluster has.

    Raises MetadataError INVALID_ARGUMENT for any other number below 1 and for more than there are brokers.
    """
    assert brokers >= 1, brokers
    if requested == -1:
        return brokers
    if requested < -1:
        raise invalid(
            f"replicationFactor must be positive, 0 for one replica or -1 for one on every broker, "
            f"got {requested}"
        )
    if requested > brokers:
        raise invalid(
            f"replicationFactor {requested} is more than the {brokers} "
            f"broker{'s' if brokers > 1 else ''} of the cluster; lower it or add brokers"
        )
    return requested or 1


def check_delete_stream(name: str) -> None:
    """Check a client's request to delete a stream; MetadataError INVALID_ARGUMENT for the server's own."""
    if name in RESERVED_NAMES:
        raise invalid(f"stream {name!r} is the server's own and cannot be deleted")


def check_stream_subject(subject: str) -> None:
    """Check the NATS subject of a stream, wildcards allowed; MetadataError INVALID_ARGUMENT."""
    if not subject:
        raise invalid("the stream needs a NATS subject")
    unfit = _UNFIT.search(subject)
    if unfit:
        raise invalid(
            f"subject {shown(subject)} contains {unfit.group()!r}; NATS subjects have no blanks or "
            "control characters"
        )
    tokens = subject.split(".")
    if "" in tokens:
        raise invalid(f"subject {shown(subject)} has an empty token; dots stand between two tokens only")
    if ">" in tokens[:-1]:
        raise invalid(f"subject {shown(subject)}: the wildcard '>' can only be the last token")
    if len(subject.encode()) > MAX_SUBJECT_BYTES:
        raise invalid(f"subject {shown(subject)} is longer than {MAX_SUBJECT_BYTES} bytes")


def check_publish_subject(subject: bytes) -> None:
    """Check a subject to publish to, as UTF-8 bytes; MetadataError INVALID_ARGUMENT.

    Wildcard tokens pass: a stream on `foo.*` is published to under exactly that text, which NATS carries.
    """
    _check_subject_bytes(subject, "subject")


def check_ack_inbox(inbox: bytes) -> None:
    """Check the subject a client wants its ack on, as UTF-8 bytes; MetadataError INVALID_ARGUMENT.

    Wildcards are refused: the server subscribes to the inbox while it waits, and would take the first message
    of somebody else for the ack.
    """
    _check_subject_bytes(inbox, "ackInbox")
    if not {b"*", b">"}.isdisjoint(inbox.split(b".")):
        raise invalid(f"ackInbox {shown(inbox)} contains a wildcard; name one subject")


def shown(value: str | bytes) -> str:
    """A quoted form of something a client sent, cut so that an error text stays short."""
    text = value.decode(errors="replace") if isinstance(value, bytes) else value
    return repr(text if len(text) <= 80 else f"{text[:77]}...")


def _check_name(name: str) -> None:
    if name in {".", ".."}:
        raise invalid(f"the stream name {name!r} is not allowed")
    if len(name) > MAX_NAME_LENGTH:
        raise invalid(
            f"the stream name {shown(name)} has {len(name)} characters; at most {MAX_NAME_LENGTH} are allowed"
        )
    if not _NAME.fullmatch(name):
        raise invalid(
            f"the stream name {shown(name)} contains characters other than letters, digits and ._:@- ; "
            "write others percent-encoded, such as %2F for a slash"
        )


def _check_foreign_subject(subject: str, namespace: str) -> None:
    if subject.startswith("$"):
        raise invalid(f"subject {shown(subject)}: subjects that begin with '$' belong to NATS itself")
    if subject.split(".", 1)[0] == namespace:
        raise invalid(
            f"subject {shown(subject)}: subjects under {namespace!r} belong to the servers of this cluster"
        )


def _check_group(group: str) -> None:
    unfit = _UNFIT.search(group)
    if unfit:
        raise invalid(
            f"group {shown(group)} contains {unfit.group()!r}; NATS queue groups have no blanks or "
            "control characters"
        )
    if len(group.encode()) > MAX_GROUP_BYTES:
        raise invalid(f"group {shown(group)} is longer than {MAX_GROUP_BYTES} bytes")


def _resolve_partitions(requested: int, subject: str) -> int:
    if requested < 0:
        raise invalid(f"partitions must not be negative, got {requested}")
    if requested > MAX_PARTITIONS:
        raise invalid(f"partitions must be at most {MAX_PARTITIONS}, got {requested}")
    if requested > 1 and (subject == ">" or subject.endswith(".>")):
        raise invalid(
            f"subject {shown(subject)} ends in '>', so nothing can be appended to it for further partitions; "
            "use one partition or another subject"
        )
    return requested or 1


def _check_settings(settings: StreamSettings) -> None:
    for field in fields(settings):
        value = getattr(settings, field.name)
        words = SETTING_WORDS.get(field.name)
        if value is None:
            continue
        if words is not None and value not in words:
            raise invalid(
                f"{REQUEST_FIELDS[field.name]} must be one of {', '.join(words)}, or empty for the server's "
                f"setting; got {shown(value)}"
            )
        if words is None and value < 0:
            raise invalid(f"{REQUEST_FIELDS[field.name]} must not be negative, got {value}")


def _check_subject_bytes(subject: bytes, what: str) -> None:
    if not _SUBJECT.fullmatch(subject):
        raise invalid(
            f"{what} {shown(subject)} is not a NATS subject: tokens without blanks or control characters, "
            "separated by single dots"
        )
    if len(subject) > MAX_SUBJECT_BYTES:
        raise invalid(f"{what} {shown(subject)} is longer than {MAX_SUBJECT_BYTES} bytes")
