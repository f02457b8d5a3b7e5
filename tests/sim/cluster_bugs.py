"""Bugs to plant in the machines of replication, in the metadata and in what the controller decides: one each,
that simulated clusters must find. Those of consensus are in `simulated_bugs`.

The failures of the original that they bring back have its number (W-R..) in the specification.
"""

from __future__ import annotations

from simulated_bugs import Planted


def _replication(name: str, what: str, file: str, old: str, new: str) -> Planted:
    return Planted(name, what, file, old, new, folder="replication")


def _metadata(name: str, what: str, file: str, old: str, new: str) -> Planted:
    return Planted(name, what, file, old, new, folder="metadata")


def _control(name: str, what: str, old: str, new: str) -> Planted:
    return Planted(name, what, "control.py", old, new, folder="metadata")


REPLICATION = (
    # ---- the leader ----
    _replication(
        "commits-alone",
        "a leader commits what the others do not have",
        "leader.py",
        "            least = min(least, progress.position(self._guarantees.synced))\n",
        "",
    ),
    _replication(
        "commits-under-min-isr",
        "with too few in-sync replicas it commits (W-R18)",
        "leader.py",
        "        if self._retired or self.under_min_isr:\n",
        "        if self._retired:\n",
    ),
    _replication(
        "committed-set-only",
        "who is being admitted does not hold up what is committed (W-R09)",
        "leader.py",
        "        for broker in self._isr.maximal:\n",
        "        for broker in self._isr.committed:\n",
    ),
    _replication(
        "silent-members-skipped",
        "a member that has stated nothing in this epoch does not hold up what is committed (W-R05)",
        "leader.py",
        "not progress.verified:\n                return self._high_watermark\n            least",
        "not progress.verified:\n                continue\n            least",
    ),
    _replication(
        "logs-not-compared",
        "a follower's log is taken for the leader's as long as it is not longer (W-R01)",
        "leader.py",
        "        if statement.last_epoch == self.epoch and self.epoch_start <= end <= log.next_offset:\n",
        "        if end <= log.next_offset:\n",
    ),
    _replication(
        "ahead-is-in-sync",
        "a follower that is ahead of the leader counts (W-R08)",
        "leader.py",
        "        if statement.last_epoch == self.epoch and self.epoch_start <= end <= log.next_offset:\n",
        "        if statement.last_epoch == self.epoch or end > log.next_offset:\n",
    ),
    _replication(
        "leader-epoch-unchecked",
        "a statement of another leader epoch counts",
        "leader.py",
        "        if statement.leader_epoch < self.epoch:\n",
        "        if False:\n",
    ),
    _replication(
        "session-unchecked",
        "a statement that was overtaken counts",
        "leader.py",
        "        if progress.outdated(statement):\n",
        "        if False:\n",
    ),
    _replication(
        "all-is-committed",
        "a new leader takes all that it has for committed",
        "leader.py",
        "        self._high_watermark = min(high_watermark, log.next_offset - 1)\n        self._isr",
        "        self._high_watermark = log.next_offset - 1\n        self._isr",
    ),
    _replication(
        "watermark-falls",
        "the high watermark goes back with a member that comes back with less",
        "leader.py",
        "        self._high_watermark = max(self._high_watermark, least - 1)\n        return",
        "        self._high_watermark = least - 1\n        return",
    ),
    _replication(
        "position-never-falls",
        "what a follower once had counts for ever (W-R04)",
        "progress.py",
        "        self.next_offset = statement.next_offset\n",
        "        self.next_offset = max(self.next_offset, statement.next_offset)\n",
    ),
    _replication(
        "written-is-synced",
        "with sync always, what followers have written counts",
        "progress.py",
        "        return self.synced_offset if durable else self.next_offset\n",
        "        return self.next_offset\n",
    ),
    _replication(
        "own-disk-not-waited-for",
        "with sync always, what the leader has written counts",
        "leader.py",
        "        return log.synced_offset if self._guarantees.synced else log.next_offset\n",
        "        return log.next_offset\n",
    ),
    _replication(
        "acked-before-sync",
        "with sync always, a leader acks by itself what is not on its disk",
        "acks.py",
        "            own = (synced if self._durable else written) - 1\n",
        "            own = written - 1\n",
    ),
    _replication(
        "no-lease",
        "a leader acks by itself however long it has heard of nobody (W-R19)",
        "acks.py",
        "            leader = max(self._limits.leader, own) if leased else self._limits.leader\n",
        "            leader = max(self._limits.leader, own)\n",
    ),
    _replication(
        "lease-by-old-statements",
        "a statement that was on its way for long is taken for a sign of life",
        "leader.py",
        "        return [self._followers[each].heard if each in",
        "        return [self._followers[each].last_fetch if each in",
    ),
    _replication(
        "eligible-not-asked",
        "a leader goes on although an eligible replica may lead instead",
        "isr.py",
        "        return self.maximal.union(self._partition.elr) - {self._broker}\n",
        "        return self.maximal - {self._broker}\n",
    ),
    _replication(
        "old-answers",
        "a cursor is read at a leader that was followed once",
        "leader.py",
        "            and min(self._heard(self._isr.maximal - {self.broker}), default=since) >= since\n",
        "",
    ),
    _replication(
        "old-answers-of-the-fenced",
        "a cursor is read at a leader that may have been fenced",
        "leader.py",
        "            and now < lease.until\n",
        "",
    ),
    _replication(
        "newest-unknown",
        "a cursor is read before what was committed is known",
        "leader.py",
        "            and self.established\n            and now",
        "            and now",
    ),
    # ---- in-sync replicas ----
    _replication(
        "admitted-behind",
        "who lacks what is committed is admitted (W-R09)",
        "isr.py",
        "            and progress.position(basis.durable) >= needed\n",
        "",
    ),
    _replication(
        "unknown-is-refused",
        "a proposal without an answer is taken for dead",
        "isr.py",
        "            self._possible.update(broker for broker, _ in change.isr)\n",
        "            pass\n",
    ),
    _replication(
        "refused-and-applied",
        "a leader goes on without a member that its proposal, which came twice, has admitted",
        "leader.py",
        "        if partition is not None and partition.epoch > self._isr.epoch:\n",
        "        if partition is not None and getattr(outcome, 'refusal', None) is None:\n",
    ),
    # ---- the follower ----
    _replication(
        "cut-to-the-watermark",
        "a follower cuts its log off at its high watermark (W-R02)",
        "follower.py",
        "        target = min(own_end, message.end_offset)\n",
        "        target = self._high_watermark + 1\n",
    ),
    _replication(
        "own-epochs-ignored",
        "a follower cuts off where the leader's epoch ends, wherever its own does",
        "follower.py",
        "        target = min(own_end, message.end_offset)\n",
        "        target = min(log.next_offset, message.end_offset)\n",
    ),
    _replication(
        "watermark-beyond-the-end",
        "a follower exposes what it does not have (W-R06)",
        "follower.py",
        "max(self._high_watermark, min(self._told, self._log.next_offset - 1))\n",
        "max(self._high_watermark, self._told)\n",
    ),
    _replication(
        "gap-taken",
        "a follower appends what does not follow (W-R07)",
        "follower.py",
        "        if batch.first > end:\n            return Misfit.GAP\n",
        "",
    ),
    _replication(
        "data-of-old-sessions",
        "data that was sent before the log was cut off is taken",
        "follower.py",
        "        if message.leader_epoch != self.epoch or message.session != self._session:\n",
        "        if message.leader_epoch != self.epoch:\n",
    ),
    _replication(
        "sessions-numbered-anew",
        "the sessions of a process have the numbers of those of the one before",
        "follower.py",
        "    return count(broker_epoch << 24)\n",
        "    return count(1)\n",
    ),
)

METADATA = (
    _metadata(
        "anybody-leads",
        "whoever is alive leads, in sync or not",
        "elections.py",
        "    leader = electorate.best(partition, _others(partition.isr, not_by))\n    if not leader:\n",
        "    leader = electorate.best(partition, _others(partition.replicas, not_by))\n"
        "    if leader and leader not in partition.isr:\n"
        "        partition = replace(partition, isr=(*partition.isr, leader))\n    if not leader:\n",
    ),
    _metadata(
        "eligible-for-ever",
        "who was eligible stays so when others commit without it",
        "elections.py",
        "        return replace(partition, isr=isr, elr=(), last_known=())\n",
        "        return replace(partition, isr=isr, last_known=())\n",
    ),
    _metadata(
        "fenced-stays-in-sync",
        "the dead stay in sync (W-R13)",
        "elections.py",
        "    left = with_isr(partition, _others(partition.isr, broker), guarantees)\n",
        "    isr = partition.isr if leads else _others(partition.isr, broker)\n"
        "    left = with_isr(partition, isr, guarantees)\n",
    ),
    _metadata(
        "same-epoch-again",
        "a leader that leads again goes on in its epoch (W-R03)",
        "elections.py",
        " leader=leader, leader_epoch=index, epoch=index)\n\n\ndef led_uncleanly",
        " leader=leader, epoch=index)\n\n\ndef led_uncleanly",
    ),
    _metadata(
        "unclean-end-forgiven",
        "who ended without a proof is trusted with what it had (W-R04)",
        "replicas.py",
        "Ended.UNCLEAN: Loss.UNSYNCED,",
        "Ended.UNCLEAN: Loss.NONE,",
    ),
    _metadata(
        "lost-is-unsynced",
        "with sync always, who has lost its disk is trusted",
        "replicas.py",
        "            if guarantees.synced and loss is Loss.UNSYNCED:\n",
        "            if guarantees.synced:\n",
    ),
    _metadata(
        "everything-synced",
        "an unclean end is forgiven to streams that do not wait for disks",
        "replicas.py",
        "            if guarantees.synced and loss is Loss.UNSYNCED:\n",
        "            if loss is Loss.UNSYNCED:\n",
    ),
    _metadata(
        "partition-epoch-unchecked",
        "a change of in-sync replicas is applied to another state than it was decided on",
        "replicas.py",
        "        if change.epoch != partition.epoch:\n",
        "        if False:\n",
    ),
    _metadata(
        "old-leaders-say",
        "a deposed leader changes the in-sync replicas (W-R11)",
        "replicas.py",
        "            if change.leader_epoch != partition.leader_epoch:\n"
        "                return Refusal.LEADER_EPOCH\n"
        "            if change.leader != partition.leader:\n"
        "                return Refusal.LEADER\n"
        "        if change.epoch != partition.epoch:\n",
        "            pass\n        elif change.epoch != partition.epoch:\n",
    ),
    _metadata(
        "broker-epoch-unchecked",
        "a broker that has started anew is admitted for what its run before had (KIP-903)",
        "replicas.py",
        "            if record is None or record.epoch != broker_epoch:\n",
        "            if record is None:\n",
    ),
    _metadata(
        "moved-before-in-sync",
        "old replicas go before the new ones are in sync",
        "replicas.py",
        "        if not set(partition.adding) <= set(partition.isr) or len(staying) < enough:\n",
        "        if not staying:\n",
    ),
    _metadata(
        "not-eligible-leads",
        "a leadership can be moved to anybody",
        "replicas.py",
        "        if change.mode is Mode.CLEAN:\n            return Refusal.NOT_ELIGIBLE\n",
        "        if change.mode is Mode.CLEAN:\n            return None\n",
    ),
)

CONTROL = (
    _control(
        "lease-beside-a-fence",
        "a heartbeat is confirmed while a fence of its broker is on its way",
        "        if record.alive and not self._may_be_fenced(record):\n",
        "        if record.alive:\n",
    ),
    _control(
        "fenced-too-early",
        "a broker is fenced while its lease lasts",
        "        return max(session.begun, session.heard, self._since) + self._session\n",
        "        return max(session.begun, session.heard, self._since) + self._session / 3\n",
    ),
    _control(
        "never-unfenced",
        "who is heard again stays fenced",
        "            return UnfenceBroker(record.id, record.epoch) if heard else None\n",
        "            return None\n",
    ),
    _control(
        "nobody-fenced",
        "the dead are never taken for dead",
        "        return now >= self._ends(session)\n",
        "        return False\n",
    ),
    _control(
        "nobody-asked",
        "nobody is asked what is left when nobody has everything",
        "            return partition.last_known\n",
        "            return ()\n",
    ),
    _control(
        "recovery-by-the-first-answer",
        "the first that answers leads when nobody has everything",
        "            if len(fit) < len(asked):\n                return",
        "            if not fit:\n                return",
    ),
    _control(
        "least-complete",
        "of those that may lack something the least complete one leads",
        "(position.last_epoch, position.next_offset) for each",
        "(-position.last_epoch, -position.next_offset) for each",
    ),
    _control(
        "eligible-left-alone",
        "an eligible replica that is there is not made leader",
        "            leader, mode = electorate.best(partition, eligible), Mode.CLEAN\n",
        '            leader, mode = "", Mode.CLEAN\n',
    ),
)

BUGS = REPLICATION + METADATA + CONTROL
