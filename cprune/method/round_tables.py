"""What a round has looked at and measured, on the disk: damage of groups and branches, and the predicted front.

A run that was stopped between the tables of a round and its choice reads them: it looks at nothing again, and chooses
the same.  They are also what one more model is taken from when the run is over (`cprune.method.further`).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from cprune.method.allocation import Allocation, Problem
from cprune.method.state import RunState
from cprune.targets.errors import UserError
from cprune.targets.plain import read, to_plain


@dataclass(frozen=True)
class WidthDamage:
    """The damage of a group at a width, in nats; None where the predictions are no numbers."""

    group: str
    width: int
    damage: float | None


@dataclass(frozen=True)
class Point:
    """An allocation of the front: the groups that are narrower, the branches that are gone, what it takes and costs."""

    widths: Mapping[str, int]
    gone: tuple[str, ...]
    seconds: float
    damage: float
    params: int = 0
    macs: int = 0

    @classmethod
    def of(cls, one: Allocation) -> Point:
        """Return the point of an allocation."""
        return cls(dict(one.widths), one.gone, one.seconds, one.damage, one.params, one.macs)

    @property
    def allocation(self) -> Allocation:
        """Return it as the method uses it."""
        return Allocation(tuple(self.widths.items()), self.gone, self.seconds, self.damage, self.params, self.macs)


@dataclass(frozen=True)
class RoundTables:
    """The tables of one round: damage of every group at every width and of every branch, and the front."""

    widths: tuple[WidthDamage, ...]
    branches: Mapping[str, float]
    front: tuple[Point, ...]

    @classmethod
    def of(cls, problem: Problem, front: Sequence[Allocation]) -> RoundTables:
        """Return what is kept of a problem and its front."""
        widths = (
            WidthDamage(group, width, damage if math.isfinite(damage) else None)
            for (group, width), damage in problem.damage.items()
        )
        return cls(tuple(widths), dict(problem.branch_damage), tuple(Point.of(one) for one in front))

    @property
    def allocations(self) -> tuple[Allocation, ...]:
        """Return the front, slowest first."""
        return tuple(point.allocation for point in self.front)


def keep(run: RunState, round_: int, tables: RoundTables) -> None:
    """Keep the tables of a round; they are on the disk when this returns."""
    run.keeper.save_tables(round_, {name: to_plain(value) for name, value in vars(tables).items()})


def kept(run: RunState, round_: int, groups: Collection[str]) -> RoundTables | None:
    """Return the tables of a round of a network with these groups.

    None where there are none, or none that can be read: that is said, and they are measured again.
    """
    try:
        values = run.keeper.load_tables(round_)
        if values is None:
            return None
        tables = read(RoundTables, values, "field")
    except UserError as error:
        run.progress.say(f"the tables of round {round_ + 1} are measured again: {error.message}")
        return None
    strangers = {one.group for one in tables.widths} | {name for point in tables.front for name in point.widths}
    strangers -= set(groups)
    if strangers or not tables.front:
        why = f"they are of another network, with {min(strangers)}" if strangers else "their front is empty"
        run.progress.say(f"the tables of round {round_ + 1} are measured again: {why}")
        return None
    return tables
