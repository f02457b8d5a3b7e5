"""Bugs of what was made fast: DATA frames taken in C, calls without a task, flushes without a task."""

from __future__ import annotations

from planted.bug import Bug, log_tests

_MODEL = "tests/wire/test_wire_http2.py::test_data_goes_to_its_stream_and_all_else_comes_back"
_ABUSE = "tests/rpc/test_rpc_abuse.py"
_IMMEDIATE = "tests/rpc/test_rpc_immediate.py"


def _reader(name: str, what: str, old: str, new: str, *tests: str) -> Bug:
    return Bug(name, what, "_wire_http2.pxi", old, new, tests or (_MODEL,))


FRAMES = (
    _reader(
        "connection-window-not-charged",
        "DATA taken in C costs nothing of the connection's window",
        "        self.window -= length\n",
        "",
    ),
    _reader(
        "stream-window-not-charged",
        "DATA taken in C costs nothing of the stream's window, so a stalled call takes any amount",
        "        stream.receive_window -= length\n",
        "",
    ),
    _reader(
        "window-violated-in-c",
        "DATA beyond the connection's window is taken",
        "<int64_t> length > self.window or ",
        "",
        "tests/wire/test_wire_http2.py::test_what_goes_beyond_a_window_comes_back",
    ),
    _reader(
        "padding-not-counted",
        "padding is charged and never given back",
        "stream.append(data, size, length - size)",
        "stream.append(data, size, 0)",
        _MODEL,
        f"{_ABUSE}::test_padding_is_given_back",
    ),
    _reader(
        "padding-is-content",
        "the length of the padding is taken for the first byte of a message",
        "            data += 1\n",
        "",
    ),
    _reader(
        "data-after-the-end",
        "DATA behind the end of a stream is taken",
        "if size == 0 or stream.ended or stream.finished:",
        "if size == 0 or stream.finished:",
        _MODEL,
        f"{_ABUSE}::test_other_stream_errors",
    ),
    _reader(
        "data-for-nobody",
        "DATA for a call that is over is kept",
        "if size == 0 or stream.ended or stream.finished:",
        "if size == 0 or stream.ended:",
    ),
    _reader(
        "empty-data-is-free",
        "empty DATA does not count as a flood",
        "if size == 0 or stream.ended or stream.finished:",
        "if stream.ended or stream.finished:",
    ),
    _reader(
        "end-of-stream-lost",
        "the end of a stream is lost when DATA brings it",
        " and not p[4] & FLAG_END_STREAM",
        "",
    ),
    _reader(
        "data-in-a-header-block",
        "DATA inside of a header block is taken",
        " and not self.in_header_block",
        "",
        _MODEL,
        f"{_ABUSE}::test_data_in_a_header_block",
    ),
    _reader(
        "frame-size-unchecked",
        "a frame may be longer than the server has said",
        "            if length > self.max_frame_size:\n",
        "            if length > self.max_frame_size + 1:\n",
    ),
    _reader(
        "data-told-late",
        "a call hears of its DATA after what came behind it was handled",
        "            self.settle()\n            return p[3]",
        "            return p[3]",
    ),
    Bug(
        "request-never-held",
        "what clients send ahead of their handlers is not counted",
        "rpc/stream.py",
        "        if self._connection.hold(size):\n",
        "        if self._connection.hold(0):\n",
        (
            "tests/rpc/test_rpc_attacks.py::test_requests_that_nobody_handles_are_bounded_over_all_connections",
        ),
    ),
)

FLUSHING = (
    Bug(
        "flush-left-alone",
        "the flusher ends while a sync of its is running",
        "log/flusher.py",
        "            with trio.CancelScope(shield=True):\n                await self._wait_over()\n\n",
        "            pass\n\n",
        log_tests("flusher.py::test_cancellation_finishes_what_runs_and_drain_does_the_rest"),
    ),
    Bug(
        "flush-in-the-turn",
        "a flush begins with the first request of a turn, so each partition has one of its own",
        "log/flusher.py",
        "            if due > -inf or not self._turn.later(self._begin_due):\n",
        "            self._begin_due()\n            if due > -inf:\n",
        log_tests("flusher.py::test_a_request_of_a_turn_begins_its_flush_at_the_end_of_the_turn"),
    ),
    Bug(
        "defect-unheard",
        "a defect in what follows a sync is heard by nobody",
        "log/flusher.py",
        "                self._defect = error\n",
        "                del error\n",
        log_tests("flusher.py::test_a_defect_of_a_callback_ends_the_flusher"),
    ),
)

UNARY = (
    Bug(
        "deadline-forgotten",
        "a call without a task has no deadline",
        "rpc/immediate.py",
        "            self._connection.deadlines.add(self._deadline, self)\n",
        "            pass\n",
        (f"{_IMMEDIATE}::test_deadlines",),
    ),
    Bug(
        "answered-after-its-end",
        "an ack that comes late answers a call that has ended",
        "rpc/immediate.py",
        "        if self.ended:\n            return\n        if self._stream.respond_at_once(frame):\n",
        "        if self._stream.respond_at_once(frame):\n",
        (f"{_IMMEDIATE}::test_a_reset_ends_the_call",),
    ),
    Bug(
        "end-untold",
        "a handler is not told that its call has ended, and keeps what it holds for it",
        "rpc/immediate.py",
        "            self.on_end()\n",
        "",
        (f"{_IMMEDIATE}::test_a_reset_ends_the_call",),
    ),
    Bug(
        "connection-gone-call-stays",
        "calls without a task outlive their connection",
        "rpc/connection.py",
        "            if stream.pending is not None:\n                stream.abort(None)\n",
        "            pass\n",
        (f"{_IMMEDIATE}::test_the_end_of_the_connection_ends_its_calls",),
    ),
    Bug(
        "answer-beyond-the-window",
        "an answer without a task is sent whatever window the client has left",
        "rpc/stream.py",
        "self._responding or size > min(self.send_window, connection.send_room(), _CHUNK)",
        "self._responding or size > _CHUNK",
        (f"{_IMMEDIATE}::test_an_answer_waits_for_the_clients_window",),
    ),
    Bug(
        "first-of-two-requests",
        "a unary request of two messages is served as if it were its first",
        "_wire_http2.pxi",
        "        if p[0] != 0 or message_length(p) != size:\n",
        "        if p[0] != 0 or message_length(p) > size:\n",
        (
            "tests/wire/test_wire_http2.py::test_messages_of_a_stream",
            f"{_IMMEDIATE}::test_a_request_that_is_not_one_message_is_told_as_ever",
        ),
    ),
    Bug(
        "unguarded-without-a-task",
        "a call without a task is checked by nobody",
        "rpc/call.py",
        "                self._admit(stream, connection.context_of(stream), message)\n",
        "                del message\n",
        ("tests/server/test_server_authz.py::test_a_denied_call_has_no_effect",),
    ),
    Bug(
        "turn-overtakes",
        "what a turn writes overtakes what the writer's task has in hand",
        "rpc/writer.py",
        "        if self._sending:\n",
        "        if False:\n",
        ("tests/rpc/test_rpc_writer.py::test_a_turn_does_not_overtake_what_the_task_has_in_hand",),
    ),
)
