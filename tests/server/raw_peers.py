"""Peers without manners: NATS and HTTP/2 by hand on a plain socket, so that anything can be sent."""

import socket
from urllib.parse import urlsplit

from hpack import Encoder
from hyperframe.frame import DataFrame, HeadersFrame, SettingsFrame, WindowUpdateFrame

from liftbridge._log import crc32c

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
LARGEST_WINDOW = (1 << 31) - 1


class RawNats:
    """A NATS client that sends what it is given. `received` collects (subject, payload)."""

    def __init__(self, url):
        parts = urlsplit(url)
        self.socket = socket.create_connection((parts.hostname, parts.port), timeout=30)
        self.file = self.socket.makefile("rb")
        self.received = []
        assert self.file.readline().startswith(b"INFO ")
        self.socket.sendall(b'CONNECT {"verbose":false,"headers":true,"echo":true}\r\n')
        self.sync()

    def publish(self, subject, payload, reply=b""):
        middle = b" %s" % reply if reply else b""
        self.socket.sendall(b"PUB %s%s %d\r\n%s\r\n" % (subject, middle, len(payload), payload))

    def subscribe(self, subject):
        self.socket.sendall(b"SUB %s 1\r\n" % subject)
        self.sync()

    def sync(self):
        """Wait until the server has handled everything sent, and take what it has delivered until then."""
        self.socket.sendall(b"PING\r\n")
        while self._next() != b"PONG\r\n":
            pass

    def wait(self, count):
        """Wait until so many messages have been received."""
        while len(self.received) < count:
            self._next()
        return self.received

    def _next(self):
        line = self.file.readline()
        assert line, "NATS closed the connection"
        if line.startswith(b"PING"):
            self.socket.sendall(b"PONG\r\n")
        if line.startswith(b"MSG "):
            words = line.split()
            self.received.append((words[1], self.file.read(int(words[-1]))))
            assert self.file.read(2) == b"\r\n"
        assert not line.startswith(b"-ERR"), line
        return line

    def close(self):
        self.file.close()
        self.socket.close()


def connect(port):
    """A TCP connection to a server on this machine."""
    return socket.create_connection(("127.0.0.1", port), timeout=30)


def greeting(window=LARGEST_WINDOW):
    """What an HTTP/2 client says first; it grants the server `window` bytes on each stream."""
    settings = SettingsFrame(0, settings={SettingsFrame.INITIAL_WINDOW_SIZE: window})
    update = WindowUpdateFrame(0, window_increment=LARGEST_WINDOW - 65535)
    return PREFACE + settings.serialize() + update.serialize()


def call_frames(method, *messages):
    """The frames of a first call of proto.API with serialized request messages; no more requests follow."""
    fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", f"/proto.API/{method}"),
        (":authority", "127.0.0.1"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
    ]
    body = b"".join(b"\0" + len(message).to_bytes(4, "big") + message for message in messages)
    headers = HeadersFrame(1, Encoder().encode(fields), flags=["END_HEADERS"])
    return headers.serialize() + DataFrame(1, body, flags=["END_STREAM"]).serialize()


def envelope(payload, *, header=8, flags=0, kind=0, version=0, magic=b"\xb9\x0e\x43\xb4", crc=b""):
    """A Liftbridge envelope, right or wrong."""
    return magic + bytes([version, header, flags, kind]) + crc + payload


def envelope_with_crc(payload, *, wrong=False):
    crc = crc32c(payload) ^ wrong
    return envelope(payload, header=12, flags=1, crc=crc.to_bytes(4, "big"))
