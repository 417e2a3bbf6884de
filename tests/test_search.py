"""Strategies against tables: what they ask for, what they never ask for, how soon they arrive."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from cprune.targets.errors import UserError
from cprune.tuner.programs import space
from cprune.tuner.programs.space import Candidate
from cprune.tuner.programs.workload import Conv2d, key
from cprune.tuner.records.record import Record
from cprune.tuner.search import cost_model
from cprune.tuner.search.assembly import hidden
from cprune.tuner.search.cost_model import Memory
from cprune.tuner.search.evolutionary import Evolutionary
from cprune.tuner.search.features import Machine
from cprune.tuner.search.multilevel import MultiLevel
from cprune.tuner.search.points import Strategy
from cprune.tuner.search.strategy import STRATEGIES, strategy
from experiments.ablation import NEAR, family, full_width, replay
from experiments.tables import Recorded, load_all

AVX512 = Machine(16, 32, 2)
CONV = Conv2d(1, 32, 16, 16, 32, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1, False, "relu", 16, 16)
TABLES = Path(__file__).parent / "tables"

Cost = Callable[[Candidate], float]


def direct(workload: Conv2d) -> tuple[Candidate, ...]:
    """Return the points of the direct sketch: one price list is enough here."""
    return tuple(c for c in space.candidates(workload, *AVX512) if "winograd" not in dict(c.knobs))


POINTS = direct(CONV)


def cost(candidate: Candidate) -> float:
    """Return a latency: small where the tile is large, a piece has about two bands, and columns are unrolled."""
    tile = candidate["oc_tile"] * candidate["oh_tile"] * candidate["ow_tile"]
    ways = {"none": 2.0, "rows": 1.0, "channels": 1.1, "both": 1.05}
    pad = 1.1 if candidate["pad"] == "separate" else 1.0
    bands = 1 + 0.05 * abs(math.log2(candidate["rows"] / 2)) + 0.03 * (candidate["oc_tile"] - 1)
    return 1e-5 * ways[candidate["parallel"]] * pad * bands * (1 + 4 / tile) * (1.2 - 0.2 * candidate["unroll"])


def told(candidates: Sequence[Candidate], price: Cost = cost, workload: Conv2d = CONV) -> list[Record]:
    """Return the records of candidates; an infinite price is a failure."""
    prices = [(c, price(c)) for c in candidates]
    return [
        Record(key(workload), "t", c.text(), () if math.isinf(s) else (s,), "run" if math.isinf(s) else "")
        for c, s in prices
    ]


def make(
    name: str,
    points: Sequence[Candidate] = POINTS,
    seed: int = 0,
    trials: int = 64,
    start: Sequence[Candidate] = (),
    history: Sequence[Record] = (),
) -> Strategy:
    return strategy(name, CONV, points, random.Random(seed), trials, AVX512, start, Memory(AVX512, history))


def spend(search: Strategy, trials: int, price: Cost = cost, batch: int = 4) -> list[Candidate]:
    """Run a search on a price list; returns what was measured, in order."""
    measured: list[Candidate] = []
    while len(measured) < trials:
        n = min(batch, trials - len(measured))
        asked = search.ask(n)
        if not asked:
            break
        chosen = search.choose([(c, hidden(assembly(c)) if search.needs_hidden else None) for c in asked], n)
        measured += chosen
        search.tell(told(chosen, price))
    return measured


def assembly(candidate: Candidate) -> str:
    """Return a program that spills once for every ten microseconds it takes."""
    return "main:\n" + "\tmovl %eax, -8(%rsp)\n" * round(cost(candidate) * 1e6) + "\tretq\n"


# --- what holds for every strategy -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_point_is_measured_once_and_then_the_space_is_used_up(name: str) -> None:
    points = POINTS[:30]
    search = make(name, points)
    measured = spend(search, 100)
    assert sorted(c.text() for c in measured) == sorted(c.text() for c in points)
    assert search.ask(4) == []


@pytest.mark.parametrize("name", STRATEGIES)
def test_one_seed_asks_one_way(name: str) -> None:
    assert spend(make(name, seed=3), 28) == spend(make(name, seed=3), 28)
    assert spend(make(name, seed=3), 28) != spend(make(name, seed=4), 28)


@pytest.mark.parametrize("name", STRATEGIES)
def test_what_was_tried_in_an_earlier_session_is_not_asked_again(name: str) -> None:
    search = make(name)
    search.tell(told(POINTS[:50]))
    assert not {c.text() for c in spend(search, 40)} & {c.text() for c in POINTS[:50]}


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_batch_never_names_a_point_twice(name: str) -> None:
    search = make(name, start=(POINTS[5], POINTS[5], POINTS[6]))
    asked = search.ask(12)
    assert len(set(asked)) == len(asked) == 12


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_refitted_programs_of_a_sibling_come_first(name: str) -> None:
    # Of 64 channels the sibling held 4 blocks; 32 channels have 2, so that the nearest tile is 2 blocks.
    sibling = Candidate.of(**{**dict(POINTS[100].knobs), "rows": 64})
    wanted = space.nearest(sibling, POINTS)[0]
    assert make(name, start=(POINTS[7], sibling)).ask(4)[:2] == [POINTS[7], wanted]


@pytest.mark.parametrize("name", STRATEGIES)
def test_where_everything_fails_a_search_still_ends(name: str) -> None:
    assert len(spend(make(name, POINTS[:24]), 100, lambda _: math.inf)) == 24


@pytest.mark.parametrize("name", STRATEGIES)
def test_records_of_points_that_the_space_no_longer_has_do_no_harm(name: str) -> None:
    search = make(name)
    search.tell(told([Candidate.of(**{**dict(c.knobs), "oc_tile": 8}) for c in POINTS[:20]]))
    assert len(spend(search, 8)) == 8


def test_an_unknown_strategy_is_named_with_the_nearest_known_one() -> None:
    with pytest.raises(UserError, match="Did you mean 'random'"):
        make("randon")


# --- evolution -------------------------------------------------------------------------------------------------


def test_evolution_finds_more_than_chance() -> None:
    def best(name: str, seed: int) -> float:
        return min(map(cost, spend(make(name, seed=seed), 40)))

    assert statistics.median(best("evolutionary", s) for s in range(9)) < statistics.median(
        best("random", s) for s in range(9)
    )


def test_without_a_word_about_the_workload_there_is_still_a_search() -> None:
    assert len(Evolutionary(POINTS, random.Random(0), 16).ask(4)) == 4


# --- levels ----------------------------------------------------------------------------------------------------


def test_no_model_is_asked_before_a_dozen_points_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def trained(*_: object, **__: object) -> None:
        raise AssertionError("xgboost was asked")

    monkeypatch.setattr(cost_model, "_train", trained)
    search = make("P+V+A")
    for _ in range(3):
        asked = search.ask(4)
        assert len(asked) == 4
        search.choose([(c, hidden("ret")) for c in asked], 4)
        search.tell(told(asked)[: 4 if _ < 2 else 3])
    search.ask(4)


def test_the_first_points_fill_the_space() -> None:
    def spread(name: str) -> float:
        gaps = []
        for seed in range(20):
            asked = make(name, seed=seed).ask(8)
            gaps += [min(space.distance(a, b) for b in asked if b != a) for a in asked]
        return statistics.mean(gaps)

    assert spread("P") > 1.2 * spread("random")


def test_p_arrives_before_chance() -> None:
    goal = 1.001 * min(map(cost, POINTS))

    def trials(name: str, seed: int) -> int:
        measured = spend(make(name, seed=seed), 100)
        return next((i for i, c in enumerate(measured) if cost(c) <= goal), 100)

    p, chance = ([trials(name, seed) for seed in range(7)] for name in ("P", "random"))
    assert statistics.median(p) <= 24
    assert statistics.median(chance) > 24


def test_with_the_history_of_a_wider_sibling_the_first_batch_is_already_good() -> None:
    wider = replace(CONV, out_channels=64)
    history = told(direct(wider)[::3], workload=wider)
    first = [min(map(cost, make("P", seed=seed, history=history).ask(4))) for seed in range(7)]
    cold = [min(map(cost, make("P", seed=seed).ask(4))) for seed in range(7)]
    assert statistics.median(first) <= 1.02 * min(map(cost, POINTS))
    assert statistics.median(cold) > 1.05 * min(map(cost, POINTS))


def test_refits_and_favourites_take_turns() -> None:
    wider = replace(CONV, out_channels=64)
    history = told(direct(wider)[::3], workload=wider)
    slow = sorted(POINTS, key=cost)[-4:]
    asked = make("P", start=slow, history=history).ask(4)
    assert asked[0] == slow[0]
    assert asked[2] == slow[1]
    assert cost(asked[1]) < 1.1 * min(map(cost, POINTS))


def test_a_batch_of_favourites_holds_no_near_copies() -> None:
    search = make("P")
    search.tell(told(POINTS[::4]))
    asked = search.ask(4)
    assert min(space.distance(a, b) for a in asked for b in asked if a != b) >= 0.5


def test_records_of_the_workload_itself_count_only_when_they_are_told() -> None:
    search = make("P", history=told(POINTS))
    cold = make("P")
    assert search.ask(8) == cold.ask(8)


def test_with_an_a_twice_as_many_are_built_once_a_dozen_are_known() -> None:
    search = make("P+A", trials=64)
    assert len(search.ask(4)) == 4  # nothing to pick by: nothing is built in vain
    spend(search, 16)
    assert len(search.ask(4)) == 8


def test_hidden_features_come_back_from_the_records() -> None:
    search = make("P+A")
    record = replace(told([POINTS[0]])[0], hidden='{"fma":7.0}')
    search.tell([record])
    assert isinstance(search, MultiLevel)
    assert search.hidden[POINTS.index(POINTS[0])] == {"fma": 7.0}


def test_p_alone_wants_no_hidden_features() -> None:
    assert not make("P").needs_hidden
    assert make("P+A").needs_hidden


def test_a_picks_by_what_only_the_assembly_tells() -> None:
    price = {c: 1e-5 * (1 + random.Random(c.text()).random()) for c in POINTS}  # no visible feature tells it

    def text(c: Candidate) -> str:
        return "main:\n" + "\tmovl %eax, -8(%rsp)\n" * round(price[c] * 1e7) + "\tretq\n"

    search = make("P+A", trials=80)
    for _ in range(10):
        asked = search.ask(4)
        chosen = search.choose([(c, hidden(text(c))) for c in asked], 4)
        search.tell(told(chosen, price.__getitem__))
    asked = search.ask(4)
    chosen = search.choose([(c, hidden(text(c))) for c in asked], 4)
    assert len(chosen) == 4
    left = [c for c in asked if c not in chosen]
    assert statistics.mean(map(price.__getitem__, chosen)) < statistics.mean(map(price.__getitem__, left))


def test_what_a_passed_over_comes_back_at_the_end() -> None:
    measured = spend(make("P+A", POINTS[:60], trials=40), 60)
    assert len(measured) == len(set(measured)) == 60


def test_v_keeps_away_from_what_fails() -> None:
    def price(c: Candidate) -> float:
        return math.inf if c["ow_tile"] > 4 else cost(c)

    def failures(name: str) -> int:
        return sum(math.isinf(price(c)) for seed in range(5) for c in spend(make(name, seed=seed), 48, price))

    assert failures("P+V") < 0.7 * failures("P")


def test_while_nearly_all_work_v_changes_nothing() -> None:
    assert spend(make("P+V"), 40) == spend(make("P"), 40)


# --- recorded tables -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recorded() -> Recorded:
    return next(table for table in load_all(TABLES) if table.name == "conv3x3-32-at-16").own()


def test_a_table_comes_back_as_it_was_saved(recorded: Recorded, tmp_path: Path) -> None:
    recorded.save(tmp_path / "x.json.xz")
    assert Recorded.load(tmp_path / "x.json.xz") == recorded


def test_on_a_recorded_table_p_arrives_before_chance(recorded: Recorded) -> None:
    def trials(name: str, seed: int) -> int:
        trace = replay(recorded, name, seed, goal_s=NEAR * recorded.best_s)
        return trace.trials(NEAR * recorded.best_s) or 100

    assert statistics.median(trials("P", s) for s in range(7)) < statistics.median(
        trials("random", s) for s in range(7)
    )


def test_on_recorded_widths_a_pruned_layer_arrives_within_eight_trials() -> None:
    tables = {table.name: table for table in load_all(TABLES / "widths")}
    widest = full_width(tables)
    history = {name: replay(tables[name], "P", 0, 32).records for name in widest.values()}
    trials = []
    for name, table in tables.items():
        if name in history:
            continue
        sibling = sorted(history[widest[family(name)]], key=lambda record: record.latency_s)
        start = [Candidate.parse(record.candidate) for record in sibling[:3]]
        known = [record for records in history.values() for record in records]
        trace = replay(table, "P", 0, 12, NEAR * table.best_s, start, known, trials=8)
        trials.append(trace.trials(NEAR * table.best_s) or 13)
    assert len(trials) == 20
    assert statistics.median(trials) <= 8
