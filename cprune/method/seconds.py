"""How long a run trains, and how that time is shared out.

Without `train_time_s` it is what EPOCHS of the unpruned model take, between LEAST_S and MOST_S.  Every scout gets
SCOUT of it, the first long training FIRST, the last what is left.
"""

from __future__ import annotations

from dataclasses import dataclass

from cprune.method.state import RunState
from cprune.network.network import Network
from cprune.runs.events import Planned
from cprune.training.trainer import Schedule
from cprune.training.views import VIEWS

EPOCHS = 25
LEAST_S, MOST_S = 300.0, 1920.0
SCOUT = 0.04
LR = 0.02
"""Of 0.01, 0.02, 0.05 and 0.1 the best for ResNet-56 with half of its blocks and inner widths, 10 and 15 epochs."""
FIRST = 0.3
LEAST_LAST = 0.1  # of the last long training, whatever was spent before
LOOKING = 0.07  # as long, beside it
ASKING = 0.15  # of it, for the teacher's answers about views of the images, at most


@dataclass(frozen=True)
class Budget:
    """The seconds of training of a whole run."""

    seconds: float
    views: int

    @classmethod
    def of(cls, run: RunState) -> Budget:
        """Return what the settings ask for, or what suits model, data and machine; it is measured once in a run."""
        if run.history.planned is None:
            with run.cost.spent("train"):
                pace = run.trainer.pace(run.first, Schedule(1.0, LR, varied=True))
            assert pace is not None  # where nobody can know it another method runs
            seconds = run.settings.train_time_s
            if seconds is None:
                seconds = min(MOST_S, max(LEAST_S, EPOCHS * pace.seconds_per_epoch))
            views = VIEWS if not pace.seconds_per_view else int(ASKING * seconds / pace.seconds_per_view)
            run.happened(Planned(round(seconds, 1), min(VIEWS, max(2, views))))
        planned = run.history.planned
        assert planned is not None
        run.progress.say(f"about {planned.train_s / 60:.0f} min of training (--train-time)")
        return cls(planned.train_s, planned.views)

    def epochs(self, run: RunState, network: Network, seconds: float, long: bool = True) -> float:
        """Return how many epochs of training a network has in so many seconds, a tenth at least."""
        with run.cost.spent("train"):
            pace = run.trainer.pace(network, self.schedule(1.0, long))
        assert pace is not None
        return round(max(0.1, pace.epochs(seconds)), 2)

    def schedule(self, epochs: float, long: bool = True) -> Schedule:
        """Return how a model is trained long, or for a short time: on the images as they are."""
        return Schedule(epochs, LR, varied=long, ema=long, views=self.views)

    @property
    def of_scout(self) -> float:
        """Return the seconds of a short training."""
        return SCOUT * self.seconds

    @property
    def of_looking(self) -> float:
        """Return the seconds, beside the training, for a look at everything that can go."""
        return LOOKING * self.seconds

    def of_round(self, index: int, rounds: int, scouted: int, spent_s: float = 0.0) -> float:
        """Return the seconds of the long training of a round, after so many scouts in all.

        `spent_s` is what all training took until now.  Where that is more than was meant for it, as the machine has
        slower minutes than the one in which the pace was measured, the last round has so much less, and is taken to be
        as slow.
        """
        if index < rounds - 1:
            return FIRST * self.seconds
        meant = (rounds - 1) * FIRST + scouted * SCOUT
        slowness = max(1.0, spent_s / (meant * self.seconds)) if meant else 1.0
        return max(LEAST_LAST, 1 - meant * slowness) / slowness * self.seconds
