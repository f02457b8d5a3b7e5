"""Bugs of the log as replicas use it: what is sent, what is taken, and how a log begins anew."""

from __future__ import annotations

from planted.bug import Bug, log_tests

REPLICAS = (
    Bug(
        "read-skips-beginning-of-epoch",
        "a replica that is behind does not get the batch that begins an epoch",
        "_log.pyx",
        "batch_next(&info) > offset or (info.base_offset == offset and info.epoch > epoch)",
        "batch_next(&info) > offset",
        log_tests("replica.py::test_beginnings_of_epochs_are_sent_to_who_does_not_have_them"),
    ),
    Bug(
        "read-begins-behind-the-beginning-of-an-epoch",
        "an index entry is believed to be the first batch of its offset",
        "_log.pyx",
        "            if info.epoch > epoch:\n                entry = self._entry_at(offset - 1)\n",
        "            if False:\n                entry = self._entry_at(offset - 1)\n",
        log_tests("replica.py::test_the_beginning_of_an_epoch_in_front_of_an_index_entry_is_sent"),
    ),
    Bug(
        "leaders-sync-taken-for-own",
        "a batch tells what was on the leader's disk as if it were on this one",
        "_log.pyx",
        "                info.unsynced = unsynced_encode(info.base_offset - self.synced_offset)\n"
        "                info.prev_crc = before\n",
        "                info.prev_crc = before\n",
        log_tests("replica.py::test_what_is_synced_here_is_told_not_what_was_synced_there"),
    ),
    Bug(
        "received-chain-forgotten",
        "a batch that was received does not name the one in front of it",
        "_log.pyx",
        "                before = info.crc\n        self._put(out, length)",
        "                before = before\n        self._put(out, length)",
        log_tests("replica.py::test_every_batch_names_the_one_in_front_of_it"),
    ),
    Bug(
        "received-not-checked",
        "bytes of another server are appended unseen",
        "_log_received.pxi",
        "        reason = batch_check(self.data + position, length, info)\n        if reason != NULL:\n"
        "            return reason\n",
        "        reason = batch_check(self.data + position, length, info)\n",
        log_tests("replica.py::test_bytes_that_were_changed_are_refused_as_a_whole"),
    ),
    Bug(
        "received-out-of-order",
        "batches need not follow each other",
        "_log_received.pxi",
        '        if info.base_offset < place:\n            return b"it does not follow the one before"\n',
        "",
        log_tests("replica.py::test_batches_in_front_of_the_place_are_refused"),
    ),
    Bug(
        "gap-not-noted",
        "offsets that compaction has emptied end the replication of a log",
        "log/log.py",
        "        if gap_to > active.next_offset:\n",
        "        if False:\n",
        log_tests("replica.py::test_offsets_that_compaction_has_emptied_are_no_gap"),
    ),
    Bug(
        "replica-never-rolls",
        "a replica puts everything that it is sent into one segment",
        "log/log.py",
        "        if active.count and self._is_full(active, size, timestamp):\n",
        "        if False:\n",
        log_tests("replica.py::test_batches_come_as_they_are"),
    ),
    Bug(
        "key-sent-along",
        "what is encrypted is sent as it is stored, and nobody else can read it",
        "_log.pyx",
        "                if self.encrypted:\n                    decoded.append(",
        "                if False:\n                    decoded.append(",
        log_tests("replica.py::test_whatever_either_log_does_to_bodies"),
    ),
    Bug(
        "replica-stores-plaintext",
        "an encrypted log stores what it is sent as it came",
        "_log.pyx",
        "        if self.encrypted:\n            for at in range(first, stop):",
        "        if False:\n            for at in range(first, stop):",
        log_tests("replica.py::test_whatever_either_log_does_to_bodies"),
    ),
    Bug(
        "start-noted-for-ever",
        "a log that begins anew keeps the note of where it began before",
        "log/truncation.py",
        "    (directory / START_NAME).unlink(missing_ok=True)\n",
        "",
        log_tests("begin_disk.py::test_a_kill_at_every_call"),
    ),
)
