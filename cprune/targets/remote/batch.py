"""Programs that the devices of a pool time between them: every device takes the next one that waits."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import Empty, Queue

from cprune.targets.errors import DeviceLost
from cprune.targets.remote.device import Device, Gone
from cprune.targets.remote.heat import Heat
from cprune.targets.remote.libraries import Libraries
from cprune.targets.remote.pool import LOST_TWICE, TOOK_TWO_ALONG, Pool
from cprune.targets.session import Built, Failure, Timed
from cprune.targets.target import Timing


class Batch:
    """The entries of one `Session.time`, and what is known of each so far."""

    def __init__(self, entries: Sequence[Built], libraries: Libraries, timing: Timing, slow_s: float) -> None:
        self.entries, self.libraries, self.timing, self.slow_s = entries, libraries, timing, slow_s
        self.answers: dict[int, Timed | Failure] = {}
        self.lost = [0] * len(entries)  # devices that went away while they ran it

    def timed(self, pool: Pool, heat: Heat) -> list[Timed | Failure]:
        """Return the answer of every entry.  DeviceLost has those that were there already."""
        numbers = range(len(self.entries))
        try:
            while len(self.answers) < len(self.entries):
                pool.first()
                self._on_all(pool, heat)
        except DeviceLost as error:
            error.answers = [self.answers.get(index) for index in numbers]
            raise
        return [self.answers[index] for index in numbers]

    def _on_all(self, pool: Pool, heat: Heat) -> None:
        waiting: Queue[int] = Queue()
        for index in range(len(self.entries)):
            if index not in self.answers:
                waiting.put(index)
        devices = list(pool.devices)
        with ThreadPoolExecutor(len(devices)) as threads:
            list(threads.map(lambda device: self._on_device(device, waiting, pool, heat), devices))

    def _on_device(self, device: Device, waiting: Queue[int], pool: Pool, heat: Heat) -> None:
        """Time what waits on one device; twice if the device got slower meanwhile."""
        done: list[int] = []
        running: int | None = None
        try:
            heat.await_cool(device)
            while True:
                try:
                    running = waiting.get_nowait()
                except Empty:
                    break
                self._time(running, device)
                done.append(running)
            if done and not heat.was_steady(device):
                for index in done:
                    if isinstance(self.answers[index], Timed):
                        self._time(index, device)
        except Gone as error:
            pool.lose(device, str(error))
            if running is None or running in self.answers:
                return
            self.lost[running] += 1
            if self.lost[running] >= LOST_TWICE:
                self.answers[running] = TOOK_TWO_ALONG

    def _time(self, index: int, device: Device) -> None:
        built = self.entries[index]
        path = self.libraries.path(built.handle)
        self.answers[index] = device.time(path, built.program.forms, self.timing, self.slow_s)
