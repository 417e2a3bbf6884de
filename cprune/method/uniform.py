"""Every width by one share: the largest one that keeps the floor, found by bisection (Li et al., arXiv 1608.08710).

Channels go by the L1 norm of their filters, or by the distance to the geometric median (FPGM, arXiv 1811.00250).
Shares are eighths, up to `max_sparsity`; those that lead to one model are one.  Every share that is tried is cut from
the unpruned model and trained long, so that each has an equal part of the seconds (three parts at most): what was
trained for a share that fails is spent, as it is for whoever looks for the share by hand.
"""

from __future__ import annotations

from cprune.method.latency import EIGHTHS
from cprune.method.plain import Plain
from cprune.network.network import Network
from cprune.runs.events import Chosen, Start


class Uniform(Plain):
    """The steps of one run: `begin()` first, then `steps()`, to its end or not."""

    def begin(self) -> Start:
        """See `cprune.method.beginning.begin`."""
        start = super().begin()
        self.shares = self._shares()
        return start

    def _shares(self) -> tuple[float, ...]:
        """Return the shares that lead to different models, the smallest first."""
        eighths = (part / EIGHTHS for part in range(1, EIGHTHS))
        found: dict[tuple[tuple[str, int], ...], float] = {}
        for share in (one for one in eighths if one <= self.run.settings.max_sparsity):
            widths = tuple(self._narrower(share).items())
            if widths:
                found.setdefault(widths, share)
        return tuple(found.values())

    def _network(self, share: float) -> Network:
        """Return the unpruned network without this share of its channels."""
        network, graph = self.before.network, self.before.graph
        return self._cut(network, graph, self._ranked(network, graph), self._narrower(share))

    def _chosen(self, index: int) -> Chosen | None:
        found = self._next()
        if found is None:
            return None
        share, part = found
        self.run.progress.say(f"{share:.0%} of every width")
        return self._offered(index, self._network(share), part * self.budget.seconds)

    def _next(self) -> tuple[float, float] | None:
        """Return the next share of the channels, and its share of the seconds; None when the last one is known."""
        low, high, left = 0, len(self.shares), 1.0
        for step in self.run.history.steps:
            middle, rounds = (low + high) // 2, (high - low).bit_length()
            if step.verdict != "rejected":  # what is not faster is not trained
                left -= left / rounds
            low, high = (low, middle) if step.verdict == "excluded" else (middle + 1, high)
        if low == high:
            return None
        return self.shares[(low + high) // 2], left / (high - low).bit_length()
