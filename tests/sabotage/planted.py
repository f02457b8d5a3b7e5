"""Bugs that the suite must catch: one line of the product each, and the narrowest tests that must fail.

A suite that has never failed proves little. Each bug here breaks one promise of the log or of what stands
around it, as a slip of the keyboard would; `run.py` plants them one by one and asks the tests. One that
survives is a gap in the tests, not in this list.

Invariants:

- The old text occurs in its file as often as `times` says; `test_planted.py` holds the list to that, so that
  a change of the code cannot turn a bug into none.
- With the bug the package can still be built, imported and used: what fails is what the test asserts.
"""

from __future__ import annotations

from dataclasses import dataclass

# What a change of these files makes stale; the parts of `_wire.pyx` are included, and all else is `_log.pyx`.
_BUILT = (".pyx", ".pxi", ".h")


@dataclass(frozen=True)
class Bug:
    """One planted bug.

    Arguments:
        name: for `--only`.
        what: what the code does wrong with it, for the table.
        file: below `src/liftbridge`.
        old, new: the text that is replaced, and by what.
        tests: arguments for pytest, from the folder of the repository.
        times: how often the old text occurs; every occurrence is replaced.
    """

    name: str
    what: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    times: int = 1

    @property
    def extension(self) -> str:
        """The C core that has to be built anew, "" for none."""
        if not self.file.endswith(_BUILT):
            return ""
        return "_wire" if self.file.startswith("_wire") else "_log"


def _log(*names: str) -> tuple[str, ...]:
    return tuple(f"tests/log/test_log_{name}" for name in names)


def _server(*names: str) -> tuple[str, ...]:
    return tuple(f"tests/server/test_server_{name}" for name in names)


SYNCING = (
    Bug(
        "sync-does-nothing",
        "a sync leaves the active segment in the page cache",
        "log/log.py",
        "            sync_data(active.fileno())\n",
        "            active.fileno()\n",
        _log("power_loss.py::test_a_sync_needs_no_index_to_be_one"),
    ),
    Bug(
        "seal-not-synced",
        "a sync passes over segments that were sealed since the last one",
        "log/log.py",
        "                segment.trim()\n                sync_data(segment.fileno())\n            if seals:",
        "                segment.trim()\n            if seals:",
        _log("power_loss.py::test_a_sync_needs_no_index_to_be_one"),
    ),
    Bug(
        "directory-not-synced",
        "a sync leaves the name of a new segment to chance",
        "log/log.py",
        "            if seals:\n                sync_directory(self.directory)\n",
        "",
        _log("power_loss.py::test_a_sync_needs_no_index_to_be_one"),
    ),
    Bug(
        "synced-before-it-is",
        "the synced offset moves before the system calls",
        "log/log.py",
        "            self._sync_files(seals, active)\n",
        "            self._synced_offset = target\n            self._sync_files(seals, active)\n",
        _log("failures.py::test_a_failed_sync_is_final"),
    ),
    Bug(
        "sync-vouches-for-more",
        "a sync vouches for what was appended while it ran",
        "log/log.py",
        "self._synced_offset = self._view.active.synced_offset = target",
        "self._synced_offset = target = self._view.active.next_offset",
        _log("failures.py::test_a_sync_vouches_only_for_what_was_there_when_it_began"),
    ),
    Bug(
        "failed-sync-tried-again",
        "a sync that has failed is tried again, and believed",
        "log/log.py",
        "            self.failed = error\n            leave_distrust(self.directory)\n"
        "            self._check_usable()",
        "            assert error\n            sync_data(os.dup(active.fileno()))",
        _log("power_loss.py::test_a_second_try_of_a_failed_sync_is_caught"),
    ),
    Bug(
        "failed-sync-forgotten",
        "the next process is not told of a failed sync, and takes the page cache for the disk",
        "log/log.py",
        "            leave_distrust(self.directory)\n",
        "",
        _log("power_loss.py::test_a_restart_after_a_failed_sync"),
    ),
    Bug(
        "replaced-without-sync",
        "a file is renamed into its place before it is on disk",
        "log/files.py",
        "                end += len(piece)\n            sync_data(fd)\n",
        "                end += len(piece)\n",
        _log("compaction_disk.py::test_a_loss_of_power_while_a_compacted_segment_is_cut"),
    ),
    Bug(
        "not-rewritten",
        "what a failed sync may have dropped is taken for durable by the next start",
        "log/recovery.py",
        "                    write_again(path)\n",
        "                    pass\n",
        _log("power_loss.py::test_a_restart_after_a_failed_sync"),
    ),
    Bug(
        "request-forgotten",
        "a sync that was asked for is forgotten when its flush is cancelled",
        "log/flusher.py",
        "                        self.request(log, done, failed)\n",
        "                        del log, done, failed\n",
        _log("flusher.py::test_a_request_cancelled_while_it_waits_for_a_thread_is_kept"),
    ),
    Bug(
        "ack-before-flush",
        "under `always`, messages are committed and acked before they are on disk",
        "broker/partition.py",
        'if self.settings.sync_policy != "always":',
        'if self.settings.sync_policy != "":',
        _log("acks.py"),
    ),
    Bug(
        "ack-one-too-many",
        "the ack of the first message that is not committed leaves with those before it",
        "_wire_partition.pxi",
        "            if entry.offset >= below:\n",
        "            if entry.offset > below:\n",
        ("tests/wire/test_wire_ingest.py::test_acks_wait_for_their_offset",),
    ),
    Bug(
        "journal-not-synced",
        "a metadata operation is applied before its record is on disk",
        "broker/journal.py",
        "            sync_file(self._descriptor)\n        except OSError as error:\n"
        '            raise self._fail("be synced", error) from error',
        "            assert self._descriptor\n        except OSError as error:\n"
        '            raise self._fail("be synced", error) from error',
        ("tests/metadata/test_metadata_journal.py::test_an_error_while_syncing_is_final",),
    ),
)

RECOVERY = (
    Bug(
        "index-of-another-size",
        "an index file is believed although the segment has another size",
        "log/recovery.py",
        "(summary.end, summary.next_offset) == (size, following)",
        "summary.next_offset == following",
        _log("corruption.py::test_a_sealed_segment_of_another_length_than_its_index_says"),
    ),
    Bug(
        "torn-tail-kept",
        "a torn tail is left behind the data",
        "log/recovery.py",
        "            os.ftruncate(segment.fileno(), segment.end)\n        sync_data(segment.fileno())\n",
        "        sync_data(segment.fileno())\n",
        _log("recovery.py::test_recovery_is_idempotent"),
    ),
    Bug(
        "scanned-not-synced",
        "recovery serves what it has scanned, and does not sync it",
        "log/recovery.py",
        "        sync_data(segment.fileno())\n        return segment\n",
        "        return segment\n",
        _log("power_loss.py::test_a_recovery_that_does_not_sync_is_caught"),
    ),
    Bug(
        "unproven-kept",
        "after a loss of power, damage in what was never synced stays as a hole in the log",
        "log/recovery.py",
        "        if power_lost and self._cut_unproven(paths):\n",
        "        if power_lost and not self and self._cut_unproven(paths):\n",
        _log("corruption.py::test_after_a_loss_of_power_the_batches_tell_what_was_synced"),
    ),
    Bug(
        "proven-cut",
        "after a loss of power, the log is cut off at damage in what was synced",
        "log/recovery.py",
        "for each in self.damage if each.first_offset >= proven), None)",
        "for each in self.damage if proven >= 0), None)",
        _log("corruption.py::test_after_a_loss_of_power_the_batches_tell_what_was_synced"),
    ),
    Bug(
        "write-not-cut-off",
        "what a failed write has left stays in the file",
        "_log.pyx",
        "                cut = truncate_to(self.fd, self.end)\n",
        "                cut = 0\n",
        _log("failures.py::test_a_short_write_is_cut_off_and_the_log_goes_on"),
    ),
    Bug(
        "distrusted-kept",
        "after a failed sync, the next process does not write anew what may be in the page cache only",
        "log/recovery.py",
        "                    write_again(path)\n",
        "                    path.stat()\n",
        _log("power_loss.py::test_a_restart_after_a_failed_sync"),
    ),
)

CHECKS = (
    Bug(
        "checksum-unchecked",
        "the checksum of a batch is not looked at",
        "_batch.h",
        "if (crc32c_any(0, p + 12, length - 12) != info->crc)",
        "if (length == 0)",
        _log("corruption.py::test_bytes_of_an_unclean_active_segment"),
    ),
    Bug(
        "record-bounds-unchecked",
        "a record may be longer than what is left of its batch",
        "_batch.h",
        "if (size > (size_t)(end - p) || size < start + 2)",
        "if (size < start + 2)",
        _log("corruption.py::test_a_record_that_goes_beyond_its_batch"),
    ),
    Bug(
        "chain-unchecked",
        "a batch is taken although it followed another one when it was written",
        "_log.pyx",
        "info.prev_crc not in (0, self.last_crc)",
        "info.prev_crc == 1",
        _log("corruption.py::test_a_batch_of_another_history_is_noticed_by_the_chain"),
    ),
    Bug(
        "place-unchecked",
        "where an index is believed, a good batch is served in the place of another",
        "_segment.h",
        "if (info->base_offset < w->expected || ",
        "if (w->expected == INT64_MAX || ",
        _log("corruption.py::test_batches_in_the_place_of_others_where_the_index_is_believed"),
    ),
    Bug(
        "nonce-constant",
        "every body is encrypted with the same nonce",
        "log/codec.py",
        "nonce = os.urandom(NONCE_BYTES)",
        "nonce = bytes(NONCE_BYTES)",
        _log("codec.py::test_no_two_bodies_are_equal"),
    ),
    Bug(
        "offset-not-bound",
        "the base offset is not part of what encryption authenticates",
        "log/codec.py",
        "place = (base_offset, epoch,",
        "place = (0, epoch,",
        _log("codec.py::test_every_field_of_the_header_is_bound"),
        times=2,
    ),
    Bug(
        "key-slot-unchecked",
        "the checksum of a wrapped key is not looked at",
        "log/keys.py",
        "if not any(fields) or _CHECKSUM.unpack_from(sector, _FIELDS.size) != (crc32c(fields),):",
        "if not any(fields):",
        _log("keys.py::test_a_damaged_slot_is_not_taken_for_an_unencrypted_segment"),
    ),
    Bug(
        "plain-in-encrypted",
        "a segment with a key gives back a batch that was not encrypted",
        "log/codec.py",
        "        elif self._cipher is not None:\n",
        "        elif self._cipher is self:\n",
        _log("encryption.py::test_a_forged_batch_that_is_not_encrypted_is_refused"),
    ),
)

READING = (
    Bug(
        "index-off-by-one",
        "the sparse index is searched for the entry below an offset, not at it",
        "_log.pyx",
        "if self.base_offset + <int64_t>self.index[middle].relative <= offset:",
        "if self.base_offset + <int64_t>self.index[middle].relative < offset:",
        _log("batches.py::test_reads_from_every_offset_in_both_directions"),
    ),
    Bug(
        "reverse-skips-one",
        "a read backwards passes over the last record of the segment or stretch before",
        "_segment.h",
        "            before = info.base_offset - 1;",
        "            before = info.base_offset - 2;",
        _log("batches.py::test_reads_from_every_offset_in_both_directions"),
    ),
    Bug(
        "reverse-loses-boundary",
        "a read backwards goes on one offset too far when it leaves a segment",
        "_segment.h",
        "*next = start > 0 ? list->refs[start].offset - 1 : before;",
        "*next = list->count ? list->refs[start].offset - 2 : before;",
        _log("batches.py::test_reads_from_every_offset_in_both_directions"),
    ),
    Bug(
        "time-search-too-late",
        "a search by time passes over a segment whose last record is the one wanted",
        "log/log.py",
        "at = bisect_left(sealed, timestamp_ns,",
        "at = bisect_right(sealed, timestamp_ns,",
        _log("batches.py::test_time_search_is_exact"),
    ),
    Bug(
        "expired-delivered",
        "a record is delivered after it has expired",
        "_batch.h",
        " && (ref->expiry == 0 || ref->expiry > now))",
        " && now >= 0)",
        _log("expiry.py::test_readers_stop_seeing_a_record_when_it_expires"),
    ),
    Bug(
        "epoch-starts-late",
        "a leader epoch is said to begin one offset later than it does",
        "_log.pyx",
        "self.epoch_list[self.epoch_count].start = info.base_offset",
        "self.epoch_list[self.epoch_count].start = info.base_offset + 1",
        _log("epochs.py::test_epochs_take_no_offset_and_are_not_seen"),
    ),
    Bug(
        "control-takes-offset",
        "the batch that begins an epoch takes an offset",
        "_batch.h",
        "return info->attributes & BATCH_CONTROL ? info->base_offset : info->base_offset",
        "return info->base_offset",
        _log("epochs.py::test_epochs_take_no_offset_and_are_not_seen"),
    ),
)

REMOVING = (
    Bug(
        "retention-above-limit",
        "retention removes a segment that reaches above the limit",
        "log/log.py",
        "while count and sealed[count - 1].next_offset > limit:",
        "while count and sealed[count - 1].base_offset > limit:",
        _log("retention.py::test_nothing_at_or_above_the_limit_goes"),
    ),
    Bug(
        "retention-too-early",
        "retention removes a segment whose last record is exactly as old as is allowed",
        "log/retention.py",
        "sealed[gone].summary.last_timestamp < oldest",
        "sealed[gone].summary.last_timestamp <= oldest",
        _log("retention.py::test_segments_go_by_the_age_of_their_last_record"),
    ),
    Bug(
        "retention-unnoted",
        "retention removes files without a note of where the log begins now",
        "log/log.py",
        "            if self._condemned:\n                self._note_start()\n",
        "",
        _log("kill_everywhere.py::test_a_kill_at_every_call"),
    ),
    Bug(
        "rests-unsynced",
        "a log gives its descriptor back while it waits for a sync",
        "log/log.py",
        "            if self.failed is not None or dirty:\n",
        "            if self.failed is not None:\n",
        _log("awake.py::test_a_log_that_waits_for_a_sync_stays_awake_until_it_is_settled"),
    ),
    Bug(
        "cut-vouches-for-more",
        "a truncation begins the new segment before what it leaves is on disk",
        "log/truncation.py",
        "            sync_data(self.active.fileno())\n",
        "            self.active.fileno()\n",
        _log("power_loss.py::test_what_a_truncation_leaves_is_on_disk_before_the_log_goes_on"),
    ),
    Bug(
        "index-behind-damage",
        "a recovery writes an index file behind damage that it may yet cut off",
        "log/recovery.py",
        "            if self.damage:\n                self.unindexed",
        "            if False:\n                self.unindexed",
        _log("power_loss.py::test_a_recovery_makes_no_proof_of_what_it_may_yet_cut_off"),
    ),
    Bug(
        "cut-comes-back",
        "a truncation leaves the tail of the segment that it cuts in the file",
        "log/segments.py",
        "            os.ftruncate(fd, position)\n",
        "",
        _log("epochs.py::test_what_was_cut_off_does_not_come_back"),
    ),
    Bug(
        "cut-not-synced",
        "a truncation returns before the cut is on disk",
        "log/segments.py",
        "            sync_data(fd)\n",
        "",
        _log("power_loss.py::test_a_cut_is_on_disk_before_the_log_goes_on"),
    ),
    Bug(
        "range-not-cut",
        "a truncation leaves the range of a compacted segment as it was",
        "log/segments.py",
        "replace(header, end_offset=following)",
        "replace(header)",
        _log("compaction_disk.py::test_a_loss_of_power_while_a_compacted_segment_is_cut"),
    ),
    Bug(
        "disk-floor-ignored",
        "messages are stored although less than the floor is free",
        "broker/disk.py",
        "if not self.low and self.free < self.min_free:",
        "if not self.low and self.free < 0:",
        ("tests/server/test_server_disk.py::test_storing_begins_again_when_a_tenth_more_is_free",),
    ),
)

COMPACTING = (
    Bug(
        "last-of-key-lost",
        "compaction removes the last record of a key",
        "_compact.h",
        "record->stored_hash)->behind <= record->offset + 1;",
        "record->stored_hash)->behind < record->offset + 1;",
        _log("compaction.py::test_the_last_record_of_every_key_remains"),
    ),
    Bug(
        "tombstone-gone-at-once",
        "compaction removes a tombstone without waiting for those who read along",
        "log/compaction_state.py",
        "return max((point.offset for point in self.points if point.time_ns <= since_ns), default=0)",
        "return max((point.offset for point in self.points), default=0)",
        _log("compaction.py::test_a_tombstone_stays_until_it_was_clean_for_long_enough"),
    ),
    Bug(
        "limit-passed",
        "compaction removes a record because of a newer one of its key that is not committed",
        "_compact.h",
        "if (record->offset >= limit)",
        "if (record->offset > limit)",
        _log("compaction.py::test_a_limit_inside_a_batch"),
    ),
    Bug(
        "active-taken-for-clean",
        "compaction takes what is in the active segment for clean, and so never looks at it",
        "log/compaction.py",
        "limit = min(limit_offset, self.sealed[-1].next_offset) if self.sealed else 0",
        "limit = limit_offset if self.sealed else 0",
        _log("compaction.py::test_the_last_record_of_every_key_remains"),
    ),
    Bug(
        "compacted-unchecked",
        "compaction replaces files without a check that what it wrote reads back",
        "log/compaction.py",
        "if reason or segment.end != output.end or segment.count != wanted:",
        "if segment.end > output.end:",
        _log("compaction_swap.py::test_what_does_not_read_back_is_not_used"),
    ),
    Bug(
        "compacted-not-synced",
        "a compacted segment takes the place of others before it is on disk",
        "log/compaction.py",
        "        sync_data(fd)\n        return segment\n",
        "        return segment\n",
        _log("compaction_disk.py::test_a_loss_of_power_at_every_moment_of_a_run"),
    ),
    Bug(
        "removed-before-renamed",
        "a swap removes the old files before the new one has a name that a start completes",
        "log/swap.py",
        "        lambda: cleaned_path(segment).rename(swap_path(segment)),\n",
        "        lambda: _remove_range(segment, end_offset),\n"
        "        lambda: cleaned_path(segment).rename(swap_path(segment)),\n",
        _log("compaction_disk.py::test_a_kill_at_every_call_of_a_run"),
    ),
    Bug(
        "collision-is-a-key",
        "two keys that collide in the stored hash are taken for one",
        "_compact.h",
        "record->secret_hash = siphash13(map->secret, key, key_len);",
        "record->secret_hash = record->stored_hash;",
        _log("compaction.py::test_keys_that_collide_in_the_stored_hash_are_different_keys"),
    ),
)

SECURITY = (
    Bug(
        "guard-not-asked",
        "a call reaches its handler without being checked",
        "rpc/call.py",
        "        if self._guard is not None and not stream.admitted:\n",
        "        if self._guard is not None and self._streamed_request:\n",
        ("tests/server/test_server_authz.py::test_a_denied_call_has_no_effect",),
    ),
    Bug(
        "denied-and-published",
        "a denied message of PublishAsync is answered and published all the same, as the original does it",
        "_wire_publish.pxi",
        "            if self.refusal is not None:\n",
        "            if self.refusal is not None and self.denied < 0:\n",
        (
            "tests/server/test_server_authz.py::test_a_denied_message_of_publish_async_is_answered_and_not_stored",
        ),
    ),
    Bug(
        "header-entry-unread",
        "the headers of a publish are passed on unread, so a broken one is stored as garbage",
        "_wire_publish.pxi",
        "                if not is_header_entry(field.data, field.length):\n",
        "                if field.length < 0:\n",
        ("tests/fuzz/test_fuzz_corpus.py::test_regressions", "tests/wire/test_wire_publish.py"),
    ),
    Bug(
        "ack-of-no-text",
        "an ack with text that no client can decode reaches the client",
        "_wire_publish.pxi",
        "                if not is_utf8(field.data, field.length):\n                    return -1\n"
        "                if field.number == 6:\n",
        "                if field.number == 6:\n",
        ("tests/fuzz/test_fuzz_corpus.py::test_regressions", "tests/wire/test_wire_publish.py"),
    ),
    Bug(
        "reverse-hidden",
        "a batch that cannot be opened hides the newer records of its stretch from a reverse read",
        "_segment.h",
        "if (w->error || w->bad_first < 0 || (w->bad_first <= last && last < w->bad_next))",
        "if (1)",
        ("tests/fuzz/test_fuzz_corpus.py::test_regressions", "tests/log/test_log_corruption.py"),
    ),
    Bug(
        "permission-for-ever",
        "a PublishAsync call keeps what it may do when the policy changes",
        "broker/authz/authorizer.py",
        "        self.changed()\n",
        "",
        ("tests/server/test_server_authz.py::test_a_new_policy_counts_for_the_next_message_of_an_open_call",),
    ),
    Bug(
        "subscription-for-ever",
        "a subscription goes on when the policy takes its right away",
        "broker/authz/authorizer.py",
        "        self._running.add(running)\n",
        "",
        ("tests/server/test_server_authz.py::test_a_subscription_ends_when_its_right_is_taken_away",),
    ),
    Bug(
        "row-less-method-allowed",
        "a method without a row in the table is for everybody",
        "broker/authz/authorizer.py",
        "        if row is None:\n",
        "        if row is None:\n            return None\n        if not row.checks:\n",
        ("tests/authz/test_authz_calls.py::test_a_method_without_a_row_is_denied",),
    ),
    Bug(
        "first-of-two-names",
        "of a certificate with two names the first counts",
        "broker/authz/authorizer.py",
        "if len(names) == 1 else",
        "if names else",
        ("tests/authz/test_authz_calls.py::test_a_certificate_with_two_names_has_none",),
    ),
    Bug(
        "deny-overridden",
        "a rule that allows wins over one that denies",
        "broker/authz/policy.py",
        "                if effect is not Effect.ALLOW_OVERRIDES:\n                    return False\n",
        "                continue\n",
        ("tests/authz/test_authz_files.py::test_effects",),
    ),
    Bug(
        "new-certificate-unused",
        "a new certificate is read and not used",
        "broker/reload.py",
        "        server.use_tls(context)\n",
        "",
        ("tests/server/test_server_tls.py::test_new_connections_get_the_new_certificate_and_old_ones_go_on",),
    ),
    Bug(
        "audit-unbounded",
        "each denied call is a line of the log",
        "broker/authz/audit.py",
        "        if self._lines >= self._max_rate or self._lines_of[client] >= PER_CLIENT:\n",
        "        if self._lines < 0:\n",
        ("tests/authz/test_authz_calls.py::test_each_client_has_lines_of_its_own_in_a_second",),
    ),
    Bug(
        "resets-uncounted",
        "streams that are reset do not count",
        "rpc/connection.py",
        "        if self._resets.exceeded():\n",
        "        if False:\n",
        ("tests/rpc/test_rpc_attacks.py::test_a_flood_of_frames_costs_the_connection",),
    ),
    Bug(
        "held-by-all-unbounded",
        "many connections may hold as many requests as they like",
        "rpc/limits.py",
        "        return self.held > limit and held > self._share(limit)\n",
        "        return False\n",
        (
            "tests/rpc/test_rpc_attacks.py::test_requests_that_nobody_handles_are_bounded_over_all_connections",
        ),
    ),
    Bug(
        "unsent-by-all-unbounded",
        "many clients that do not read may let as much wait as they like",
        "rpc/limits.py",
        "        if self.unsent > self._limits.max_unsent:\n",
        "        if False:\n",
        (
            "tests/rpc/test_rpc_attacks.py::test_many_clients_that_never_read_are_bounded_over_all_connections",
        ),
    ),
    Bug(
        "reset-keeps-window",
        "a call that is reset before it begins keeps its part of the connection's window",
        "rpc/call.py",
        "            stream.release()  # reset before its turn came\n",
        "",
        ("tests/rpc/test_rpc_attacks.py::test_resets_of_calls_that_have_not_begun_give_back_what_they_sent",),
    ),
    Bug(
        "each-byte-is-progress",
        "a frame that comes byte by byte may take for ever",
        "rpc/connection.py",
        "        elif self._incomplete_since is None or (progress and not in_block):\n",
        "        else:\n",
        ("tests/rpc/test_rpc_attacks.py::test_a_frame_that_does_not_end_is_cut_off",),
    ),
)


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
        _server("pause.py::test_every_message_of_a_stream_that_is_paused_again_and_again_is_stored_in_order"),
    ),
    Bug(
        "publish-to-what-opens",
        "a publish does not wait until NATS delivers to the partition that was resumed",
        "broker/pausing.py",
        "            if partition.settled.is_set():",
        "            if partition.state:",
        _server("pause.py::test_a_publish_without_a_deadline_resumes_as_well"),
    ),
    Bug(
        "readonly-forgotten",
        "a readonly partition takes messages from NATS when it was opened anew",
        "broker/partition.py",
        "        self._sink.readonly = self.model.readonly\n",
        "        self._sink.readonly = False\n",
        _server("readonly.py::test_readonly_survives"),
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
        _server("pause.py::test_a_busy_partition_is_not_paused"),
    ),
)

BUGS = (
    SYNCING
    + RECOVERY
    + CHECKS
    + READING
    + REMOVING
    + COMPACTING
    + SECURITY
    + GROUPS
    + INTERNAL_STREAMS
    + PAUSING
)
