"""What a model is thought to lose on images like those that decide: smoother than what is counted there.

A few thousand images tell a loss to 0.2 or 0.3 points, and a round aims at 0.3 to 0.7 of one.  How far the answers of a
model are from its parent's (KL, nats an image) is known to a few hundredths of itself on the same images, and the two
go together: in 33 models of five runs of the built-in network, scouts and long trained ones, 24 to 47 points a nat, in
six of a ResNet-56 by a power of 3 (0.33 points at 0.12 nats, 1.93 at 0.20).  So all models that a run has looked at say
together what a divergence costs, and a model is thought to lose what its own costs.  Ours, no paper's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from cprune.method.history import History
from cprune.targets.paired import Paired

POWERS = tuple(1 + part / 4 for part in range(13))  # 1 to 4
SPREAD = 1.5  # the error of the guess that the power is 1
SHARED = 0.5  # of a standard error: the rest is one for all models, as they are looked at with the same images


@dataclass(frozen=True)
class Law:
    """loss = `factor` * divergence ** `power`; without a factor a loss is what was counted."""

    factor: float | None = None
    power: float = 1.0

    @classmethod
    def of(cls, losses: Iterable[Paired]) -> Law:
        """Return the law that lies nearest to these losses, errors and a first guess of the power considered."""
        points = [(loss.divergence, loss.loss, SHARED * loss.se) for loss in losses if loss.divergence and loss.se]
        if not points:
            return cls()
        found = []
        for power in POWERS:
            base = [(divergence**power, lost, error) for divergence, lost, error in points]
            over = sum(x * x / error**2 for x, _, error in base)
            factor = max(0.0, sum(x * lost / error**2 for x, lost, error in base) / over)
            misfit = sum(((lost - factor * x) / error) ** 2 for x, lost, error in base)
            found.append((misfit + ((power - 1) / SPREAD) ** 2, cls(factor, power)))
        return min(found, key=lambda one: one[0])[1]

    def loss(self, loss: Paired) -> float:
        """Return what a model is thought to lose of which `loss` was counted."""
        if self.factor is None or loss.divergence is None:
            return loss.loss
        return self.factor * float(loss.divergence**self.power)


def looked_at(history: History, round_: int, with_scouts: bool = False) -> list[Paired]:
    """Return the losses of all models that were looked at before a round; with its own scouts if they are wanted.

    A resumed run, which knows what came after them, says the same.
    """
    scouts = [scouted.loss for (of, _), scouted in history.scouted.items() if of < round_ + with_scouts]
    return [*scouts, *(step.loss for step in history.steps[:round_] if step.loss is not None)]
