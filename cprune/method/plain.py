"""What the methods without damage tables share: widths that the layout tells apart, channels by a score, no repair.

They start from the unpruned model in every round.  A cut network has its statistics of BatchNorm estimated anew, and
that is all before its training.
"""

from __future__ import annotations

from collections.abc import Mapping

from cprune.channels.elimination import ELIMINATION, Orders, orders
from cprune.channels.graph import Graph
from cprune.channels.statistics import statistics
from cprune.channels.surgery import prune
from cprune.method.damage import cut_to
from cprune.method.latency import LatencyTable
from cprune.method.planning import STATISTICS_IMAGES
from cprune.method.rounds import Rounds
from cprune.method.state import RunState, Version
from cprune.network.network import Network
from cprune.runs.events import Chosen, GroupChange, Start


class Plain(Rounds):
    """A method whose channels go by `importance`, where the settings name no other."""

    def __init__(self, run: RunState, importance: str = "l1") -> None:
        super().__init__(run)
        self.importance = run.settings.importance or importance

    def begin(self) -> Start:
        """See `cprune.method.beginning.begin`."""
        start = super().begin()
        self.table = LatencyTable(self.before.tuned, self.before.graph, self.run.bench.tuner)
        return start

    def _narrower(self, share: float, inner: bool = False) -> dict[str, int]:
        """Return the widths of all groups that lose up to `share` of their channels, as much as brings something.

        With `inner` these are the widths that one layer alone makes: those inside residual branches, and all of a
        network without branches.  What a depthwise convolution writes is as wide as what it reads.
        """
        graph, found = self.before.graph, {}
        for group in graph.groups:
            makers = [name for name in group.layers if graph.layers[name].in_axis is not None]
            least = (1 - share) * group.channels - 1e-9
            width = min(width for width in self.table.options(group.id) if width >= least)
            if width < group.channels and not (inner and len(makers) > 1):
                found[group.id] = width
        return found

    def _ranked(self, network: Network, graph: Graph) -> Orders:
        """Return in which order the channels of every group go; `graph` is that of the network."""
        run, seed, moments = self.run, self.run.settings.seed, None
        with run.cost.spent("evaluate"):
            if self.importance == ELIMINATION:
                shown = run.trainer.samples(STATISTICS_IMAGES, 3 * seed)
                assert shown is not None  # where none are seen another method runs
                moments = statistics(network, graph, shown.model_input(shown.images), seed=seed)
            gradients = run.trainer.gradients(network, seed) if self.importance == "taylor" else None
            return orders(network, graph, self.importance, statistics=moments, gradients=gradients, seed=seed)

    def _cut(self, network: Network, graph: Graph, which: Orders, widths: Mapping[str, int]) -> Network:
        """Return a network whose groups have these widths, with statistics of BatchNorm to it."""
        with self.run.cost.spent("evaluate"):
            smaller = prune(network, graph, cut_to(graph, which, widths))
            self.run.trainer.recalibrate(smaller, self.run.settings.seed)
        return smaller

    def _offered(self, index: int, network: Network, seconds: float) -> Chosen:
        """Keep a network that was cut from the unpruned one, and note that round `index` trains it for so long."""
        run = self.run
        run.keeper.save_scout(index, 0, network)
        new = self._tuned(network, "tuning changed tasks")
        share = new.tuned.forecast_s / self.current.tuned.forecast_s
        epochs = self.budget.epochs(run, network, seconds)
        lost = run.loss(run.look(network, "decide"), "decide").loss
        chosen = Chosen(index, 0, share, epochs, lost, _changes(self.before, new), ())
        run.happened(chosen)
        run.progress.say(
            f"round {index + 1}: forecast {share:.2f} of the latency, {len(chosen.groups)} groups narrower, "
            f"{100 * lost:.2f} points lost before training; {epochs:.1f} epochs, about {seconds / 60:.1f} min"
        )
        return chosen


def _changes(before: Version, after: Version) -> tuple[GroupChange, ...]:
    """Return the groups of `before` that `after` has with other widths."""
    new = {group.id: group.channels for group in after.graph.groups}
    return tuple(
        GroupChange(group.id, group.channels, new[group.id])
        for group in before.graph.groups
        if new.get(group.id, group.channels) != group.channels
    )
