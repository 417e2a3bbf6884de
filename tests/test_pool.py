"""The devices of a key and their heat, with devices that are made of numbers."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import cast

import pytest

from cprune.targets.errors import DeviceLost
from cprune.targets.remote import heat, pool
from cprune.targets.remote.device import Device, Gone
from cprune.targets.remote.heat import Heat
from cprune.targets.remote.pool import Pool
from cprune.targets.remote.tracker import Address
from cprune.targets.session import Failure, Timed
from cprune.targets.target import Timing, find


class FakeDevice:
    """A device whose reference kernel takes the next of `seconds`, and whose heat is the next of `degrees`."""

    def __init__(
        self, name: str, cpu: str = "x", seconds: tuple[float, ...] = (), degrees: tuple[float, ...] = ()
    ) -> None:
        self.name, self.cpu, self.closed = name, cpu, False
        self.seconds, self.degrees = list(seconds), list(degrees)
        self.facts = {"cpu": cpu, "temperature_c": degrees[0] if degrees else None}
        self.reference_s, self.checked_at = 0.0, 0.0

    def time(self, *_: object) -> Timed:
        return Timed((self.seconds.pop(0),))

    def temperature_c(self) -> float | None:
        return self.degrees.pop(0) if self.degrees else None

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def pool_of(monkeypatch: pytest.MonkeyPatch, said: list[str]) -> Callable[..., Pool]:
    """Make a pool to which the tracker gives these devices, one list each time it is asked."""

    def make(*answers: list[FakeDevice]) -> Pool:
        left = list(answers)
        monkeypatch.setattr(pool, "free_devices", lambda *_: (left.pop(0) if left else [], ""))
        target = replace(find("linux-arm64"), device_timeout_s=0.0)
        return Pool(Address("127.0.0.1", 9190), target, lambda _: None, lambda _: None, said.append)

    return make


def test_a_device_with_another_processor_is_not_used(pool_of: Callable[..., Pool], said: list[str]) -> None:
    first, other, third = FakeDevice("a"), FakeDevice("b", "y"), FakeDevice("c")
    devices = pool_of([first, other, third])
    devices.connect()
    assert devices.devices == [first, third]
    assert (first.closed, other.closed, third.closed) == (False, True, False)
    assert said == ["b has another processor (y, not x): not used"]


@pytest.mark.parametrize("cpu", ["x", ""])  # a stock server does not say what its processor is
def test_when_all_are_gone_those_with_the_same_processor_are_taken_again(
    pool_of: Callable[..., Pool], said: list[str], cpu: str
) -> None:
    first, again = FakeDevice("a", cpu), FakeDevice("a", cpu)
    devices = pool_of([first], [again])
    devices.connect()
    devices.lose(cast(Device, first), "no answer")
    assert devices.first() is again
    assert said == ["a is gone: no answer", "1 device is back"]


def test_one_with_another_processor_does_not_come_in_their_place(pool_of: Callable[..., Pool]) -> None:
    first = FakeDevice("a")
    devices = pool_of([first], [FakeDevice("a", "y")])
    devices.connect()
    devices.lose(cast(Device, first), "no answer")
    with pytest.raises(DeviceLost, match="no device under the key 'linux-arm64' has the processor 'x'"):
        devices.first()


def test_what_takes_two_devices_along_is_to_blame_itself(pool_of: Callable[..., Pool]) -> None:
    devices = pool_of([FakeDevice("a"), FakeDevice("b"), FakeDevice("c")])
    devices.connect()
    asked: list[str] = []

    def work(device: Device) -> Failure:
        asked.append(device.name)
        raise Gone("no answer")

    assert devices.on_one(work) == Failure("run", "the device went away twice while it ran this")
    assert asked == ["a", "b"]


@pytest.fixture
def looked_after(monkeypatch: pytest.MonkeyPatch, said: list[str]) -> Callable[..., Heat]:
    """Make the heat of devices that are looked at every time, without a pause."""
    monkeypatch.setattr(heat, "CHECK_S", 0.0)
    monkeypatch.setattr(heat, "POLL_S", 0.0)

    def make(cool_s: float = 60.0) -> Heat:
        monkeypatch.setattr(heat, "COOL_S", cool_s)
        reference: Future[str] = Future()
        reference.set_result("reference.so")
        return Heat(Timing(hot_c=80.0), reference, lambda _: None, said.append)

    return make


def measured(looked: Heat, device: FakeDevice) -> list[int]:
    """Measure on a device and return the numbers of the measurements."""
    done: list[int] = []
    looked.begin(cast(Device, device))

    def measure() -> int:
        done.append(len(done))
        return done[-1]

    looked.steady(cast(Device, device), measure)
    return done


def test_a_device_that_stays_as_fast_measures_once(looked_after: Callable[..., Heat], said: list[str]) -> None:
    assert measured(looked_after(), FakeDevice("a", seconds=(1.0, 1.09))) == [0]
    assert said == []


def test_a_throttled_device_is_waited_for_and_measures_again(
    looked_after: Callable[..., Heat], said: list[str]
) -> None:
    device = FakeDevice("a", seconds=(1.0, 1.5, 1.2, 1.05))
    assert measured(looked_after(), device) == [0, 1]
    assert device.seconds == []
    assert device.reference_s == 1.0
    assert said == ["a is throttled: a kernel takes 1.50 of the time that it took at first; it may cool down"]


def test_one_that_does_not_cool_down_is_compared_with_itself(
    looked_after: Callable[..., Heat], said: list[str]
) -> None:
    device = FakeDevice("a", seconds=(1.0, 1.5))
    assert measured(looked_after(cool_s=0.0), device) == [0, 1]
    assert device.reference_s == 1.5
    assert said[-1] == "a stays slower: its timings are compared with its own from now on"


def test_a_hot_device_is_left_alone_until_it_is_not(looked_after: Callable[..., Heat], said: list[str]) -> None:
    device = FakeDevice("a", degrees=(85.0, 81.0, 79.0, 90.0))
    looked_after().await_cool(cast(Device, device))
    assert device.degrees == [90.0]
    assert said == []


def test_one_that_stays_hot_is_not_waited_for_any_more(looked_after: Callable[..., Heat], said: list[str]) -> None:
    looked, device = looked_after(cool_s=0.0), FakeDevice("a", degrees=(85.0, 85.0))
    for _ in range(2):
        looked.await_cool(cast(Device, device))
    assert device.degrees == [85.0]
    assert said == ["a stays at 85 °C: it is not waited for any more"]
