"""One more model of a run, as fast as somebody asks for when the run is over: `cprune resume RUN --speedup 2.5`.

It is taken from the tables that a round kept, of the newest model that is slower, and trained as long as a last round
is.  It is looked at with the images that certify after all others were, and because of a wish that came later, so it
does not take the place of the model that the run delivered: it is a point more of the front.

A run whose models all fail in the end asks for one itself, a slower one that is trained for a short time more
(`retreated`): that one is delivered if it holds, and no run ends with nothing because of a single unlucky model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from cprune.method.allocation import Allocation
from cprune.method.certify import Contender, Notes, certified, chosen
from cprune.method.ending import contenders
from cprune.method.front import base_of, gone_before, graph_of, network_of, point_of
from cprune.method.limits import MARGIN, REACHED, share_after
from cprune.method.planning import Plan, planned
from cprune.method.round_tables import kept
from cprune.method.seconds import Budget
from cprune.method.state import RunState, Version
from cprune.method.tables import ROUNDS, TIMED_ROUNDS, Tables
from cprune.network.network import Network
from cprune.runs.events import Asked, Chosen, Further, GroupChange, Trained
from cprune.runs.front import FrontPoint
from cprune.targets.errors import UserError
from cprune.targets.interval import Interval
from cprune.training.fine_tune import FineTuneDiverged

SAFER = 2 / 3  # of the logarithm of the speed-up that failed is looked for once more
SLOWER = 1.03  # times the latency of what failed, at least
SAFER_SECONDS = 0.1  # of the seconds of training, beside them
TIMED = 3  # allocations of the front that are compiled and timed
SAME = 0.01  # speed-ups that differ by less are one wish


@dataclass(frozen=True)
class Wish:
    """How fast one more model should be: a speed-up, or a latency in ms."""

    speedup: float | None = None
    latency_ms: float | None = None


NO_WISH = Wish()


def asked_for(run: RunState, wish: Wish) -> None:
    """Take note of a wish, unless it was made before.

    Raises UserError where the tables have no model that is so fast.
    """
    wished = wish.speedup or run.start.latency_ms.median / (wish.latency_ms or math.inf)
    if any(abs(math.log(one.speedup / wished)) < SAME for one in run.history.asked):
        return
    if not wished > 1:
        raise UserError(f"the model as it is takes {run.start.latency_ms.median:.4g} ms", "Ask for a faster one.")
    fastest = 1 / min((_fastest(run, round_) for round_ in _rounds(run)), default=1.0)
    if run.history.steps and wished > fastest:
        raise UserError(
            f"no model of this run's tables is {wished:.3g}x as fast: the fastest is forecast to be {fastest:.3g}x",
            f"Type --speedup {math.floor(100 * MARGIN * fastest) / 100:g}, or less.",
        )
    run.happened(Asked(len(run.history.asked), wished))


def retreated(run: RunState, tables: Tables) -> None:
    """Train one safer model if nothing but the unpruned one could be delivered of what a run has trained.

    Its training takes SAFER_SECONDS of all training more.  Where nothing was chosen there is nothing to do.
    """
    asked = next((one for one in run.history.asked if one.safer), None)
    if asked is None:
        steps = [step.index for step in run.history.steps]
        tried = [share_after(run, base_of(run, index)) * run.history.chosen[index].share for index in steps]
        if not tried or chosen(run, contenders(run)).index is not None:
            return
        asked = Asked(len(run.history.asked), max(tried) ** -SAFER, safer=True)
        run.progress.say(
            f"nothing holds that was trained: one more model, {asked.speedup:.2f}x as fast, safer than those"
        )
        run.happened(asked)
    if asked.number not in run.history.further:
        _make(run, tables, asked)
    made = run.history.further[asked.number]
    if not made.reason and asked.index not in run.history.trained:
        run.happened(Trained(asked.index, made.accuracy, made.accuracy, "", made.loss))


def one_more(run: RunState, tables: Tables, asked: Asked) -> tuple[FrontPoint, Version] | None:
    """Return the point of the front that a wish became, and its model; None if that failed.

    What was not trained and certified in an earlier life is so now.  `tables` has begun: the unpruned model is held as
    "before".
    """
    index = asked.index
    if asked.number not in run.history.further:
        _make(run, tables, asked)
    made = run.history.further[asked.number]
    if made.reason:
        run.progress.say(f"one more model at {asked.speedup:.2f}x: {made.reason}")
        return None
    network = run.keeper.load(index, long_trained=True)
    name = f"the model asked for at {asked.speedup:.2f}x"
    if made.accuracy >= run.start.floor:
        contender = Contender(index, name, made.accuracy, lambda: network, made.loss)
        certified(run, [contender], run.start.allowed, Notes(run))
    else:
        run.progress.say(f"{name}: {made.accuracy:.2%} on the images that decide is below {run.start.floor:.2%}")
    point = point_of(run, index, network, made.latency_ms, made.speedup.median, made.loss)
    return replace(point, afterwards=True, gone=made.gone), run.tune(network, run.layout, run.settings.trials)


def _rounds(run: RunState) -> list[int]:
    """Return the rounds that may have kept tables, the newest first."""
    return list(range(len(run.history.steps), -1, -1))


def _fastest(run: RunState, round_: int) -> float:
    """Return the smallest share of the unpruned model's latency in the tables of a round; 1.0 where there are none."""
    base = base_of(run, round_)
    known = kept(run, round_, [group.id for group in graph_of(run, network_of(run, base)).groups])
    if known is None:
        return 1.0
    return share_after(run, base) * known.front[-1].seconds / known.front[0].seconds


def _round_for(run: RunState, share: float) -> int:
    """Return the newest round whose model is slower than that share, and whose tables reach it; else the first."""
    for round_ in _rounds(run):
        if share_after(run, base_of(run, round_)) > share >= (1 - 1e-9) * _fastest(run, round_):
            return round_
    return 0


def _make(run: RunState, tables: Tables, asked: Asked) -> None:
    """Cut, time and train the model of a wish, and keep it."""
    index, budget = asked.index, Budget.of(run)
    cut = run.history.chosen.get(index) or _cut(run, tables, asked, budget)
    if cut is None:
        run.happened(_failed(asked, "nothing is left whose removal would make the model faster"))
        return
    network = run.keeper.load_scout(index, 0)
    checkpoint = run.keeper.checkpoint(f"round{index}", run.progress.say)
    try:
        run.fine_tune(network, budget.schedule(cut.epochs), run.settings.seed * 1000 + index, checkpoint)
    except FineTuneDiverged as error:
        run.happened(_failed(asked, f"training diverged: {error}"))
        return
    run.keeper.save(index, network, long_trained=True)
    look = run.look(network, "decide")
    version = run.tune(network, run.layout, run.settings.trials, text="tuning, one more model", phase="final")
    run.load("further", version)
    comparison = run.compare("before", "further", 2 * run.settings.rounds)
    run.bench.drop("further")
    ratio = comparison.ratio
    speedup = Interval(1 / ratio.median, 1 / ratio.high, 1 / ratio.low)
    loss, gone = run.loss(look, "decide"), len(cut.gone) + gone_before(run, base_of(run, cut.number))
    run.happened(Further(asked.number, speedup, comparison.new_ms, look.accuracy, loss, gone))
    if checkpoint is not None:
        checkpoint.discard()


def _failed(asked: Asked, reason: str) -> Further:
    nothing = Interval(1.0, 1.0, 1.0)
    return Further(asked.number, nothing, nothing, 0.0, None, 0, reason)


def _cut(run: RunState, tables: Tables, asked: Asked, budget: Budget) -> Chosen | None:
    """Return what is trained for a wish: of some allocations that were timed the mildest that is fast enough.

    None where nothing can go.
    """
    share = MARGIN / asked.speedup
    round_ = _round_for(run, 1 / asked.speedup)
    base, index = base_of(run, round_), asked.index
    version = tables.before
    if base is not None:
        version = run.tune(network_of(run, base), run.layout, run.settings.loop_trials, text="the model to go on from")
    now = share_after(run, base)
    usual_ms = now * run.start.latency_ms.median
    plan = planned(run, version, usual_ms, budget.of_looking, run.settings.seed + round_, round_)
    if len(plan.front) == 1:
        return None
    found = list(_timed(run, version, plan, (1 / asked.speedup if asked.safer else share) / now))
    chosen_one = _safer(found, asked) if asked.safer else _fast_enough(found, share)
    if chosen_one is None:
        return None
    network, one, measured = chosen_one
    run.keeper.save_scout(index, 0, network)
    seconds = budget.of_round(ROUNDS - 1, ROUNDS, len(run.history.scouted))
    if asked.safer:
        seconds = SAFER_SECONDS * budget.seconds
    cut = Chosen(
        index,
        round_,  # the round whose tables it is from: there is one scout, and its number is 0
        measured,
        budget.epochs(run, network, seconds),
        0.0,
        tuple(GroupChange(group, plan.graph.group(group).channels, width) for group, width in one.widths),
        one.gone,
    )
    run.happened(cut)
    run.progress.say(
        f"one more model: {measured:.2f} of the unpruned model's latency, {cut.epochs:.1f} epochs, about "
        f"{seconds / 60:.1f} min"
    )
    return cut


Found = tuple[Network, Allocation, float]
"""A network that may be trained, its allocation, and the measured share of the unpruned model's latency."""


def _timed(run: RunState, version: Version, plan: Plan, share: float) -> Iterator[Found]:
    """Yield some that are forecast to take about that share of the latency of the plan's own network."""
    for one in plan.near(share, TIMED):
        with run.cost.spent("evaluate"):
            network = plan.cut(one)
        siblings, trials = version.tuned.layer_programs, run.settings.loop_trials
        text = "tuning an allocation to time it"
        run.load("candidate", run.tune(network, run.layout, trials, siblings, text, "loop"))
        yield network, one, run.compare("before", "candidate", TIMED_ROUNDS).ratio.median
        run.bench.drop("candidate")


def _fast_enough(found: Sequence[Found], share: float) -> Found:
    """Return the mildest that takes that share of the unpruned model's latency at most; if none does, the fastest."""
    enough = [each for each in found if each[2] <= share * REACHED]
    return min(enough, key=lambda each: each[1].damage) if enough else min(found, key=lambda each: each[2])


def _safer(found: Sequence[Found], asked: Asked) -> Found | None:
    """Return the one nearest to the speed asked for, of those that are slower than what failed; None without any."""
    slower = [each for each in found if each[2] > SLOWER * asked.speedup ** (-1 / SAFER)]
    return min(slower, key=lambda each: abs(math.log(each[2] * asked.speedup)), default=None)
