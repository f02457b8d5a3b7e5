"""An input read as decisions and byte strings, for targets whose code would refuse plain noise at once.

Every sequence of bytes is a script: what is missing at the end reads as zeros and empty strings. `written` is
the inverse, for seeds.
"""

from __future__ import annotations

_LONG = 255


class Script:
    """Reads an input from its beginning."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def number(self) -> int:
        """The next byte."""
        value = self._data[self._at] if self else 0
        self._at += 1
        return value

    def string(self) -> bytes:
        """The next byte string: one byte of length, or 255 and two, then the content."""
        length = self.number()
        if length == _LONG:
            length = self.number() << 8 | self.number()
        value = self._data[self._at : self._at + length]
        self._at += length
        return value

    def rest(self) -> bytes:
        """Everything that is left."""
        value = self._data[self._at :]
        self._at = len(self._data)
        return value


def written(*parts: int | bytes) -> bytes:
    """The script of these numbers and byte strings."""
    script = bytearray()
    for part in parts:
        if isinstance(part, int):
            script.append(part)
        else:
            long = len(part) >= _LONG
            script += bytes([_LONG]) + len(part).to_bytes(2, "big") if long else bytes([len(part)])
            script += part
    return bytes(script)


def pieces(data: bytes, cuts: bytes) -> list[bytes]:
    """`data` cut at distances of 1 to 256 bytes given by `cuts`; what is behind the last stays whole."""
    found = []
    at = 0
    for cut in cuts:
        if at >= len(data):
            break
        found.append(data[at : at + cut + 1])
        at += cut + 1
    return [*found, data[at:]] if at < len(data) else found
