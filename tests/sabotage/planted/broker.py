"""Bugs of the broker and of its metadata: consumer groups, the server's own streams, pausing."""

from __future__ import annotations

from planted.bug import Bug, server_tests

GROUPS = (
    Bug(
        "late-member-reads",
        "a subscription with an older epoch of its group takes over from a newer one",
        "broker/fencing.py",
        "holder.epoch > consumer.groupEpoch:",
        "holder.epoch > consumer.groupEpoch + 1:",
        ("tests/server/test_server_groups.py::test_an_older_epoch_is_refused_and_a_newer_one_takes_over",),
    ),
    Bug(
        "owner-not-asked",
        "a member reads a partition that the current assignment gives to another one",
        "broker/fencing.py",
        "            and consumer.groupEpoch <= group.epoch\n",
        "            and consumer.groupEpoch < 0\n",
        ("tests/server/test_server_groups.py::test_the_assignment_decides_among_epochs_that_are_over",),
    ),
    Bug(
        "place-taken-away",
        "the end of a subscription that was replaced opens the partition to members that are late",
        "broker/fencing.py",
        "            if holders.get(place) is holder:\n",
        "            if holders.get(place) is not None:\n",
        (
            "tests/server/test_server_groups.py"
            "::test_an_equal_epoch_takes_over_and_ends_nothing_but_its_predecessor",
        ),
    ),
    Bug(
        "epochs-begin-anew-unnoticed",
        "a subscription of a group that has ended outranks the members of the next group of that name",
        "broker/groups.py",
        "                self.fences.group_ended(outcome.group_id)\n",
        "",
        (
            "tests/server/test_server_groups.py::test_a_group_that_begins_anew_takes_over_from_who_did_not_notice",
        ),
    ),
    Bug(
        "removed-in-spite-of-life",
        "a member is removed although it was heard of while its removal waited for its turn",
        "broker/groups.py",
        "            if not self._liveness.is_silent(who, trio.current_time()):\n",
        "            if who not in self._liveness:\n",
        ("tests/metadata/test_groups_coordinator.py::test_a_sign_of_life_while_others_are_written_counts",),
    ),
    Bug(
        "wrong-membership-ends",
        "a member that has come back is removed by a decision about its earlier membership",
        "metadata/groups.py",
        "member is None or member.joined != operation.joined:",
        "member is None:",
        (
            "tests/metadata/test_metadata_groups.py"
            "::test_a_late_decision_does_not_end_the_membership_that_followed",
        ),
    ),
    Bug(
        "partition-lost",
        "a partition whose owner has left is given to nobody",
        "metadata/assignment.py",
        "            for partition in range(count):\n",
        "            for partition in range(1, count):\n",
        ("tests/metadata/test_metadata_groups.py::test_any_change_gives_a_balanced_assignment",),
    ),
)


_CURSORS = "tests/server/test_server_cursors.py::"
_ACTIVITY = "tests/server/test_server_activity.py::"

INTERNAL_STREAMS = (
    Bug(
        "ack-of-another-stream",
        "a cursor is taken for stored because another stream on the subject has stored the message",
        "broker/internal_publisher.py",
        "ack.stream == waiting.stream:",
        "ack.stream:",
        (_CURSORS + "test_the_ack_of_another_stream_is_not_taken_for_ours",),
    ),
    Bug(
        "cursors-not-read",
        "after a start cursors are not read from the log",
        "broker/cursor_index.py",
        "        end = self._partition.high_watermark + 1\n",
        "        end = min(self._partition.high_watermark, 0)\n",
        (_CURSORS + "test_what_was_answered_survives_the_end_of_the_server",),
    ),
    Bug(
        "forgotten-cursor-is-none",
        "a cursor that did not fit into memory is taken for one that was never set",
        "broker/cursor_index.py",
        "            self._complete = False\n",
        "            self._complete = True\n",
        (_CURSORS + "test_what_does_not_fit_into_memory_is_found_in_the_log",),
    ),
    Bug(
        "cursor-goes-back",
        "where the log is damaged, a cursor goes back to the position before",
        "broker/cursor_index.py",
        "        self._cursors.clear()\n",
        "        self._cursors.copy()\n",
        (_CURSORS + "test_damage_makes_cursors_unknown_until_they_are_set_anew",),
    ),
    Bug(
        "events-repeated",
        "a start does not look at the stream for the newest event",
        "broker/activity.py",
        "                return max(stored, newest)\n",
        "                return stored + 0 * newest\n",
        (_ACTIVITY + "test_a_position_file_that_cannot_be_is_told_of_and_not_believed",),
    ),
    Bug(
        "events-begin-anew",
        "events are published again when retention has removed them",
        "broker/activity.py",
        "                return max(stored, newest)\n",
        "                return newest + 0 * stored\n",
        (_ACTIVITY + "test_a_stream_that_retention_has_emptied_does_not_begin_anew",),
    ),
    Bug(
        "unread-operations-deleted",
        "a snapshot takes operations whose events are not published yet",
        "broker/journal.py",
        "if number < index and path not in kept",
        "if number < index or path in kept",
        (
            "tests/metadata/test_metadata_journal.py::"
            "test_what_somebody_has_yet_to_read_outlives_snapshots_within_bounds",
        ),
    ),
)


PAUSING = (
    Bug(
        "pause-without-flush",
        "a pause closes the partition while messages that were published before are on their way",
        "broker/streams.py",
        "with trio.move_on_after(DRAIN_SECONDS):",
        "with trio.move_on_after(0):",
        server_tests(
            "pause.py::test_every_message_of_a_stream_that_is_paused_again_and_again_is_stored_in_order"
        ),
    ),
    Bug(
        "publish-to-what-opens",
        "a publish does not wait until NATS delivers to the partition that was resumed",
        "broker/pausing.py",
        "            if partition.settled.is_set():",
        "            if partition.state:",
        server_tests("pause.py::test_a_publish_without_a_deadline_resumes_as_well"),
    ),
    Bug(
        "readonly-forgotten",
        "a readonly partition takes messages from NATS when it was opened anew",
        "broker/partition.py",
        "        sink.readonly = self.model.readonly\n        self._storing = True\n",
        "        self._storing = True\n",
        server_tests("readonly.py::test_readonly_survives"),
    ),
    Bug(
        "resume-all-kept",
        "resumeAll of a pause holds for later ones, too",
        "metadata/pausing.py",
        "isinstance(operation, PauseStream) and operation.resume_all",
        "stream.resume_all or isinstance(operation, PauseStream) and operation.resume_all",
        (
            "tests/metadata/test_metadata_pausing.py::test_each_pause_replaces_resume_all_and_each_resume_clears_it",
        ),
    ),
    Bug(
        "paused-for-being-busy",
        "a partition is paused its time after it began, whatever it has received since",
        "broker/partition.py",
        "        self.active_at = time.monotonic()\n        if self.settings.batch_max_time",
        "        if self.settings.batch_max_time",
        server_tests("pause.py::test_a_busy_partition_is_not_paused"),
    ),
)
