"""Whether a device is as fast as it was: one that gets slower lies.

A small kernel of our own is timed when a device is taken, and after what it measured (every CHECK_S at most): where it
takes longer than at the beginning, the device is left alone until it is as fast again, and what it measured last is
timed again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import TypeVar

from cprune.targets.remote.device import POLL_S, Device, Gone
from cprune.targets.session import Failure, Timed, forms
from cprune.targets.target import Timing

CHECK_S = 2.0
SLOWER = 1.1  # the reference kernel at this much of its first time: the device is throttled
COOL_S = 60.0  # it is waited for so long at most
REFERENCE_FORMS = forms(((4096,), (4096,)))
"""The arguments of `builder.Builder.reference`."""

_T = TypeVar("_T")


class Heat:
    """Looks after the speed of devices; `reference` is the path of our own kernel, once it is built."""

    def __init__(
        self, timing: Timing, reference: Future[str], wait: Callable[[str], None], say: Callable[[str], None]
    ) -> None:
        self._timing = replace(timing, repeats=3, min_run_ms=2.0, cooldown_s=0.0)
        self._hot_c = timing.hot_c
        self._reference, self._wait, self._say = reference, wait, say

    def _reference_s(self, device: Device) -> float:
        """Return the seconds of our own kernel now; 0 where it does not run."""
        answer = device.time(self._reference.result(), REFERENCE_FORMS, self._timing)
        return min(answer.runs_s) if isinstance(answer, Timed) else 0.0

    def begin(self, device: Device) -> None:
        """Note how fast a device is at first."""
        try:
            device.reference_s = self._reference_s(device)
            device.checked_at = time.monotonic()
        except Gone:
            device.reference_s = 0.0

    def steady(self, device: Device, measure: Callable[[], _T | Failure]) -> _T | Failure:
        """Return what `measure` says of a device that is not hot; asked again if it was throttled meanwhile."""
        self.await_cool(device)
        answer = measure()
        if not isinstance(answer, Failure) and not self.was_steady(device):
            answer = measure()
        return answer

    def was_steady(self, device: Device) -> bool:
        """Tell whether the device was as fast as at the beginning; if not, leave it alone until it is.

        Not longer than COOL_S: then this is what it can do, and the new time becomes the reference.
        """
        if time.monotonic() - device.checked_at < CHECK_S:
            return True
        now = self._reference_s(device)
        device.checked_at = time.monotonic()
        if not device.reference_s or now <= SLOWER * device.reference_s:
            return True
        heat_c = device.temperature_c()
        self._say(
            f"{device.name} is throttled: a kernel takes {now / device.reference_s:.2f} of the time that it took "
            f"at first{f', {heat_c:.0f} °C' if heat_c else ''}; it may cool down"
        )
        end = time.monotonic() + COOL_S
        while now > SLOWER * device.reference_s and time.monotonic() < end:
            self._wait(f"cooling down: {end - time.monotonic():.0f} s")
            time.sleep(POLL_S)
            now = self._reference_s(device)
        self._wait("")
        if now > SLOWER * device.reference_s:
            self._say(f"{device.name} stays slower: its timings are compared with its own from now on")
            device.reference_s = now
        return False

    def await_cool(self, device: Device) -> None:
        """Wait while the device says that it is hotter than the target allows."""
        end = time.monotonic() + COOL_S
        while self._hot_c and device.facts.get("temperature_c"):
            heat_c = device.temperature_c()
            if not heat_c or heat_c < self._hot_c:
                break
            left_s = end - time.monotonic()
            if left_s <= 0:
                self._say(f"{device.name} stays at {heat_c:.0f} °C: it is not waited for any more")
                self._hot_c = 0.0
                break
            self._wait(f"{heat_c:.0f} °C, cooling down: {left_s:.0f} s")
            time.sleep(POLL_S)
        self._wait("")
