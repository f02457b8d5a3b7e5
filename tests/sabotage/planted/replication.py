"""Bugs of replication: the machines of leader and follower, and the elections of the metadata."""

from __future__ import annotations

from planted.bug import Bug


def _leader(*names: str) -> tuple[str, ...]:
    return tuple(f"tests/replication/test_replication_leader.py::test_{name}" for name in names)


def _follower(*names: str) -> tuple[str, ...]:
    return tuple(f"tests/replication/test_replication_follower.py::test_{name}" for name in names)


def _isr(*names: str) -> tuple[str, ...]:
    return tuple(f"tests/replication/test_replication_isr.py::test_{name}" for name in names)


def _links(*names: str) -> tuple[str, ...]:
    return tuple(f"tests/replication/test_replication_links.py::test_{name}" for name in names)


def _metadata(*names: str) -> tuple[str, ...]:
    return tuple(f"tests/metadata/test_metadata_replicas.py::test_{name}" for name in names)


REPLICATION = (
    Bug(
        "old-leader-epoch",
        "a leader takes statements that were made for another epoch",
        "replication/leader.py",
        "        if statement.leader_epoch < self.epoch:",
        "        if statement.leader_epoch < 0:",
        _leader("what_is_fenced_changes_nothing_and_is_answered"),
    ),
    Bug(
        "old-broker-epoch",
        "a statement of an earlier run of a broker counts",
        "replication/leader.py",
        "        if statement.broker_epoch < self._broker_epochs.get(statement.broker, 0):",
        "        if statement.broker_epoch < 0:",
        _leader("what_is_fenced_changes_nothing_and_is_answered"),
    ),
    Bug(
        "own-id-as-follower",
        "a leader takes a broker with its own id for a follower",
        "replication/leader.py",
        "        if statement.broker == self.broker or statement.broker not in self._replicas:",
        "        if statement.broker not in self._replicas:",
        _leader("what_is_fenced_changes_nothing_and_is_answered"),
    ),
    Bug(
        "ahead-is-equal",
        "a follower that is ahead of its leader counts as caught up",
        "replication/leader.py",
        "        if statement.last_epoch == self.epoch and self.epoch_start <= end <= log.next_offset:",
        "        if statement.last_epoch == self.epoch and self.epoch_start <= end:",
        _leader("a_follower_that_is_ahead_diverges_and_counts_for_nothing"),
    ),
    Bug(
        "epoch-unknown-is-fine",
        "a follower may have an epoch that the leader never had",
        "replication/leader.py",
        "        if epoch == statement.last_epoch:",
        "        if epoch <= statement.last_epoch:",
        _leader("what_a_follower_has_is_compared_with_the_log"),
    ),
    Bug(
        "retention-diverges",
        "a follower is told to drop what retention has removed while it was on its way",
        "replication/leader.py",
        "            and (isinstance(refused, BeginAt) or refused.epoch < 0)",
        "            and isinstance(refused, BeginAt)",
        _leader("what_retention_has_removed_while_it_was_on_its_way_is_no_difference"),
    ),
    Bug(
        "silence-commits",
        "an in-sync replica that has stated nothing in this epoch does not hold the high watermark up",
        "replication/leader.py",
        "not progress.verified:\n                return self._high_watermark\n",
        "not progress.verified:\n                continue\n",
        _leader(
            "committed_is_what_all_in_sync_replicas_have", "a_new_epoch_knows_nothing_of_what_others_had"
        ),
    ),
    Bug(
        "committed-set-only",
        "who may be in sync by now does not count for the high watermark",
        "replication/leader.py",
        "        for broker in self._isr.maximal:\n            if",
        "        for broker in self._isr.committed:\n            if",
        _isr("whose_admission_is_proposed_counts_at_once"),
    ),
    Bug(
        "min-isr-ignored",
        "messages are committed below min ISR",
        "replication/leader.py",
        "        if self._retired or self.under_min_isr:",
        "        if self._retired:",
        _leader("nothing_is_committed_below_min_isr"),
    ),
    Bug(
        "high-watermark-falls",
        "a replica that has lost its end takes the high watermark back",
        "replication/leader.py",
        "        self._high_watermark = max(self._high_watermark, least - 1)",
        "        self._high_watermark = least - 1",
        _leader("the_high_watermark_does_not_fall"),
    ),
    Bug(
        "own-disk-does-not-count",
        "with sync always messages are committed that the leader has not on disk",
        "replication/leader.py",
        "        return log.synced_offset if self._guarantees.synced else log.next_offset",
        "        return log.next_offset",
        _leader("with_sync_always_only_what_is_on_disk_counts_the_own_disk_included"),
    ),
    Bug(
        "written-is-synced",
        "with sync always what a follower has written counts as on its disk",
        "replication/progress.py",
        "        return self.synced_offset if durable else self.next_offset",
        "        return self.next_offset",
        _leader("with_sync_always_only_what_is_on_disk_counts_the_own_disk_included"),
    ),
    Bug(
        "mark-moves-away",
        "each statement of a follower moves the end that it has to reach away",
        "replication/progress.py",
        "        if self._mark_offset is None:\n",
        "        if position < end:\n",
        _leader("statements_that_come_faster_than_data_do_not_move_the_mark_away"),
    ),
    Bug(
        "end-now-only",
        "only who states the end of this moment is caught up",
        "replication/progress.py",
        "            self.last_caught_up = max(self.last_caught_up, self._mark_time)\n",
        "",
        _leader("who_keeps_up_with_a_moving_end_is_caught_up"),
    ),
    Bug(
        "acks-after-the-end",
        "a leader that has stepped down still acks",
        "replication/leader.py",
        "        self._retired = True\n        self._acks.close()",
        "        self._retired = True",
        _leader("after_stepping_down_nothing_is_acked_committed_or_proposed"),
    ),
    Bug(
        "lease-ignored",
        "a leader acks by itself when its lease has ended",
        "replication/acks.py",
        "            leader = max(self._limits.leader, own) if leased else self._limits.leader",
        "            leader = max(self._limits.leader, own)",
        _leader("without_a_lease_only_what_is_committed_is_acked"),
    ),
    Bug(
        "ack-before-own-sync",
        "with sync always a leader acks what is not on its disk",
        "replication/acks.py",
        "            own = (synced if self._durable else written) - 1",
        "            own = written - 1",
        _leader("acks_by_the_leader_alone_wait_for_its_disk_with_sync_always"),
    ),
    Bug(
        "lease-from-nobody",
        "a lease is good as long as there are no other in-sync replicas",
        "replication/lease.py",
        "        return now < min(heard, default=NEVER) + self._duration",
        "        return now < min(heard, default=now) + self._duration",
        _links("while_the_controller_is_away_all_other_in_sync_replicas_make_up_for_it"),
    ),
    Bug(
        "lease-of-a-run-before",
        "a lease survives the registration that follows it",
        "replication/lease.py",
        "            self._confirmed = NEVER\n\n    def confirmed",
        "            pass\n\n    def confirmed",
        _links("a_lease_ends_with_the_registration"),
    ),
    Bug(
        "admitted-behind",
        "who lacks what was committed is admitted",
        "replication/isr.py",
        "            and progress.position(basis.durable) >= needed",
        "            and progress.position(basis.durable) >= 0",
        _isr("admitted_is_who_has_everything_that_may_be_committed"),
    ),
    Bug(
        "admitted-before-the-epoch",
        "who has not reached the start of the epoch is admitted",
        "replication/isr.py",
        "        needed = max(basis.high_watermark + 1, basis.epoch_start)",
        "        needed = basis.high_watermark + 1",
        _isr("the_start_of_the_epoch_has_to_be_reached_too"),
    ),
    Bug(
        "lost-and-in-sync",
        "a member that states less than what is committed stays in sync",
        "replication/isr.py",
        "        return not _has_lost(progress, basis) and now",
        "        return now",
        _isr("who_has_lost_what_was_committed_is_removed_at_once_and_must_not_lead"),
    ),
    Bug(
        "no-answer-is-no",
        "a proposal without an answer is taken for refused",
        "replication/isr.py",
        "            self._possible.update(broker for broker, _ in change.isr)",
        "            pass",
        _isr("what_was_not_answered_may_still_be_applied"),
    ),
    Bug(
        "gap-accepted",
        "a follower appends behind a gap",
        "replication/follower.py",
        "        if batch.first > end:",
        "        if batch.first > end + 1:",
        _follower("what_does_not_fit_is_not_appended_and_the_session_begins_anew"),
    ),
    Bug(
        "epochs-fall",
        "a follower appends a batch of an epoch below the last one",
        "replication/follower.py",
        "        if batch.epoch < epoch:\n            return Misfit.FALLING_EPOCH\n",
        "",
        _follower("what_does_not_fit_is_not_appended_and_the_session_begins_anew"),
    ),
    Bug(
        "any-session",
        "a follower takes data of a session that has ended",
        "replication/follower.py",
        "        if message.leader_epoch != self.epoch or message.session != self._session:",
        "        if message.leader_epoch != self.epoch:",
        _follower("data_of_another_session_or_epoch_changes_nothing"),
    ),
    Bug(
        "high-watermark-beyond-the-end",
        "a follower exposes more than it has",
        "replication/follower.py",
        "max(self._high_watermark, min(self._told, self._log.next_offset - 1))",
        "max(self._high_watermark, self._told)",
        _follower("the_high_watermark_goes_as_far_as_the_own_log"),
    ),
    Bug(
        "cut-below-high-watermark",
        "a follower cuts off what was committed",
        "replication/follower.py",
        "            if not self._may_lose:\n                return self._damage(target)\n",
        "",
        _follower("cutting_off_never_goes_in_front_of_the_high_watermark"),
    ),
    Bug(
        "cut-to-the-high-watermark",
        "a follower cuts its log off at its high watermark instead of where it differs",
        "replication/follower.py",
        "        target = min(own_end, message.end_offset)\n",
        "        target = self._high_watermark + 1\n",
        _follower("the_log_is_cut_off_where_both_may_agree"),
    ),
    Bug(
        "cut-at-the-leaders-end",
        "a follower cuts at the leader's end of an epoch though its own is in front of it",
        "replication/follower.py",
        "        target = min(own_end, message.end_offset)\n",
        "        target = min(log.next_offset, message.end_offset)\n",
        _follower("the_log_is_cut_off_where_both_may_agree"),
    ),
    Bug(
        "unclean-for-ever",
        "an unclean election long ago lets a follower cut off what was committed since",
        "replication/follower.py",
        "        return self._unclean_epoch > self._log.last_epoch",
        "        return self._unclean_epoch > 0",
        _follower("an_unclean_election_that_it_has_gone_through_may_not_cost_more"),
    ),
    Bug(
        "large-batch-stuck",
        "what is larger than the credit that is left does not go",
        "replication/credit.py",
        "        if self._credit <= 0 or not self._turns:",
        "        if self._credit < self._quantum or not self._turns:",
        _links("what_is_on_its_way_is_bounded_by_the_window"),
    ),
    Bug(
        "no-turns",
        "the partition with most to send has every turn",
        "replication/credit.py",
        "        self._balance[key] = min(0, self._balance.get(key, 0) + self._quantum - size)\n",
        "        self._balance[key] = 0\n",
        _links("who_has_sent_too_much_waits_for_the_others"),
    ),
)

ELECTIONS = (
    Bug(
        "isr-without-epoch",
        "a change of the in-sync replicas is applied to another state than it was decided on",
        "metadata/replicas.py",
        "        if change.epoch != partition.epoch:",
        "        if change.epoch > partition.epoch:",
        _metadata("what_was_decided_on_another_state_has_no_effect"),
    ),
    Bug(
        "isr-by-anybody",
        "a leader that was deposed changes the in-sync replicas",
        "metadata/replicas.py",
        "            if change.leader_epoch != partition.leader_epoch:",
        "            if change.leader_epoch > partition.leader_epoch:",
        _metadata("what_was_decided_on_another_state_has_no_effect"),
    ),
    Bug(
        "isr-of-an-earlier-run",
        "a broker is admitted on the strength of what it had before it was started anew",
        "metadata/replicas.py",
        "            if record is None or record.epoch != broker_epoch:",
        "            if record is None:",
        _metadata("what_was_decided_on_another_state_has_no_effect"),
    ),
    Bug(
        "fenced-in-sync",
        "a fenced broker becomes an in-sync replica",
        "metadata/replicas.py",
        "            if not record.alive:\n                return Refusal.NOT_ALIVE\n",
        "",
        _metadata("a_fenced_broker_is_not_admitted"),
    ),
    Bug(
        "fenced-leads",
        "a fenced broker is made leader",
        "metadata/elections.py",
        "        alive = [broker for broker in candidates if self.brokers.alive(broker)]",
        "        alive = [broker for broker in candidates if broker in records]",
        _metadata("an_eligible_replica_leads_when_nobody_in_sync_can"),
    ),
    Bug(
        "loss-forgotten",
        "a broker that may have lost messages is in sync when it registers",
        "metadata/replicas.py",
        "            loss = _LOSS[operation.ended]",
        "            loss = Loss.NONE",
        _metadata("who_may_have_lost_something_is_not_eligible_when_it_registers"),
    ),
    Bug(
        "elr-forgotten",
        "who leaves when too few stay is not remembered",
        "metadata/elections.py",
        "    eligible = {*partition.elr, *partition.isr} - set(isr)",
        "    eligible = {*partition.elr} - set(isr)",
        _metadata("who_leaves_when_too_few_stay_is_eligible"),
    ),
    Bug(
        "elr-for-ever",
        "who left stays eligible when the others commit without it",
        "metadata/elections.py",
        "        return replace(partition, isr=isr, elr=(), last_known=())",
        "        return replace(partition, isr=isr, last_known=())",
        _metadata("who_leaves_when_too_few_stay_is_eligible"),
    ),
    Bug(
        "same-epoch-again",
        "a leader keeps its epoch when it leads again",
        "metadata/elections.py",
        "    return replace(partition, leader=leader, leader_epoch=index, epoch=index)",
        "    return replace(partition, leader=leader, epoch=index)",
        _metadata("fencing_a_broker_moves_all_that_it_leads_and_takes_it_out_everywhere"),
    ),
    Bug(
        "unclean-unrecorded",
        "an election that may have lost messages is not recorded as such",
        "metadata/elections.py",
        "        unclean_epoch=index,\n",
        "",
        _metadata("an_election_that_may_cost_something_has_to_be_allowed"),
    ),
    Bug(
        "unclean-unasked",
        "an unclean election needs no permission",
        "metadata/replicas.py",
        "        if change.mode is Mode.UNCLEAN and not stream.guarantees.unclean_election:",
        "        if change.mode is Mode.CLEAN:",
        _metadata("an_election_that_may_cost_something_has_to_be_allowed"),
    ),
    Bug(
        "empty-disk-leads",
        "a replica with an empty disk leads again by itself",
        "metadata/elections.py",
        "        if loss is Loss.UNSYNCED and len(left.isr) < guarantees.min_isr:",
        "        if len(left.isr) < guarantees.min_isr:",
        _metadata("a_replica_with_an_empty_disk_does_not_lead_by_itself"),
    ),
    Bug(
        "moved-before-in-sync",
        "replicas go before those that take their place are in sync",
        "metadata/replicas.py",
        "        if not set(partition.adding) <= set(partition.isr) or len(staying) < enough:",
        "        if len(staying) < enough:",
        _metadata("a_replica_moves_when_the_new_one_is_in_sync"),
    ),
)
