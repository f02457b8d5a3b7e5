"""What one link may cost, and how long it may be silent: every bound of the links in one place.

All times are in seconds, all sizes in bytes. docs/peers.md tells what each is for.
"""

from __future__ import annotations

KIB = 1024
MIB = 1024 * KIB

MAX_LINKS = 1024
"""Links that other brokers have opened, at a time."""
MAX_GREETINGS = 256
"""Of those who have not proved yet who they are."""
MAX_GREETINGS_PER_ADDRESS = 16
MAX_TOLD = 256
"""Greetings that have failed and are told the log, in half a minute."""
MAX_CONTROL_LINKS = 4
"""That one broker has opened; one more ends the oldest."""
MAX_DIALED = 256
"""Brokers that this one keeps control links to."""
MAX_GREETING_BYTES = 4 * KIB
GREETING_SECONDS = 3.0
"""From the call to the proof."""
CONNECT_SECONDS = 2.0
"""For one attempt to connect, TLS included."""

HEARTBEAT_SECONDS = 0.4
"""A link on which nothing was sent for so long is sent something."""
SILENCE_SECONDS = 1.5
"""A link on which nothing has come for so long is lost."""
PAUSE_SECONDS = 0.05
"""After a link was lost, doubled with each attempt that fails, up to MAX_PAUSE_SECONDS."""
MAX_PAUSE_SECONDS = 1.0
LOOK_SECONDS = 0.1
"""How often a pause looks whether the address has changed."""
DEMAND_SECONDS = 30.0
"""For so long a broker is connected to that something was to be sent to, if it is not one of `anybody`."""
LINK_WAIT_SECONDS = 1.0
"""A question waits so long for a link."""

MAX_PIECE = 64 * KIB
"""Longer messages go in pieces, between which more urgent ones go."""
MAX_RAFT_BYTES = 64 * MIB
"""A message of the consensus, as in `raft.codec`."""
MAX_QUESTION_BYTES = 36 * MIB
"""A question or an answer: the largest entry of the metadata, and what is around it."""
MAX_KIND_BYTES = 64
MAX_UNANSWERED = 1024
"""Questions that one link may have open, each way."""
QUEUE_BYTES = (1 * MIB, 8 * MIB, 16 * MIB, 4 * MIB)
"""Waiting in each lane of a control link; one message may always wait."""

MIN_WINDOW = 64 * KIB
WINDOW = 8 * MIB
MAX_WINDOW = 256 * MIB
"""Bytes of credit that a follower gives at first."""
QUANTUM = 256 * KIB
"""Bytes of a partition in a turn."""
MAX_IN_A_ROW = 64 * KIB
COST_OF_A_SEND = 1 * KIB
"""A leader that sends small batches lets others run after so many bytes, each batch counted as some more."""
MAX_PAYLOAD_BYTES = 160 * MIB
"""Batches of one `Data`: more than the largest batch, as one always goes."""
MAX_COME = 1 << 20
"""Messages of a leader that wait for their partitions."""
INLINE_BYTES = 16 * KIB
"""Batches that are joined with their description, to be one write."""
