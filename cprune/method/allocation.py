"""Widths and branches for every latency at once: the predicted front, out of latency and damage tables.

What is looked for is the smallest sum of damages for every sum of latencies (HALP, arXiv 2110.10811; ZipLM, arXiv
2302.04089; MDP, arXiv 2406.12079).  Theirs is an integer program or a dynamic program over one table a layer.  Here the
latency of a call depends on two groups, on more behind a concatenation, and on the branches it lies in, so it is a
Lagrangian: damage + price * latency, for many prices, each by coordinate descent over units (a branch with the groups
inside it is one unit, looked at as a whole).  That gives the corners of the front; the points between them come of
single changes, and of changes of those.  The tests compare it with all allocations of small networks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

PRICES = 64
SWEEPS = 8
ROUNDS = 2  # of single changes, after the corners
MOST_POINTS = 64  # of the front that a round changes
MOST_CHOICES = 256  # of a unit; beyond that its groups are looked at one by one


@dataclass(frozen=True)
class Part:
    """One call: it vanishes with any of `branches`; `seconds(widths)` of the groups in `groups`, in their order."""

    groups: tuple[str, ...]
    branches: frozenset[str]
    seconds: Callable[[tuple[int, ...]], float]


@dataclass(frozen=True)
class Problem:
    """What may be chosen, and what it costs.

    Attributes:
        options: the widths of every group, descending, the whole one first.
        damage: of a group at a width; 0 for the whole one.
        branch_damage: of a branch that is gone, by its id.
        inside: the branches in which all layers of a group lie: it costs nothing when one of them is gone.
        parts: the calls of the model.
        depth: what the first branch that is gone costs beside its damage; more of them cost more each (`of_depth`).
    """

    options: Mapping[str, tuple[int, ...]]
    damage: Mapping[tuple[str, int], float]
    branch_damage: Mapping[str, float]
    inside: Mapping[str, frozenset[str]]
    parts: tuple[Part, ...]
    depth: float = 0.0

    def of_depth(self, gone: int) -> float:
        """Return what so many branches less cost beside their damage: the share that is gone over the share left.

        `depth` is what one costs of many; (n + 1) / (n + 1 - gone) times as much does each of several of n.
        """
        parts = len(self.branch_damage) + 1
        return self.depth * gone * parts / (parts - gone)


@dataclass(frozen=True)
class Allocation:
    """A choice: the groups that are narrower with their widths, the branches that are gone, and the two sums.

    `params` and `macs` are those of its network, 0 where nobody counted them.
    """

    widths: tuple[tuple[str, int], ...]
    gone: tuple[str, ...]
    seconds: float
    damage: float
    params: int = 0
    macs: int = 0


def front(problem: Problem) -> list[Allocation]:
    """Return the allocations that no other one beats in both latency and damage, the slowest first.

    That is the whole network, also where something narrower does no damage.
    """
    search = _Search(problem)
    found = {search.allocation(state): state for state in _corners(search)}
    for _ in range(ROUNDS):
        best = undominated(list(found))
        for point in best[:: -(-len(best) // MOST_POINTS)]:
            for unit in search.units:
                for choice in search.choices(unit):
                    changed = search.changed(found[point], choice)
                    found.setdefault(search.allocation(changed), changed)
    best, whole = undominated(list(found)), search.allocation(search.whole)
    return best if best[0] == whole else [whole, *best]


def undominated(allocations: Sequence[Allocation]) -> list[Allocation]:
    """Return those that no other beats in both sums, the slowest first."""
    best: list[Allocation] = []
    least = math.inf
    for one in sorted(allocations, key=lambda a: (a.damage, a.seconds)):
        if one.seconds < least:
            best.append(one)
            least = one.seconds
    return best


@dataclass(frozen=True)
class _State:
    widths: Mapping[str, int]
    gone: frozenset[str]


@dataclass(frozen=True)
class _Unit:
    """Groups that are chosen together, and the branch that they lie in, if they do."""

    groups: tuple[str, ...]
    branch: str | None


_Choice = tuple[tuple[tuple[str, int], ...], "str | None", bool]
"""The widths of a unit's groups, its branch, and whether that is gone."""


class _Search:
    """Sums of a problem, and the choices in it."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.parts_of: dict[str, list[int]] = {}
        for number, part in enumerate(problem.parts):
            for name in (*part.groups, *part.branches):
                self.parts_of.setdefault(name, []).append(number)
        self.units = tuple(self._units())
        self._known: dict[tuple[int, tuple[int, ...]], float] = {}
        self.whole = _State({group: widths[0] for group, widths in problem.options.items()}, frozenset())

    def _units(self) -> Iterator[_Unit]:
        taken: set[str] = set()
        for branch in self.problem.branch_damage:
            own = tuple(g for g, inside in self.problem.inside.items() if inside == {branch})
            if math.prod(len(self.problem.options[g]) for g in own) <= MOST_CHOICES:
                taken.update(own)
                yield _Unit(own, branch)
            else:
                yield _Unit((), branch)
        for group in self.problem.options:
            if group not in taken:
                yield _Unit((group,), None)

    def choices(self, unit: _Unit) -> Iterator[_Choice]:
        """Yield what a unit may be; of one whose branch is gone the groups are whole."""
        options = [[(g, w) for w in self.problem.options[g]] for g in unit.groups]
        for widths in product(*options):
            yield widths, unit.branch, False
        if unit.branch is not None:
            yield tuple(some[0] for some in options), unit.branch, True

    def changed(self, state: _State, choice: _Choice) -> _State:
        """Return the state with a choice."""
        widths, branch, gone = choice
        left = state.gone - {branch} if branch is not None else state.gone
        return _State({**state.widths, **dict(widths)}, left | {branch} if branch is not None and gone else left)

    def seconds(self, number: int, state: _State) -> float:
        """Return what a part takes."""
        part = self.problem.parts[number]
        if not part.branches.isdisjoint(state.gone):
            return 0.0
        widths = tuple(state.widths[g] for g in part.groups)
        if (number, widths) not in self._known:
            self._known[number, widths] = part.seconds(widths)
        return self._known[number, widths]

    def damage_of(self, group: str, state: _State) -> float:
        """Return the damage of a group in a state."""
        inside = self.problem.inside.get(group, frozenset())
        return 0.0 if inside & state.gone else self.problem.damage.get((group, state.widths[group]), 0.0)

    def allocation(self, state: _State) -> Allocation:
        """Return a state with its sums."""
        damage = sum(self.damage_of(g, state) for g in state.widths)
        damage += sum(self.problem.branch_damage[b] for b in state.gone) + self.problem.of_depth(len(state.gone))
        narrower = tuple(
            (g, w)
            for g, w in state.widths.items()
            if w < self.problem.options[g][0] and not self.problem.inside.get(g, frozenset()) & state.gone
        )
        seconds = sum(self.seconds(n, state) for n in range(len(self.problem.parts)))
        return Allocation(narrower, tuple(sorted(state.gone)), seconds, damage)

    def descended(self, state: _State, price: float) -> tuple[float, _State]:
        """Return a state in which no unit alone can be better, and its damage + price * seconds."""
        for _ in range(SWEEPS):
            before = state
            for unit in self.units:
                state = self._best(state, unit, price)
            if state == before:
                break
        total = self.allocation(state)
        return total.damage + price * total.seconds, state

    def _best(self, state: _State, unit: _Unit, price: float) -> _State:
        names = (*unit.groups, *([unit.branch] if unit.branch is not None else []))
        touched = sorted({n for name in names for n in self.parts_of.get(name, ())})
        inner = [g for g, inside in self.problem.inside.items() if unit.branch in inside] if unit.branch else []
        groups = tuple(dict.fromkeys((*unit.groups, *inner)))
        best, least = state, math.inf
        for choice in self.choices(unit):
            new = self.changed(state, choice)
            cost = price * sum(self.seconds(n, new) for n in touched) + sum(self.damage_of(g, new) for g in groups)
            cost += self.problem.of_depth(len(new.gone))
            if choice[2]:
                cost += self.problem.branch_damage[str(unit.branch)]
            if cost < least or (cost == least and new == state):
                best, least = new, cost
        return best


def _corners(search: _Search) -> Iterator[_State]:
    """Yield a state for every price, from almost nothing to almost everything for latency."""
    yield search.whole
    problem = search.problem
    smallest = _State(
        {group: widths[-1] for group, widths in problem.options.items()}, frozenset(problem.branch_damage)
    )
    finite = [d for d in (*problem.damage.values(), *problem.branch_damage.values()) if 0 < d < math.inf]
    seconds = search.allocation(search.whole).seconds
    if not finite or not seconds:
        return
    low, high = min(finite) / seconds * 0.1, sum(finite) / seconds * 100
    up, down = search.whole, smallest
    prices = [low * (high / low) ** (i / (PRICES - 1)) for i in range(PRICES)]
    rising = []
    for price in prices:
        _, up = search.descended(up, price)
        rising.append(up)
    for price, other in zip(reversed(prices), reversed(rising), strict=True):
        _, down = min((search.descended(down, price), search.descended(other, price)), key=lambda found: found[0])
        yield down
