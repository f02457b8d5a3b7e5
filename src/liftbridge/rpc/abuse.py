"""Frames that cost their sender nothing and the server something, counted, so that floods of them end.

No single frame is wrong; too many of a kind in a while are. What the server sends because of a client's calls
forgives what was counted, as clients measure their connection with PINGs while they receive; twenty times as
many are too many even then. Window updates that a client owes us for what it was sent are no cost of its
making, unless they open the window by crumbs, which make the server send crumbs.
"""

from liftbridge.http2 import ConnectionFailure, ErrorCode

from .limits import Limits, Meter

_UNFORGIVEN = 20  # times `max_control_frames` are too many even while the server sends
_USUAL_UPDATE = 2048  # bytes that a client gives back at once, at least, when it is sent a lot
_SMALL_UPDATE = 64  # a window that grows by less makes the server send crumbs


class Floods:
    """What is counted of one connection. Methods that count raise ConnectionFailure when it is too much."""

    __slots__ = ("_all_control_frames", "_control_frames", "_due_updates", "_resets", "_small_updates")

    def __init__(self, limits: Limits) -> None:
        period = limits.abuse_period
        self._resets = Meter(limits.max_resets, period)
        self._control_frames = Meter(limits.max_control_frames, period)
        self._all_control_frames = Meter(_UNFORGIVEN * limits.max_control_frames, period)
        self._small_updates = Meter(limits.max_control_frames, period)
        self._due_updates = 0  # window updates with which the client may give back what it was sent

    def forgive(self) -> None:
        """The server has sent something that a call is about."""
        self._control_frames.reset()

    def expect_updates(self, size: int, *, whole: bool) -> None:
        """So many bytes have left for the client, which will open the windows of stream and connection again.

        However little they were, it may do so when they are `whole`, messages that no window has cut short:
        else a window that it opens by a byte would be a reason for the next.
        """
        self._due_updates += 2 * whole + size // _USUAL_UPDATE

    def count_reset(self) -> None:
        """A stream has ended by RST_STREAM, whoever sent it."""
        if self._resets.exceeded():
            raise ConnectionFailure(ErrorCode.ENHANCE_YOUR_CALM, "too many streams are reset")

    def count_control_frame(self) -> None:
        """A frame has come that carries no call."""
        if self._control_frames.exceeded() or self._all_control_frames.exceeded():
            raise ConnectionFailure(ErrorCode.ENHANCE_YOUR_CALM, "too many frames that carry no call")

    def count_window_update(self, increment: int) -> None:
        """A window has grown by so many bytes."""
        if self._due_updates:
            self._due_updates -= 1
            return
        self.count_control_frame()
        if increment < _SMALL_UPDATE and self._small_updates.exceeded():
            raise ConnectionFailure(ErrorCode.ENHANCE_YOUR_CALM, "too many window updates by a few bytes")
