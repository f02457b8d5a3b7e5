"""Replication of partitions: pure machines of a leader and of a follower.

Nothing here sends, stores, waits or asks for the time. The broker gives a machine what has come, and does
what it answers. One machine is one partition in one role in one leader epoch: a new epoch is a new machine,
which knows nothing that was true in another one.

How they are wired, from the follower's side:

1. The partition has a leader in a leader epoch: `Follower`. Whenever it is connected to the leader, and
   whenever it asks for it (`Restate`, or after it has cut its log), `Follower.begin()` is a `Statement` that
   begins a session: where its log ends, and in which epoch.
2. The leader answers it with `Leader.state()`: `Accepted`, and from then on it sends the session data, as far
   as the follower's link has credit (`credit.Link`); or `Diverging`, `BeginAt` or `Fenced`.
3. `Follower.receive()` says what to do with whatever has come. After an append it calls
   `Follower.appended()`.
4. As its log grows and is synced, `Follower.progress()` is a statement in the same session, or None when
   there is nothing to tell. As often as the link's heartbeat is due, `Follower.position()` is one in any
   case.

And from the leader's side: append the epoch's beginning to the log, then make a `Leader`. After own appends
and syncs `Leader.commit()`; what may be acked then says `Leader.acks()`. From time to time, and when
`Leader.state()` has returned, `Leader.propose()`; its `IsrChange` goes to the controller in an `AlterIsr`,
and what came of it to `Leader.resolve()`. Every change of the metadata goes to `Leader.metadata()`, which
says whether it leads still.

A broker takes a role only from metadata that has its own registration in it: that it was leader before it
was started anew says nothing of what its disk has kept.

Offsets: a *next* offset and a *synced* offset are those behind the last record, as in the log; a *high
watermark* and an acked offset are those of the record itself, -1 before the first.

Epochs: leader epochs are indices of the metadata log, above 0; 0 is the epoch of a log that never had one. A
broker epoch is the index of a registration. A session is numbered by the follower's broker, which never
uses a number twice (`follower.sessions_of`).
"""
