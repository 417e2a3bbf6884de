"""What a model is thought to lose on images like those that decide: smoother than what is counted there.

A few thousand images tell a loss to 0.2 or 0.4 points, and a round aims at 0.3 to 0.7 of one.  How far the answers of a
model are from its parent's (KL, nats an image) is known to a few hundredths of itself on the same images, and the two
go together.  Any model that was trained anew is some way off, and wrong as often as it is right where its parent was
not: on a ResNet-20 0.08 nats cost nothing.  What is beyond that costs: 21 points a nat there (11 models of two runs,
0.08 to 0.27 nats, up to 4 points), about 20 beyond 0.1 on a ResNet-56.  So all models that a run has looked at say
together what a divergence costs, and a model is thought to lose what its own costs.  Ours, no paper's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from cprune.method.history import History
from cprune.targets.paired import Paired

SHARES = tuple(part / 20 for part in range(21))  # of the smallest divergence of all costs nothing
GUESS, SPREAD = 0.7, 0.3  # of that share, before anything is known, and the error of that guess
SHARED = 0.5  # of a standard error: the rest is one for all models, as they are looked at with the same images


@dataclass(frozen=True)
class Law:
    """loss = `factor` * (divergence - `free`), or nothing; without a factor a loss is what was counted."""

    factor: float | None = None
    free: float = 0.0

    @classmethod
    def of(cls, losses: Iterable[Paired]) -> Law:
        """Return the law that lies nearest to these losses, errors and a first guess of what is free considered."""
        points = [(loss.divergence, loss.loss, SHARED * loss.se) for loss in losses if loss.divergence and loss.se]
        if not points:
            return cls()
        least = min(divergence for divergence, _, _ in points)
        found = []
        for share in SHARES:
            base = [(divergence - share * least, lost, error) for divergence, lost, error in points]
            over = sum(x * x / error**2 for x, _, error in base)
            if over > 0:
                factor = max(0.0, sum(x * lost / error**2 for x, lost, error in base) / over)
                misfit = sum(((lost - factor * x) / error) ** 2 for x, lost, error in base)
                found.append((misfit + ((share - GUESS) / SPREAD) ** 2, cls(factor, share * least)))
        return min(found, key=lambda one: one[0])[1]

    def loss(self, loss: Paired) -> float:
        """Return what a model is thought to lose of which `loss` was counted."""
        if self.factor is None or loss.divergence is None:
            return loss.loss
        return max(0.0, self.factor * (loss.divergence - self.free))

    def before(self, loss: float, left: float) -> float:
        """Return what a model is thought to have lost of which `loss` is left when `left` of its divergence is."""
        if not self.factor:  # a loss is what was counted, or there is none
            return loss / left
        return self.factor * ((self.free + loss / self.factor) / left - self.free)


def looked_at(history: History, round_: int, with_scouts: bool = False) -> list[Paired]:
    """Return the losses of all models that were looked at before a round; with its own scouts if they are wanted.

    A resumed run, which knows what came after them, says the same.
    """
    scouts = [scouted.loss for (of, _), scouted in history.scouted.items() if of < round_ + with_scouts]
    return [*scouts, *(step.loss for step in history.steps[:round_] if step.loss is not None)]
