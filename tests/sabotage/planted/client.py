"""Bugs of the client: messages are lost, repeated or mixed up, calls go astray, a fault is no end or none."""

from __future__ import annotations

from planted.bug import Bug, client_tests

SUBSCRIBING = (
    Bug(
        "resumed-with-repeat",
        "after a fault a subscription delivers its last message again",
        "client/subscription.py",
        "self._last - 1 if self._wanted.reverse else self._last + 1",
        "self._last - 1 if self._wanted.reverse else self._last",
        client_tests("routing.py::test_a_subscription_goes_on_at_the_next_leader_in_both_directions"),
    ),
    Bug(
        "resumed-with-gap",
        "after a fault a subscription leaves out a message",
        "client/subscription.py",
        "self._last - 1 if self._wanted.reverse else self._last + 1",
        "self._last - 1 if self._wanted.reverse else self._last + 2",
        client_tests("faults.py::test_every_acked_message_arrives_once_and_in_order_through_restarts"),
    ),
    Bug(
        "reverse-resumed-forward",
        "after a fault a reverse subscription goes on towards newer messages",
        "client/subscription.py",
        "self._last - 1 if self._wanted.reverse else self._last + 1",
        "self._last + 1",
        client_tests("routing.py::test_a_subscription_goes_on_at_the_next_leader_in_both_directions"),
    ),
    Bug(
        "new-by-its-word",
        'a subscription asks for "new" by that word, which means something else after a fault',
        "client/subscription.py",
        "        elif newest is None or self._wanted.reverse:\n",
        '        elif newest is None or self._wanted.reverse or start == "new":\n',
        client_tests("faults.py::test_a_subscription_to_new_messages_misses_none_though_nothing_had_arrived"),
    ),
    Bug(
        "end-not-known",
        "a subscription that has everything is opened again when only the word of its end was lost",
        "client/subscription.py",
        "return stop is not None and self._last >= stop",
        "return stop is not None and self._last > stop",
        client_tests("routing.py::test_a_subscription_that_has_everything_is_at_its_end_whatever_is_lost"),
    ),
    Bug(
        "oldest-not-known",
        "a reverse subscription goes on below the oldest offset when the word of its end was lost",
        "client/subscription.py",
        "return self._last <= (0 if stop is None else stop)",
        "return stop is not None and self._last <= stop",
        client_tests("routing.py::test_a_subscription_that_has_everything_is_at_its_end_whatever_is_lost"),
    ),
    Bug(
        "made-anew-unnoticed",
        "a stream that was created anew is taken for the old one",
        "client/subscription.py",
        "not self._wanted.reverse and first.offset <= self._last:",
        "not self._wanted.reverse and first.offset < 0:",
        client_tests("faults.py::test_a_stream_made_anew_is_not_taken_for_the_old_one"),
    ),
    Bug(
        "cancelled-read-loses",
        "a read that is cancelled drops the messages it has taken",
        "client/subscription.py",
        "            return self._decode(raw)\n",
        "            messages = self._decode(raw)\n"
        "            await anyio.lowlevel.checkpoint()\n"
        "            return messages\n",
        client_tests("calls.py::test_a_read_that_is_cancelled_as_its_message_arrives_loses_nothing"),
    ),
    Bug(
        "moved-leader-asked",
        "a subscription asks the server that led the partition once, again and again",
        "client/subscription.py",
        "                call.cancel()\n            self._router.forget(wanted.stream)\n",
        "                call.cancel()\n",
        client_tests("routing.py::test_a_subscription_finds_the_leader_that_has_moved"),
    ),
)

PUBLISHING = (
    Bug(
        "ack-of-the-oldest",
        "an answer is taken for that of the oldest message, whichever it names",
        "client/publishing.py",
        "self._in_flight.get(response.correlationId or ack.correlationId)",
        "next(iter(self._in_flight.values()), None)",
        client_tests(
            "calls.py::test_a_message_that_is_too_large_is_refused_and_the_others_are_stored",
        ),
    ),
    Bug(
        "in-flight-unbounded",
        "a publisher takes any number of messages ahead of their acks",
        "client/publishing.py",
        "self._unsent) >= self._max_in_flight or self._bytes >= self._max_bytes\n",
        "self._unsent) < 0 or self._bytes >= self._max_bytes\n",
        client_tests("calls.py::test_a_pipelined_publisher_keeps_order_and_answers_each_message"),
    ),
    Bug(
        "bytes-unbounded",
        "a publisher takes any number of bytes ahead of their acks",
        "client/publishing.py",
        "self._unsent) >= self._max_in_flight or self._bytes >= self._max_bytes\n",
        "self._unsent) >= self._max_in_flight\n",
        client_tests("calls.py::test_the_bytes_in_flight_are_bounded"),
    ),
    Bug(
        "batch-unbounded",
        "a batch is taken as a whole, however much is on its way",
        "client/publishing.py",
        "            ):\n                await self._wait_for_room()\n",
        "            ):\n                await anyio.lowlevel.checkpoint()\n",
        client_tests("calls.py::test_what_is_in_flight_is_bounded_within_a_batch"),
    ),
    Bug(
        "sent-twice-unasked",
        "a message whose ack was lost is sent again though nobody has asked for that",
        "client/publishing.py",
        "        return at_least_once or not sent\n",
        "        return at_least_once or sent\n",
        client_tests("lost_answers.py::test_a_message_is_not_sent_again_unless_that_is_wanted"),
    ),
    Bug(
        "pipelined-twice-unasked",
        "a publisher sends again what is without an ack though nobody has asked for that",
        "client/publishing.py",
        "        if not self._at_least_once:\n            text",
        "        if self._closed:\n            text",
        client_tests(
            "lost_answers.py::test_messages_of_a_publisher_are_not_sent_again_unless_that_is_wanted"
        ),
    ),
    Bug(
        "sent-again-reversed",
        "what is sent again after a fault goes in the opposite order",
        "client/publishing.py",
        "self._unsent.extendleft(reversed(self._in_flight.values()))",
        "self._unsent.extendleft(self._in_flight.values())",
        client_tests("lost_answers.py::test_what_is_sent_again_keeps_its_order_and_goes_before_what_is_new"),
    ),
    Bug(
        "sent-again-last",
        "what is sent again after a fault goes behind what is new",
        "client/publishing.py",
        "self._unsent.extendleft(reversed(self._in_flight.values()))",
        "self._unsent.extend(self._in_flight.values())",
        client_tests("lost_answers.py::test_what_is_sent_again_keeps_its_order_and_goes_before_what_is_new"),
    ),
    Bug(
        "headers-stay",
        "the headers of a message are those of the next ones, too",
        "client/publishing.py",
        "            request.headers.clear()\n",
        "            request.headers.keys()\n",
        client_tests("calls.py::test_headers_are_of_one_message"),
    ),
    Bug(
        "closed-publisher-takes",
        "a publisher that was closed takes messages and does nothing with them",
        "client/publishing.py",
        "        self._closed = True\n        self._fail_all(",
        "        self._fail_all(",
        client_tests("calls.py::test_what_was_closed_says_so"),
    ),
    Bug(
        "another-hash",
        "keys go to other partitions than with the Go client",
        "client/partitioners.py",
        "zlib.crc32(key) % partitions",
        "zlib.adler32(key) % partitions",
        client_tests("partitioners.py::test_vectors_of_the_go_client"),
    ),
    Bug(
        "round-robin-stands",
        "round robin chooses one partition for ever",
        "client/partitioners.py",
        "self._counts[stream] = count + 1",
        "self._counts[stream] = count",
        client_tests("partitioners.py::test_round_robin_counts_each_stream_by_itself"),
    ),
)

CALLING = (
    Bug(
        "refusal-tried-again",
        "a call is tried again whatever it was answered",
        "client/routing.py",
        "                if error.code not in codes:\n",
        "                if error.code is StatusCode.OK:\n",
        client_tests("routing.py::test_a_call_that_is_refused_is_made_once"),
    ),
    Bug(
        "dead-server-asked",
        "a call that one server does not answer is never made at another one",
        "client/routing.py",
        "            self.prefer_another()\n            if not await pauses.wait():\n",
        "            if not await pauses.wait():\n",
        client_tests("routing.py::test_a_call_goes_to_another_server_when_one_is_away"),
    ),
    Bug(
        "leader-not-looked-up",
        "who leads a partition is not asked again when the one that did refuses",
        "client/routing.py",
        "            except LiftbridgeError:\n                self.forget(stream)\n",
        "            except LiftbridgeError:\n",
        client_tests("routing.py::test_a_call_for_the_leader_follows_it"),
    ),
    Bug(
        "refusal-of-old-leader-final",
        "a call fails when the server does not lead the partition any more",
        "client/routing.py",
        "(StatusCode.UNAVAILABLE, StatusCode.FAILED_PRECONDITION))",
        "(StatusCode.UNAVAILABLE,))",
        client_tests("routing.py::test_a_call_for_the_leader_follows_it"),
    ),
    Bug(
        "partitions-remembered",
        "a partition that a stream has got meanwhile is said not to exist",
        "client/routing.py",
        "            self.forget(stream)\n            info = await self.stream(stream, timeout)\n",
        "            info = await self.stream(stream, timeout)\n",
        client_tests("calls.py::test_a_stream_that_others_have_made_anew_with_more_partitions"),
    ),
    Bug(
        "leader-for-replica",
        "who wants to read from a replica gets the leader",
        "client/routing.py",
        "        if replica:\n",
        "        if replica and not info.isr:\n",
        client_tests("routing.py::test_an_in_sync_replica_is_read"),
    ),
    Bug(
        "attempts-forgotten",
        "a call does not know of its attempts that were cut off, and calls their success an error",
        "client/routing.py",
        "                cut_off = cut_off or error.may_have_run\n",
        "",
        client_tests("lost_answers.py"),
    ),
    Bug(
        "closed-client-not-told",
        "a client that is closed opens connections that nobody runs",
        "client/pool.py",
        "        if self._closed:\n",
        "        if self._closed and not self._connections:\n",
        client_tests("calls.py::test_what_was_closed_says_so"),
    ),
)

CONNECTION = (
    Bug(
        "connection-window-kept",
        "the window of a connection is not given back, and all of its calls come to stand after 2 GiB",
        "client/connection.py",
        "        if self._window_owed >= 1 << 20:\n",
        "        if self._window_owed >= 1 << 31:\n",
        client_tests(
            "transport.py::"
            "test_windows_are_given_back_that_of_the_connection_at_once_that_of_a_call_as_it_is_read"
        ),
    ),
    Bug(
        "call-window-for-nothing",
        "the window of a call is given back before its messages are read, so that any number waits in memory",
        "client/connection.py",
        "        self._inbound += data\n        if padding:\n            self._give_back(padding)\n",
        "        self._inbound += data\n        self._give_back(len(data) + padding)\n",
        client_tests(
            "transport.py::"
            "test_windows_are_given_back_that_of_the_connection_at_once_that_of_a_call_as_it_is_read"
        ),
    ),
    Bug(
        "peer-window-ignored",
        "DATA is sent beyond the window that the server has given",
        "client/connection.py",
        "return min(self.send_window, self.options.write_buffer - self._out_size)",
        "return self.options.write_buffer - self._out_size",
        client_tests("transport.py::test_a_sender_waits_for_the_window"),
    ),
    Bug(
        "goaway-ignored",
        "calls are made on a connection whose server is stopping",
        "client/connection.py",
        '"no reason given"\n        self.draining = True\n',
        '"no reason given"\n',
        client_tests(
            "transport.py::test_statuses_behind_a_goaway_still_arrive_and_calls_beyond_it_never_ran"
        ),
    ),
    Bug(
        "goaway-ends-all",
        "calls that a stopping server still answers are given up",
        "client/connection.py",
        "            if call.id > last:",
        "            if call.id:",
        client_tests(
            "transport.py::test_statuses_behind_a_goaway_still_arrive_and_calls_beyond_it_never_ran"
        ),
    ),
    Bug(
        "status-ignored",
        "a call that ends with an error counts as done",
        "client/connection.py",
        "        if number == 0:\n",
        "        if number >= 0:\n",
        client_tests("calls.py::test_stream_errors_are_told_apart"),
    ),
    Bug(
        "end-without-status-is-good",
        "a response that ends without a status counts as done",
        "client/connection.py",
        '    return from_status(StatusCode.INTERNAL, "the response ends without a status")',
        "    return None",
        client_tests("transport.py::test_what_a_server_does_wrong_is_an_error_that_names_it"),
    ),
    Bug(
        "refused-counts-as-run",
        "a call that the server has refused to look at counts as one that may have run",
        "client/connection.py",
        "may_have_run=not refused)",
        "may_have_run=True)",
        client_tests("transport.py::test_a_call_that_was_refused_has_not_run"),
    ),
    Bug(
        "lost-counts-as-not-run",
        "a call on a connection that is lost counts as one that has not run",
        "client/connection.py",
        "UnavailableError(StatusCode.UNAVAILABLE, self.lost, may_have_run=True)",
        "UnavailableError(StatusCode.UNAVAILABLE, self.lost)",
        client_tests("transport.py::test_a_lost_connection_ends_every_call"),
    ),
    Bug(
        "left-call-goes-on",
        "a call that is left is not reset, and the server works on for nobody",
        "client/connection.py",
        "            self._connection.reset(self, ErrorCode.CANCEL)\n",
        "",
        client_tests("transport.py::test_a_call_that_is_left_is_reset"),
    ),
    Bug(
        "deadline-not-told",
        "the server is told of a longer deadline than there is",
        "client/connection.py",
        "milliseconds = max(1, round(seconds * 1000))",
        "milliseconds = max(1, round(seconds * 10000))",
        client_tests("transport.py::test_a_deadline_is_told_and_kept"),
    ),
    Bug(
        "any-host",
        "a certificate of another host is good enough",
        "client/options.py",
        "    context.minimum_version = ssl.TLSVersion.TLSv1_2\n",
        "    context.minimum_version = ssl.TLSVersion.TLSv1_2\n    context.check_hostname = False\n",
        client_tests("tls.py::test_a_certificate_of_another_host_is_refused"),
    ),
    Bug(
        "any-authority",
        "a certificate that nobody vouches for is good enough",
        "client/options.py",
        "    context.minimum_version = ssl.TLSVersion.TLSv1_2\n",
        "    context.check_hostname = False\n    context.verify_mode = ssl.CERT_NONE\n",
        client_tests("tls.py::test_tls"),
    ),
)

MEMBERS = (
    Bug(
        "handled-before-it-is",
        "a message counts as handled when it is handed out, and is lost when its member dies with it",
        "client/groups.py",
        "                self._current = place, message.offset\n",
        "                place.handled = message.offset\n",
        client_tests(
            "whole_api.py::test_a_member_that_leaves_while_it_hands_over_stores_what_it_has_handled"
        ),
    ),
    Bug(
        "left-counts-as-handled",
        "the message that a member was busy with when it left counts as handled",
        "client/groups.py",
        "        # A message that was being handled when the block was left is not handled.\n"
        "        self._current = None\n",
        "        self._note_handled()\n",
        client_tests(
            "whole_api.py::test_a_member_that_leaves_while_it_hands_over_stores_what_it_has_handled"
        ),
    ),
    Bug(
        "fenced-goes-on",
        "a member handles messages of a partition that is another one's now",
        "client/groups.py",
        "if place is not None and not place.revoked and self._batch:",
        "if place is not None and self._batch:",
        client_tests("whole_api.py::test_a_member_hands_out_nothing_of_a_partition_that_was_taken_away"),
    ),
    Bug(
        "cursor-skips",
        "a member leaves out the message behind the one that was handled last",
        "client/groups.py",
        "start=self._start if cursor < 0 else cursor + 1,",
        "start=self._start if cursor < 0 else cursor + 2,",
        client_tests("whole_api.py::test_a_group_goes_on_where_its_members_left_it"),
    ),
    Bug(
        "another-members-share-kept",
        "a member keeps partitions that the coordinator has given to another one",
        "client/groups.py",
        "            if key not in assigned:\n",
        "            if not assigned:\n",
        client_tests("whole_api.py::test_a_member_hands_out_nothing_of_a_partition_that_was_taken_away"),
    ),
)
