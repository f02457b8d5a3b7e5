"""What a run has shown."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Result:
    """What a run has shown.

    Attributes:
        kind, seed, profile: what repeats it.
        problem: what must not happen and has; "" when all is well.
        trace: the last events; empty when all is well and nobody asked for it.
        events: that were handled.
        acked: commands, or messages, that clients were told of.
        terms: of the last leader of the consensus.
        digest: of all events, "" unless asked for.
        counts: what else was counted, by name.
    """

    kind: str
    seed: int
    profile: str
    problem: str
    trace: tuple[str, ...]
    events: int
    acked: int
    terms: int
    digest: str
    counts: tuple[tuple[str, int], ...] = ()

    def report(self, last: int | None = 60) -> str:
        """The finding as text: what, the last events (None for all there are), and how to see it again."""
        events = self.trace if last is None else self.trace[-last:]
        again = f"liftbridge sim {self.kind} --seed {self.seed} --profile {self.profile} --trace"
        what = f"seed {self.seed}, profile {self.profile}: {self.problem}"
        return "\n".join([what, *events, what, f"again: {again}"])
