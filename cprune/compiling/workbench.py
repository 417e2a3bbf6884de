"""What a method asks of a machine: tune this network, hold it, time two held ones in turns.

A method needs no more of tuner and session than this; its tests answer it from a cost function.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from cprune.compiling.lowered import Layout
from cprune.compiling.tuned import NO_PROGRAMS, Tuned, choose_layout, tune
from cprune.network.network import Network
from cprune.progress import Progress
from cprune.targets.interval import Comparison
from cprune.targets.measure import compare
from cprune.targets.session import Session
from cprune.tuner.programs.space import Candidate
from cprune.tuner.tune import Tuner, Tunes


class Workbench(Protocol):
    """Tunes networks for one machine and times them there."""

    @property
    def tuner(self) -> Tunes:
        """Return what tunes single tasks."""

    @property
    def vector(self) -> int:
        """Return how many float32 numbers a vector of the machine holds."""

    @property
    def threads(self) -> int:
        """Return how many threads a program has on the machine."""

    def choose_layout(
        self,
        network: Network,
        trials: int,
        progress: Progress,
        layout: Layout | None = None,
        siblings: Mapping[str, Candidate] = NO_PROGRAMS,
    ) -> Layout:
        """Return the fastest layout by measured cost; see `cprune.compiling.tuned.choose_layout`."""

    def tune(
        self,
        network: Network,
        layout: Layout,
        trials: int,
        progress: Progress,
        siblings: Mapping[str, Candidate] = NO_PROGRAMS,
        text: str = "",
    ) -> Tuned:
        """Return `network` with the fastest program of every task; see `cprune.compiling.tuned.tune`."""

    def load(self, key: str, tuned: Tuned) -> None:
        """Hold a tuned model under `key` until `drop`; BrokenWorld if it does not compute what PyTorch does."""

    def compare(self, old: str, new: str, rounds: int, run_ms: float, beta: float | None = None) -> Comparison:
        """Time two held models in turns; see `cprune.targets.measure.compare`."""

    def drop(self, key: str) -> None:
        """Forget a held model."""


class SessionWorkbench:
    """The workbench of a session and its tuner, for models that take `example`."""

    def __init__(self, session: Session, tuner: Tuner, example: tuple[Tensor, ...]) -> None:
        self.session, self._tuner, self.example = session, tuner, example
        self.arrays = [x.detach().numpy() for x in example]

    @property
    def tuner(self) -> Tuner:
        """See `Workbench.tuner`."""
        return self._tuner

    @property
    def vector(self) -> int:
        """See `Workbench.vector`."""
        return self.tuner.target.vector

    @property
    def threads(self) -> int:
        """See `Workbench.threads`."""
        return self.tuner.target.threads

    def choose_layout(
        self,
        network: Network,
        trials: int,
        progress: Progress,
        layout: Layout | None = None,
        siblings: Mapping[str, Candidate] = NO_PROGRAMS,
    ) -> Layout:
        """See `Workbench.choose_layout`."""
        return choose_layout(network, self.example, self.tuner, trials, progress, layout=layout, siblings=siblings)

    def tune(
        self,
        network: Network,
        layout: Layout,
        trials: int,
        progress: Progress,
        siblings: Mapping[str, Candidate] = NO_PROGRAMS,
        text: str = "",
    ) -> Tuned:
        """See `Workbench.tune`."""
        return tune(network, self.example, self.tuner, trials, progress, layout=layout, siblings=siblings, text=text)

    def load(self, key: str, tuned: Tuned) -> None:
        """See `Workbench.load`."""
        tuned.load(self.session, key)

    def compare(self, old: str, new: str, rounds: int, run_ms: float, beta: float | None = None) -> Comparison:
        """See `Workbench.compare`."""
        return compare(self.session, old, new, self.arrays, rounds, run_ms, beta)

    def drop(self, key: str) -> None:
        """See `Workbench.drop`."""
        self.session.drop(key)
