"""One cut that is named beforehand, and all of the training in it: what one does by hand in an afternoon.

A share of every width (the setting `one_shot_share`, a half if nothing is said) goes by the L1 norm of the filters; or
of the inner widths only, so that residual streams stay as wide as they are.  Nothing looks whether it was too much
before the training is over; if it was, the model stays as it is.
"""

from __future__ import annotations

from cprune.method.plain import Plain
from cprune.method.state import RunState
from cprune.runs.events import Chosen


class OneShot(Plain):
    """The one step of a run: `begin()` first, then `steps()`."""

    def __init__(self, run: RunState, inner: bool = False) -> None:
        super().__init__(run)
        self.inner = inner

    def _chosen(self, index: int) -> Chosen | None:
        widths = self._narrower(self.run.settings.one_shot_share, self.inner)
        if index or not widths:
            return None
        network, graph = self.before.network, self.before.graph
        return self._offered(
            index, self._cut(network, graph, self._ranked(network, graph), widths), self.budget.seconds
        )
