"""A deterministic simulator of the protocol cores: one process, one thread, virtual time, everything from
one seed.

The cores of consensus and replication take time, randomness, messages and the disk's answers as arguments,
so a whole cluster of them runs inside of one loop over a queue of events. What may go wrong in years goes
wrong here in seconds, and what has gone wrong once goes wrong again: a seed and the name of a profile
repeat a run to the last event. `liftbridge sim` is its command.

The world, which knows nothing of any protocol: `scheduler`, `network`, `disk`, `clock`, together in
`world`. On it runs consensus: `consensus` (the entry), `raft_host` (a process around a core),
`raft_storage` (its disk format), `raft_machine` (what it agrees on), `raft_cluster` (clients, operator),
`raft_checks` (what must hold), `raft_faults` (what goes wrong, and when). `seeds` runs many.

Invariant: no clock of the machine and no state outside of a `World` are read, and nothing depends on the
order of a set of strings; so the same code with the same seed does the same.
"""
