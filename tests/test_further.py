"""One more model after the run: from the tables that were kept, at the speed asked for, certified after the others."""

from __future__ import annotations

import pytest
from fakes import Killed, MemoryKeeper, seen
from test_limits import run_with
from test_tables import CheckpointKeeper, whole

from cprune.method import further as module
from cprune.method.further import Wish, asked_for, one_more
from cprune.method.planning import planned
from cprune.method.state import RunState
from cprune.method.tables import Tables
from cprune.runs.events import Asked, Certified, Chosen, Further
from cprune.targets.errors import UserError

FIRST = Asked(0, 2.0).index  # what the first of such models is called


def again(keeper: MemoryKeeper, **changed: object) -> tuple[RunState, Tables]:
    """Return a run that is over, and its method, in a new life."""
    run = run_with(**{"keeper": keeper, **changed})  # type: ignore[arg-type]
    tables = Tables(run)
    tables.begin()
    return run, tables


def wished(run: RunState, tables: Tables) -> None:
    """Ask for a model that is 1.3x as fast, and make it."""
    asked_for(run, Wish(speedup=1.3))
    one_more(run, tables, run.history.asked[0])


def over() -> MemoryKeeper:
    """Return what a run left that delivers half of the channels: 1.99x."""
    keeper = MemoryKeeper()
    whole(run_with(keeper=keeper))
    return keeper


def test_one_more_model_is_trained_at_the_speed_asked_for_and_nothing_is_looked_at_again() -> None:
    keeper = over()
    tables_before, events = dict(keeper.tables), len(keeper.kept)
    run, tables = again(keeper)
    asked_for(run, Wish(speedup=1.3))
    made = one_more(run, tables, run.history.asked[0])
    assert made is not None
    point, version = made
    assert seen(version.tuned.network).a == 96  # three quarters of the latency: 1.33x
    assert (point.status, point.afterwards, point.step, point.delivered) == ("certified", True, FIRST, False)
    assert point.speedup == pytest.approx(1.33, abs=0.01)
    assert point.widths == {"a": 96}
    assert keeper.tables == tables_before
    kinds = [type(event) for event in keeper.kept[events:]]
    assert kinds == [Asked, Chosen, Further, Certified]
    assert run.history.chosen[FIRST].epochs == 70.0 - 4 * len(run.history.scouted)  # as long as a last round
    assert run.history.last == 0  # what the run delivers stays


def test_a_wish_is_made_once_and_its_model_trained_once() -> None:
    keeper = over()
    run, tables = again(keeper)
    asked_for(run, Wish(speedup=1.3))
    asked_for(run, Wish(latency_ms=run.start.latency_ms.median / 1.305))
    assert len(run.history.asked) == 1
    first = one_more(run, tables, run.history.asked[0])
    events = len(keeper.kept)
    run, tables = again(keeper)
    second = one_more(run, tables, run.history.asked[0])
    assert first is not None
    assert second is not None
    assert first[0] == second[0]
    assert len(keeper.kept) == events


def test_a_wish_that_was_killed_anywhere_ends_like_one_that_was_not() -> None:
    done = over()
    start = len(done.kept)
    wished(*again(done))
    for lives in range(start + 1, len(done.kept)):
        keeper = over()
        keeper.lives = lives
        run, tables = again(keeper)
        with pytest.raises(Killed):
            wished(run, tables)
        keeper.lives = None
        run, tables = again(keeper)
        one_more(run, tables, run.history.asked[0])
        assert keeper.without_cost() == done.without_cost()


def test_what_is_faster_than_all_tables_is_refused_with_what_can_be_had() -> None:
    run, _ = again(over())
    with pytest.raises(UserError, match=r"is 20x as fast: the fastest is forecast to be \d\.\d+x") as caught:
        asked_for(run, Wish(speedup=20.0))
    assert caught.value.hint.startswith("Type --speedup ")
    with pytest.raises(UserError, match="Ask for a faster one"):
        asked_for(run, Wish(latency_ms=1e6))
    assert run.history.asked == []


def test_it_goes_on_from_the_newest_model_that_is_slower_and_whose_tables_reach_it() -> None:
    keeper = MemoryKeeper()
    run = run_with(lambda m: 0.9 - 0.003 * (m.a < 128) - 0.5 * (m.a < 48), keeper=keeper)
    tables = Tables(run)
    tables.begin()
    steps = [next(tables.steps())]
    assert steps[0].verdict == "accepted"
    base = seen(run.keeper.load(0)).a
    plan = planned(run, tables.current, 1.0, 1.0, 1, 1)  # what a second round would keep, if there was none
    assert len(plan.front) > 1
    faster = run.start.latency_ms.median / (steps[0].latency_ms.median if steps[0].latency_ms else 1.0)
    asked_for(run, Wish(speedup=1.2 * faster))
    made = one_more(run, tables, run.history.asked[0])
    assert made is not None
    assert seen(made[1].tuned.network).a < base
    assert run.history.chosen[FIRST].number == 1
    # 30 epochs or more of the first round are in it
    assert seen(made[1].tuned.network).epochs > run.history.chosen[FIRST].epochs


def test_training_that_diverges_gives_no_model() -> None:
    keeper = over()
    run, tables = again(keeper)
    run.trainer.diverges = lambda m: m.epochs > 0  # type: ignore[attr-defined]
    asked_for(run, Wish(speedup=1.3))
    assert one_more(run, tables, run.history.asked[0]) is None
    assert run.history.further[0].reason == "training diverged: the loss is nan"


def test_a_model_that_is_too_inaccurate_is_trained_but_not_looked_at_to_certify_it() -> None:
    keeper = over()
    run, tables = again(keeper)
    asked_for(run, Wish(speedup=2.5))
    made = one_more(run, tables, run.history.asked[0])
    assert made is not None
    assert (made[0].status, round(made[0].loss, 6)) == ("trained", 0.1)
    assert FIRST not in run.history.certified


def test_where_no_timed_model_is_fast_enough_the_fastest_of_them_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REACHED", 0.1)
    monkeypatch.setattr(module, "TIMED", 2)
    run, tables = again(over())
    asked_for(run, Wish(speedup=1.3))
    made = one_more(run, tables, run.history.asked[0])
    assert made is not None
    assert made[0].speedup > 1.3


def test_a_network_of_which_nothing_may_go_has_no_other_model() -> None:
    run, tables = again(MemoryKeeper(), ignore=("*",))
    asked_for(run, Wish(speedup=1.3))  # nothing is known of it yet
    assert one_more(run, tables, run.history.asked[0]) is None
    assert run.history.further[0].reason == "nothing is left whose removal would make the model faster"


def test_tables_that_are_gone_are_measured_again() -> None:
    keeper = over()
    keeper.tables.clear()
    run, tables = again(keeper)
    run.history.steps = []
    asked_for(run, Wish(speedup=1.3))
    assert one_more(run, tables, run.history.asked[0]) is not None
    assert 0 in keeper.tables


def test_what_is_left_of_its_training_goes_when_it_is_kept(tmp_path: object) -> None:
    keeper = CheckpointKeeper(tmp_path)  # type: ignore[arg-type]
    whole(run_with(keeper=keeper))
    run, tables = again(keeper)
    asked_for(run, Wish(speedup=1.3))
    one_more(run, tables, run.history.asked[0])
    assert keeper.names[-1] == f"round{FIRST}"
    assert list(keeper.folder.iterdir()) == []
