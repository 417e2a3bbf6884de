"""NetAdapt: group after group is narrowed, each time the one whose narrowing costs least (arXiv 1804.03230, alg. 1).

Every iteration asks for a reduction of the latency.  Each group alone is narrowed until the latency tables say that
it is reached, each of these proposals is trained for a moment, and the most accurate one is kept.

=======================  ======================================  ===================================================
                         paper                                   here
=======================  ======================================  ===================================================
reduction                a constant, found by hand               a tenth of the latency, or half of that, or half of
                                                                 that …, so that several groups reach it alone
most accurate            on images held out of the training set  nearest to the predictions of the unpruned model on
                                                                 training images: a few hundred tell more so
filters                  L2 norm                                 L1, or what `--importance` says
the end                  a latency that is given                 too much is lost, or the seconds are used up
long training            of the last network                     of the last from which it is thought to bring back
                                                                 enough; then of one more, further or less far
=======================  ======================================  ===================================================

Half of the seconds go into the short trainings, an equal part to every iteration.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from cprune.channels.groups import analyse
from cprune.method.damage import divergence, predictions
from cprune.method.plain import Plain
from cprune.network.network import Network
from cprune.runs.events import Chosen, Scouted
from cprune.training.fine_tune import FineTuneDiverged

ITERATIONS, SHORT = 16, 0.5
REDUCTIONS, SEVERAL = (0.1, 0.05, 0.025, 0.0125), 4
HOPE, LOST = 2.0, 6.0
"""In units of what may be lost: after short training, what long training may bring back, and what ends iterations."""
ROUNDS = 2
LOOKED_AT = 512  # training images


class NetAdapt(Plain):
    """The steps of one run: `begin()` first, then `steps()`, to its end or not.

    The network that iteration `i` keeps is scout 0 of "round" ROUNDS + `i`: rounds are long trainings.
    """

    def _chosen(self, index: int) -> Chosen | None:
        if index == ROUNDS:
            return None
        kept = self._iterations()
        place = self._place(kept)
        if place is None:
            return None
        left = 1 - SHORT * len(kept) / ITERATIONS
        network = self.run.keeper.load_scout(ROUNDS + place, 0)
        return self._offered(index, network, left / ROUNDS * self.budget.seconds)

    def _place(self, kept: Sequence[Scouted]) -> int | None:
        """Return which of the networks that were kept is trained long next; None if none is left."""
        allowed = self.run.start.allowed
        place = max((i for i, one in enumerate(kept) if one.loss.loss <= HOPE * allowed), default=0)
        low, high = 0, len(kept)
        for step in self.run.history.steps:
            low, high = (low, place) if step.verdict == "excluded" else (place + 1, high)
            place = (low + high) // 2
        return place if low < high else None

    # -- iterations

    def _iterations(self) -> list[Scouted]:
        """Return what every iteration kept, the mildest first; those of earlier lives are known."""
        kept: list[Scouted] = []
        while len(kept) < ITERATIONS:
            one = self.run.history.scouted.get((ROUNDS + len(kept), 0)) or self._iteration(kept)
            if one is None:
                break
            kept.append(one)
            if one.loss.loss > LOST * self.run.start.allowed:
                break
        return kept

    def _iteration(self, kept: Sequence[Scouted]) -> Scouted | None:
        """Make, train and compare the proposals of one iteration, and keep the best; None if there is none."""
        run, number = self.run, ROUNDS + len(kept)
        widths = kept[-1].by_group if kept else {}
        network = run.keeper.load_scout(number - 1, 0) if kept else self.before.network
        proposals = self._proposals(widths)
        graph = analyse(network, run.example, run.settings.ignore, run.settings.whole_heads)
        which = self._ranked(network, graph)
        epochs = self._epochs(network, SHORT * self.budget.seconds / ITERATIONS / max(1, len(proposals)))
        far = self._distance()
        best, least = None, math.inf
        for group, width in proposals.items():
            smaller = self._cut(network, graph, which, {group: width})
            damage = self._short_trained(smaller, epochs, far)
            if damage < least:
                best, least = (smaller, {**widths, group: width}), damage
        if best is None:
            return None
        smaller, widths = best
        run.keeper.save_scout(number, 0, smaller)
        share = self.table.forecast_s(widths) / self.table.forecast_s({})
        loss = run.loss(run.look(smaller, "decide"), "decide")
        scouted = Scouted(number, 0, share, share, least, epochs, loss, Scouted.texts(widths.items()), ())
        run.happened(scouted)
        run.progress.say(
            f"iteration {len(kept) + 1}: {share:.2f} of the latency loses {100 * loss.loss:.2f} points, "
            f"the best of {len(proposals)} proposals"
        )
        return scouted

    def _proposals(self, widths: Mapping[str, int]) -> dict[str, int]:
        """Return groups with the width at which each alone reaches the reduction: of several, if that is possible."""
        now, found = self.table.forecast_s(widths), {}
        narrower = {group.id: self._options(group.id, widths) for group in self.before.graph.groups}
        enough = min(SEVERAL, sum(map(bool, narrower.values())))
        for reduction in REDUCTIONS:
            found = {
                group: width
                for group, options in narrower.items()
                if (width := self._reaching((1 - reduction) * now, widths, group, options)) is not None
            }
            if len(found) >= enough:
                break
        return found

    def _options(self, group: str, widths: Mapping[str, int]) -> list[int]:
        """Return the widths to which a group may go from here, descending."""
        full = self.table.full[group]
        least = (1 - self.run.settings.max_sparsity) * full - 1e-9
        return [width for width in self.table.options(group) if least <= width < widths.get(group, full)]

    def _reaching(self, seconds: float, widths: Mapping[str, int], group: str, options: Sequence[int]) -> int | None:
        """Return the first width of one group at which all calls, measured, take at most so long; None if none does."""
        run = self.run
        for width in options:
            wanted = {**widths, group: width}
            if self.table.forecast_s(wanted) > seconds:  # of estimates, where nothing was measured yet
                continue
            with run.cost.spent("tune"), run.cost.counting("loop"):
                self.table.measure([wanted], run.progress.advance)
            if self.table.forecast_s(wanted) <= seconds:
                return width
        return None

    def _epochs(self, network: Network, seconds: float) -> float:
        """Return how many epochs of short training there are in so many seconds: one step at least is made."""
        run = self.run
        with run.cost.spent("train"):
            pace = run.trainer.pace(network, self.budget.schedule(1.0, long=False))
        assert pace is not None  # where nobody can know it another method runs
        return round(pace.epochs(seconds), 4)

    def _short_trained(self, network: Network, epochs: float, far: Callable[[Network], float]) -> float:
        """Train for a moment, in place, and return how `far` it is then; infinite where the training diverges."""
        run = self.run
        try:
            run.fine_tune(network, self.budget.schedule(epochs, long=False), run.settings.seed * 1000 + 500)
        except FineTuneDiverged:
            return math.inf
        with run.cost.spent("evaluate"):
            return far(network)

    def _distance(self) -> Callable[[Network], float]:
        """Return what says how far the predictions of a network are from those of the unpruned one, in nats."""
        run = self.run
        shown = run.trainer.samples(LOOKED_AT, 3 * run.settings.seed + 1)
        assert shown is not None
        images = shown.model_input(shown.images)
        with run.cost.spent("evaluate"):
            wanted = predictions(run.first, images)
        return lambda network: divergence(wanted, predictions(network, images))
