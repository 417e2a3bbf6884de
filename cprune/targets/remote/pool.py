"""The devices of one key: taken together, lost one by one, and waited for when none is left."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

from cprune.targets.errors import DeviceLost
from cprune.targets.remote import tracker
from cprune.targets.remote.device import POLL_S, Device, Gone, free_devices
from cprune.targets.session import Failure
from cprune.targets.target import Target

LOST_TWICE = 2  # a candidate that takes this many devices along is to blame itself
TOOK_TWO_ALONG = Failure("run", "the device went away twice while it ran this")

_T = TypeVar("_T")


class Pool:
    """The devices that a session holds.  All have the processor of the first: timings of others are not comparable.

    `begin(device)` is called for each device that is taken.
    """

    def __init__(
        self,
        where: tracker.Address,
        target: Target,
        begin: Callable[[Device], None],
        wait: Callable[[str], None],
        say: Callable[[str], None],
    ) -> None:
        self.where, self.target = where, target
        self.begin, self.wait, self.say = begin, wait, say
        self.devices: list[Device] = []
        self._cpu = ""
        self._lock = threading.Lock()

    def connect(self) -> None:
        """Take every free device of the target's key, at least one.

        Waits for it; DeviceLost after the target's time limit.
        """
        target, said = self.target, ""
        deadline = time.monotonic() + target.device_timeout_s
        try:
            while True:
                devices, reason = free_devices(self.where, target.key, target.threads, self.say)
                self.devices = self._alike(devices)
                if self.devices:
                    try:
                        for device in self.devices:
                            self.begin(device)
                    except BaseException:  # nobody else would give them back
                        self.close()
                        raise
                    self._cpu = self.devices[0].cpu
                    return
                reason = reason or f"no device under the key {target.key!r} has the processor {self._cpu!r}"
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    raise DeviceLost(
                        f"{reason}; waited {target.device_timeout_s:g} s (--device-timeout). See who is there: "
                        f"cprune devices --rpc-tracker {self.where}"
                    )
                if reason != said:
                    self.say(reason)
                    said = reason
                self.wait(f"waiting for a device: {left_s:.0f} s")
                time.sleep(min(POLL_S, max(0.05, left_s)))
        finally:
            self.wait("")

    def _alike(self, devices: list[Device]) -> list[Device]:
        """Keep the devices with one processor, that of those before them if there were any."""
        alike = []
        for device in devices:
            cpu = self._cpu or devices[0].cpu
            if device.cpu == cpu:
                alike.append(device)
                continue
            self.say(f"{device.name} has another processor ({device.cpu}, not {cpu}): not used")
            device.close()
        return alike

    def lose(self, device: Device, why: str) -> None:
        """Let go of a device that does not answer."""
        with self._lock:
            device.close()
            if device in self.devices:
                self.devices.remove(device)
        self.say(f"{device.name} is gone: {why}")

    def first(self) -> Device:
        """Return a device; waits for one if all are gone."""
        if not self.devices:
            self.connect()
            count = len(self.devices)
            self.say(f"{count} device{'s are' if count > 1 else ' is'} back")
        return self.devices[0]

    def on_one(self, work: Callable[[Device], _T | Failure]) -> _T | Failure:
        """Do something on one device, on the next one if that is lost."""
        for _ in range(LOST_TWICE):
            device = self.first()
            try:
                return work(device)
            except Gone as error:
                self.lose(device, str(error))
        return TOOK_TWO_ALONG

    def close(self) -> None:
        """Let go of all devices."""
        for device in self.devices:
            device.close()
        self.devices = []
