"""The links between brokers: how they reach each other, prove who they are, and what goes over which link.

An internal gRPC service on the port of the API, with long calls in which both sides send bytes. There are two
kinds of links: control links carry messages of the consensus and questions with their answers (`control`,
`lanes`), data links carry replication (`data`, `replication.codec`). A `greeting` comes before both.
`peers` opens links and lets in; `registry` knows which are open; `pipe` makes both ends of a call alike;
`bounds` is what all of it may cost.
"""

from liftbridge.replication.codec import Key

from .data import FollowLink, LeadLink
from .model import GreetingError, LinkError, Own, Purpose, Reason, UnansweredError, Whereabouts
from .peers import Peers

__all__ = [
    "FollowLink",
    "GreetingError",
    "Key",
    "LeadLink",
    "LinkError",
    "Own",
    "Peers",
    "Purpose",
    "Reason",
    "UnansweredError",
    "Whereabouts",
]
