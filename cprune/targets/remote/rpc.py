"""The session over TVM's RPC tracker: a phone or a board builds nothing, it only runs.

Programs are built and linked here, by one process; every device is talked to by a process of its own (`client.py`).
What fails is asked twice: if the device answers again after its process was replaced, the candidate was to blame; if
not, the device is gone, and the candidate goes to another one.  When no device is left the session waits.

A device that gets slower lies.  A small kernel of our own is timed when a device is taken, and after what it measured
(every CHECK_S at most): where it takes longer than at the beginning, the device is left alone until it is as fast
again, and what it measured last is timed again.
"""

from __future__ import annotations

import itertools
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from queue import Empty, Queue
from typing import Any

from cprune.targets import link as build
from cprune.targets.difference import apart
from cprune.targets.errors import BrokenWorld, DeviceLost
from cprune.targets.process import Process
from cprune.targets.remote import tracker
from cprune.targets.remote.device import Device, Gone, free_devices
from cprune.targets.session import Array, Built, Failure, Model, Program, Timed
from cprune.targets.target import Target

DROP_DEADLINE_S = 60.0
MODEL_DEADLINE_S = 300.0
LOST_TWICE = 2  # a candidate that takes this many devices along is to blame itself
POLL_S = 1.0
CHECK_S = 2.0
SLOWER = 1.1  # the reference kernel at this much of its first time: the device is throttled
COOL_S = 60.0  # it is waited for so long at most
APART = 1.15  # devices of one key whose winners differ by more are told of
DEVICES_TOLERANCE = 1e-3  # what two devices may differ, as a share of the largest magnitude


@dataclass(frozen=True)
class _Held:
    """A whole model as the devices get it."""

    path: str
    weights: tuple[Array, ...]


class RpcSession:
    """Session for a target with transport "rpc".

    `wait(text)` is told about once a second why nothing happens ("" when it goes on), `say(text)` what happened to a
    device.  `target` is the one asked for with the processor of the device.

    Raises UserError without a linker for the device, DeviceLost if there is no device within `device_timeout_s`.
    """

    def __init__(
        self,
        target: Target,
        wait: Callable[[str], None] = lambda _: None,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        build.linker(target.triple)  # says what to install before anything else happens
        self.where = tracker.address(target.tracker)
        self.target, self.wait, self.say = target, wait, say
        self._builder = Process("cprune.targets.remote.builder", [target.triple], {}, str)
        self._folder = Path(tempfile.mkdtemp(prefix="cprune-rpc-"))
        self._handles = itertools.count()
        self._models: dict[str, _Held] = {}
        self._devices: list[Device] = []
        self._lock = threading.Lock()
        self._apart_said = False
        self._hot_c = target.timing.hot_c
        try:
            with ThreadPoolExecutor(1) as pool:  # TVM takes seconds to load, there and here
                self._reference = pool.submit(self._built_reference)
                self._devices = self._connected()
        except BaseException:
            self.close()
            raise
        self.target = replace(target, cpu=self._devices[0].told["cpu"] or target.cpu)
        if self.target.emulated:
            say("the device is emulated: what works there works, but its latencies say nothing of a real one")

    def __enter__(self) -> RpcSession:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def devices(self) -> list[dict[str, Any]]:
        """Return what the devices in use said of themselves."""
        return [device.told for device in self._devices]

    # -- devices

    def _connected(self, wanted: str = "") -> list[Device]:
        """Return every free device of the target's key (with the processor `wanted`), at least one.

        Waits for it; DeviceLost after the target's time limit.
        """
        target, told = self.target, ""
        deadline = time.monotonic() + target.device_timeout_s
        try:
            while True:
                devices, reason = free_devices(self.where, target.key, target.threads, self.say)
                devices = self._alike(devices, wanted)
                if devices:
                    try:
                        for device in devices:
                            self._measure_reference(device)
                    except BaseException:  # nobody else would give them back
                        for device in devices:
                            device.close()
                        raise
                    return devices
                reason = reason or f"no device under the key {target.key!r} has the processor {wanted!r}"
                left = deadline - time.monotonic()
                if left <= 0:
                    raise DeviceLost(
                        f"{reason}; waited {target.device_timeout_s:g} s (--device-timeout). See who is there: "
                        f"cprune devices --rpc-tracker {self.where}"
                    )
                if reason != told:
                    self.say(reason)
                    told = reason
                self.wait(f"waiting for a device: {left:.0f} s")
                time.sleep(min(POLL_S, max(0.05, left)))
        finally:
            self.wait("")

    def _alike(self, devices: list[Device], wanted: str) -> list[Device]:
        """Keep the devices with one processor: timings of others are not comparable."""
        alike = []
        for device in devices:
            cpu = device.told["cpu"]
            if cpu == (wanted or devices[0].told["cpu"]):
                alike.append(device)
                continue
            self.say(f"{device.name} has another processor ({cpu}, not {wanted or devices[0].told['cpu']}): not used")
            device.close()
        return alike

    def _lose(self, device: Device, why: str) -> None:
        with self._lock:
            device.close()
            if device in self._devices:
                self._devices.remove(device)
        self.say(f"{device.name} is gone: {why}")

    def _any(self) -> Device:
        """Return a device; waits for one if all are gone."""
        if not self._devices:
            self._devices = self._connected(self.target.cpu)
            count = len(self._devices)
            self.say(f"{count} device{'s are' if count > 1 else ' is'} back")
        return self._devices[0]

    def _on_one(self, work: Callable[[Device], Any]) -> Any:
        """Do something on one device, on the next one if that is lost."""
        for _ in range(LOST_TWICE):
            device = self._any()
            try:
                return work(device)
            except Gone as error:
                self._lose(device, str(error))
        return Failure("run", "the device went away twice while it ran this")

    # -- heat

    def _built_reference(self) -> str:
        path = str(self._folder / "reference.so")
        failed = self._builder.ask("reference", (path, self.target.compiler), MODEL_DEADLINE_S)
        if isinstance(failed, Failure):
            raise BrokenWorld(f"cannot build for {self.target.name}: {failed.reason}")
        return path

    def _reference_s(self, device: Device) -> float:
        """Return the seconds of our own kernel now; 0 where it does not run."""
        shapes = ((4096,), (4096,))
        answer = device.ask(
            "time", (self._reference.result(), shapes, 3, 2e-3, float("inf"), 0.0), self.target.timing.deadline_s
        )
        return min(answer.runs_s) if isinstance(answer, Timed) else 0.0

    def _measure_reference(self, device: Device) -> None:
        try:
            device.reference_s = self._reference_s(device)
            device.checked_at = time.monotonic()
        except Gone:
            device.reference_s = 0.0

    def _cooled(self, device: Device) -> bool:
        """Tell whether the device was as fast as at the beginning; if not, leave it alone until it is.

        Not longer than COOL_S: then this is what it can do, and the new time becomes the reference.
        """
        if time.monotonic() - device.checked_at < CHECK_S:
            return True
        now = self._reference_s(device)
        device.checked_at = time.monotonic()
        if not device.reference_s or now <= SLOWER * device.reference_s:
            return True
        heat = device.state().get("temperature_c")
        self.say(
            f"{device.name} is throttled: a kernel takes {now / device.reference_s:.2f} of the time that it took "
            f"at first{f', {heat:.0f} °C' if heat else ''}; it may cool down"
        )
        end = time.monotonic() + COOL_S
        while now > SLOWER * device.reference_s and time.monotonic() < end:
            self.wait(f"cooling down: {end - time.monotonic():.0f} s")
            time.sleep(POLL_S)
            now = self._reference_s(device)
        self.wait("")
        if now > SLOWER * device.reference_s:
            self.say(f"{device.name} stays slower: its timings are compared with its own from now on")
            device.reference_s = now
        return False

    def _not_hot(self, device: Device) -> None:
        """Wait while the device says that it is hotter than the target allows."""
        end = time.monotonic() + COOL_S
        while self._hot_c and device.told.get("temperature_c"):
            heat = device.state().get("temperature_c")
            if not heat or heat < self._hot_c:
                break
            left = end - time.monotonic()
            if left <= 0:
                self.say(f"{device.name} stays at {heat:.0f} °C: it is not waited for any more")
                self._hot_c = 0.0
                break
            self.wait(f"{heat:.0f} °C, cooling down: {left:.0f} s")
            time.sleep(POLL_S)
        self.wait("")

    # -- building

    def build(
        self, programs: Sequence[Program], *, assembly: bool = False, keep: Sequence[Built] = ()
    ) -> list[Built | Failure]:
        """See `Session.build`."""
        kept = {b.handle for b in keep}
        for library in self._folder.glob("p*.so"):
            if int(library.stem[1:]) not in kept:
                library.unlink(missing_ok=True)
        handles = [next(self._handles) for _ in programs]
        deadline = self.target.timing.deadline_s * max(1, len(programs))
        answers = self._builder.ask("build", self._build_args(handles, programs, assembly), deadline)
        if isinstance(answers, Failure):  # the builder died of one program, or hung in it
            answers = [self._build_one(h, p, assembly) for h, p in zip(handles, programs, strict=True)]
        return [
            answer if isinstance(answer, Failure) else Built(handle, program, answer)
            for handle, program, answer in zip(handles, programs, answers, strict=True)
        ]

    def _build_args(self, handles: Sequence[int], programs: Sequence[Program], assembly: bool) -> tuple[Any, ...]:
        return ([self._path(h) for h in handles], list(programs), self.target.compiler, assembly)

    def _build_one(self, handle: int, program: Program, assembly: bool) -> str | Failure:
        args = self._build_args([handle], [program], assembly)
        answers = self._builder.ask("build", args, self.target.timing.deadline_s)
        if isinstance(answers, Failure):
            return Failure("timeout" if answers.stage == "timeout" else "build", answers.reason)
        found: str | Failure = answers[0]
        return found

    def _path(self, handle: int) -> str:
        return str(self._folder / f"p{handle}.so")

    # -- timing

    def time(self, entries: Sequence[Built], *, slow_s: float = float("inf")) -> list[Timed | Failure]:
        """See `Session.time`.  Every device takes the next program that waits.

        DeviceLost has the answers that were there already.
        """
        found: dict[int, Timed | Failure] = {}
        lost = dict.fromkeys(range(len(entries)), 0)
        try:
            while len(found) < len(entries):
                self._any()
                waiting: Queue[int] = Queue()
                for index in range(len(entries)):
                    if index not in found:
                        waiting.put(index)
                devices = list(self._devices)
                with ThreadPoolExecutor(len(devices)) as pool:
                    list(pool.map(partial(self._time_on, entries, slow_s, waiting, found, lost), devices))
        except DeviceLost as error:
            error.answers = [found.get(index) for index in range(len(entries))]
            raise
        return [found[index] for index in range(len(entries))]

    def _time_on(
        self,
        entries: Sequence[Built],
        slow_s: float,
        waiting: Queue[int],
        found: dict[int, Timed | Failure],
        lost: dict[int, int],
        device: Device,
    ) -> None:
        """Time what waits on one device; twice if the device got slower meanwhile."""
        timing, mine, index = self.target.timing, list[int](), -1

        def timed(index: int) -> None:
            built = entries[index]
            numbers = (timing.repeats, timing.min_run_ms / 1e3, slow_s, timing.cooldown_s)
            args = (self._path(built.handle), built.program.shapes, *numbers)
            found[index] = device.ask("time", args, timing.deadline_s)

        try:
            self._not_hot(device)
            while True:
                try:
                    index = waiting.get_nowait()
                except Empty:
                    break
                timed(index)
                mine.append(index)
            if mine and not self._cooled(device):
                for index in mine:
                    if isinstance(found[index], Timed):
                        timed(index)
        except Gone as error:
            self._lose(device, str(error))
            if index not in found and index in lost:
                lost[index] += 1
            if index not in found and lost.get(index, 0) >= LOST_TWICE:
                found[index] = Failure("run", "the device went away twice while it ran this")

    def race(self, entries: Sequence[Built], given: Sequence[Sequence[Array]], rounds: int) -> list[Timed | Failure]:
        """See `Session.race`: all on one device, and the fastest once more on another one where there is one.

        If the device's session dies of one program, each is run alone.
        """
        answers = self._on_one(lambda device: self._race_on(device, entries, given, rounds))
        if isinstance(answers, Failure):
            if len(entries) == 1:
                return [answers]
            return [self.race([b], [a], rounds)[0] for b, a in zip(entries, given, strict=True)]
        found: list[Timed | Failure] = answers
        timed = [(statistics.median(t.runs_s), i) for i, t in enumerate(found) if isinstance(t, Timed)]
        if timed and len(self._devices) > 1:
            seconds, fastest = min(timed)
            found[fastest] = self._checked_elsewhere(entries[fastest], given[fastest], found[fastest], seconds)
        return found

    def _race_on(
        self, device: Device, entries: Sequence[Built], given: Sequence[Sequence[Array]], rounds: int
    ) -> list[Timed | Failure] | Failure:
        timing = self.target.timing
        args = (
            [self._path(b.handle) for b in entries],
            [list(a) for a in given],
            [b.program.shapes for b in entries],
            rounds,
            timing.min_run_ms / 1e3,
            timing.cooldown_s,
        )
        self._not_hot(device)
        answers: list[Timed | Failure] | Failure = device.ask("race", args, timing.deadline_s * len(entries))
        if not isinstance(answers, Failure) and not self._cooled(device):
            answers = device.ask("race", args, timing.deadline_s * len(entries))
        return answers

    def _checked_elsewhere(
        self, winner: Built, given: Sequence[Array], here: Timed | Failure, seconds: float
    ) -> Timed | Failure:
        """Run the winner on a second device: another result is a failure, another speed is told."""
        device = self._devices[1]
        assert isinstance(here, Timed)
        assert here.output is not None
        try:
            answers = self._race_on(device, [winner], [given], 3)
        except Gone as error:
            self._lose(device, str(error))
            return here
        there = answers if isinstance(answers, Failure) else answers[0]
        if isinstance(there, Failure):
            return Failure("check", f"works on {self._devices[0].name}, not on {device.name}: {there.reason}")
        assert there.output is not None
        if apart(there.output, here.output) > DEVICES_TOLERANCE:
            return Failure("check", f"{self._devices[0].name} and {device.name} compute different results")
        ratio = statistics.median(there.runs_s) / seconds
        if not 1 / APART < ratio < APART and not self._apart_said:
            self._apart_said = True
            self.say(f"{device.name} takes {ratio:.2f} of the time of {self._devices[0].name} for the same program")
        return here

    # -- whole models

    def load(self, key: str, model: Model) -> Failure | None:
        """See `Session.load`."""
        path = str(self._folder / f"m{next(self._handles)}.so")
        args = (path, model.module, model.kernels, self.target.compiler)
        failed: Failure | None = self._builder.ask("model", args, MODEL_DEADLINE_S)
        return failed or self.hold(key, Path(path), model.weights)

    def hold(self, key: str, library: Path, weights: tuple[Array, ...]) -> Failure | None:
        """Hold a model that is compiled already; None when it is on a device."""
        try:
            build.check_machine(library, self.target.triple)
        except (OSError, ValueError) as error:
            return Failure("load", str(error))
        self._models[key] = _Held(str(library), weights)
        answer = self._on_one(lambda device: self._there(device, key))
        if isinstance(answer, Failure):
            self._models.pop(key, None)
            return answer
        return None

    def _there(self, device: Device, key: str) -> Failure | None:
        """Bring a held model to the device if it is not there."""
        if key in device.models:
            return None
        held = self._models[key]
        failed: Failure | None = device.ask("load", (key, held.path, held.weights), MODEL_DEADLINE_S)
        if failed is None:
            device.models.add(key)
        return failed

    def run(self, key: str, inputs: Sequence[Array]) -> tuple[Array, ...] | Failure:
        """See `Session.run`."""

        def work(device: Device) -> Any:
            return self._there(device, key) or device.ask("run", (key, list(inputs)), MODEL_DEADLINE_S)

        answer: tuple[Array, ...] | Failure = self._on_one(work)
        return answer

    def time_models(
        self, keys: Sequence[str], inputs: Sequence[Array], rounds: int, run_ms: float
    ) -> dict[str, tuple[float, ...]] | Failure:
        """See `Session.time_models`: all on one device."""
        args = (list(keys), list(inputs), rounds, run_ms / 1e3, self.target.timing.cooldown_s)

        def work(device: Device) -> Any:
            for key in keys:
                failed = self._there(device, key)
                if failed is not None:
                    return failed
            self._not_hot(device)
            answer = device.ask("time_models", args, MODEL_DEADLINE_S)
            if not isinstance(answer, Failure) and not self._cooled(device):
                answer = device.ask("time_models", args, MODEL_DEADLINE_S)
            return answer

        answer: dict[str, tuple[float, ...]] | Failure = self._on_one(work)
        return answer

    def drop(self, key: str) -> None:
        """See `Session.drop`."""
        held = self._models.pop(key, None)
        for device in list(self._devices):
            if key in device.models:
                device.models.discard(key)
                try:
                    device.ask("drop", (key,), DROP_DEADLINE_S)
                except Gone as error:
                    self._lose(device, str(error))
        if held is not None and Path(held.path).parent == self._folder:
            Path(held.path).unlink(missing_ok=True)

    def close(self) -> None:
        """See `Session.close`."""
        for device in self._devices:
            device.close()
        self._devices = []
        self._builder.close()
        shutil.rmtree(self._folder, ignore_errors=True)
