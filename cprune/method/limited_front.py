"""The predicted front of a model that must also be small: points that are small enough, where the free ones are not.

Parameters and multiply-adds get a price in seconds, so the allocation weighs them like latency (a Lagrangian with one
multiplier for all of them; several are tried).  What such a front has is kept if it is small enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from cprune.method.allocation import Allocation, Problem, front, undominated
from cprune.method.limits import Limits
from cprune.method.sizes import Sizes

PRICES = (0.3, 1.0, 4.0, 32.0)  # seconds that a whole limit of size costs, as shares of the whole latency


def front_within(problem: Problem, sizes: Sizes, limits: Limits) -> list[Allocation]:
    """Return the front, slowest (whole) first, each point with its size.

    Where the size is limited, what is slower than the slowest point that is small enough is free, and beyond it all
    points are small enough; if none can be, it is the free front.
    """
    free = [_sized(one, sizes) for one in front(problem)]
    if not limits.sized:
        return free
    found = list(free)
    for price in PRICES:
        of_param, of_mac = (0.0 if limit is None else price / limit for limit in (limits.params, limits.macs))
        whole_s = free[0].seconds
        priced = replace(problem, parts=(*problem.parts, *sizes.parts(of_param * whole_s, of_mac * whole_s)))
        found += [_sized(_in_seconds(one, problem), sizes) for one in front(priced)]
    small = undominated([one for one in found if limits.fits(one)])
    if not small:
        return free
    return [*(one for one in free if one.seconds > small[0].seconds), *small]


def _sized(one: Allocation, sizes: Sizes) -> Allocation:
    size = sizes.of(dict(one.widths), one.gone)
    return replace(one, params=size.params, macs=size.macs)


def _in_seconds(one: Allocation, problem: Problem) -> Allocation:
    """Return an allocation with the latency of a problem's parts alone."""
    widths = {**{group: options[0] for group, options in problem.options.items()}, **dict(one.widths)}
    stay = [part for part in problem.parts if part.branches.isdisjoint(one.gone)]
    return replace(one, seconds=sum(part.seconds(tuple(widths[group] for group in part.groups)) for part in stay))


def near_limits(points: Sequence[Allocation], limits: Limits, share: float) -> Allocation:
    """Return the slowest point that takes at most `share` of the first one's latency and is small enough.

    Where there is none it is the nearest: the one that misses least.
    """
    whole_s = points[0].seconds
    meeting = [one for one in points if one.seconds <= share * whole_s and limits.fits(one)]
    if meeting:
        return meeting[0]
    return min(points, key=lambda one: max(one.seconds / whole_s / share, limits.largest(one)))
