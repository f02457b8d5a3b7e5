"""Why the cluster refuses something, in the terms a client understands.

Every refusal of a metadata request is a `MetadataError`: a gRPC status code and a text that names what is
wrong, where, and what to do. The codes are an enum of our own, because this layer knows nothing of gRPC; its
names and numbers are those of the gRPC status codes, so the API converts by number.
"""

from __future__ import annotations

import enum


class MetadataCode(enum.Enum):
    """The gRPC status codes that a metadata request can end with."""

    INVALID_ARGUMENT = 3
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    INTERNAL = 13


class MetadataError(Exception):
    """A metadata request is refused and has changed nothing, unless its text says otherwise.

    Attributes:
        code: the status code a client gets.
        text: what is wrong, where, and what to do next.
    """

    def __init__(self, code: MetadataCode, text: str) -> None:
        super().__init__(code, text)
        self.code = code
        self.text = text

    def __str__(self) -> str:
        return f"{self.code.name}: {self.text}"


def invalid(text: str) -> MetadataError:
    """The error for a request that is wrong whatever the state of the cluster."""
    return MetadataError(MetadataCode.INVALID_ARGUMENT, text)
