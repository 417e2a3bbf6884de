"""A chain of calls from the times of its calls alone, worked out by hand."""

from __future__ import annotations

import pytest

from cprune.method.chain import Chain, Timed, fitted


def test_what_goes_between_calls_and_the_scale_are_found_again() -> None:
    # 10 calls, 2 us between two, each takes 1.1 times as long: 1.1 x 100 + 20 = 130, 1.1 x 50 + 20 = 75; 8 calls: 49
    models = [Timed(10, 100e-6, 130e-6), Timed(10, 50e-6, 75e-6), Timed(8, 30e-6, 49e-6)]
    found = fitted(models)
    assert found.between_s == pytest.approx(2e-6)
    assert found.scale == pytest.approx(1.1)
    assert found.seconds(10e-6) == pytest.approx(13e-6)


def test_one_model_alone_tells_a_scale() -> None:
    assert fitted([Timed(10, 100e-6, 120e-6)]) == Chain(pytest.approx(0.0), pytest.approx(1.2))


def test_nothing_goes_back_in_time_between_calls() -> None:
    # the narrow one is faster than a part of the whole one: only a scale is left, that fits both: 0.95 and 0.8
    found = fitted([Timed(10, 100e-6, 100e-6), Timed(10, 50e-6, 45e-6)])
    assert found.between_s == 0.0
    assert found.scale == pytest.approx((1 + 50 / 45) / (1 + (50 / 45) ** 2))


def test_a_scale_that_is_not_believed_leaves_the_rest_to_what_goes_between() -> None:
    # the same time for half of the work would be a scale of 0
    found = fitted([Timed(10, 100e-6, 100e-6), Timed(10, 50e-6, 100e-6)])
    assert found.scale == 0.5
    assert found.between_s == pytest.approx((100 - 50 + 100 - 25) / 2 / 10 * 1e-6)


def test_what_the_chain_says_wrongly_of_timed_models_is_taken_off_others_of_that_latency() -> None:
    chain = Chain(between_s=1e-6, scale=1.0)
    # said: 110 and 27.5 us, taken: as said and a quarter less; 55 us lies half way of it in logarithms
    models = [Timed(10, 100e-6, 110e-6), Timed(10, 17.5e-6, 0.75 * 27.5e-6)]
    told = chain.corrected([110e-6, 55e-6, 27.5e-6, 10e-6], models)  # beyond the last one its error stays
    assert told == pytest.approx([110e-6, 0.75**0.5 * 55e-6, 0.75 * 27.5e-6, 7.5e-6])


def test_what_calls_take_alone_and_in_a_model_are_two_sides_of_one() -> None:
    chain = Chain(between_s=2e-6, scale=1.25)
    assert chain.seconds(40e-6, calls=10) == pytest.approx(70e-6)  # 20 + 50
    assert chain.alone_s(70e-6, calls=10) == pytest.approx(40e-6)
