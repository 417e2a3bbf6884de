"""The session over TVM's RPC tracker: a phone or a board builds nothing, it only runs.

Programs are built and linked here, by one process (`libraries.py`); every device is talked to by a process of its own
(`device.py`, `client.py`).  What fails is asked twice: if the device answers again after its process was replaced, the
candidate was to blame; if not, the device is gone, and the candidate goes to another one.  When no device is left the
session waits (`pool.py`), and it does so for one that is hot (`heat.py`).
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cprune.targets import link
from cprune.targets.difference import apart
from cprune.targets.remote import tracker
from cprune.targets.remote.batch import Batch
from cprune.targets.remote.device import Device, Gone
from cprune.targets.remote.heat import Heat
from cprune.targets.remote.libraries import Libraries
from cprune.targets.remote.pool import Pool
from cprune.targets.session import Array, Built, Failure, Model, Program, Timed
from cprune.targets.target import Target

APART = 1.15  # devices of one key whose winners differ by more are told of
DEVICES_TOLERANCE = 1e-3  # what two devices may differ, as a share of the largest magnitude


@dataclass(frozen=True)
class _Compiled:
    """A whole model as the devices get it."""

    library: Path
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
        link.linker(target.triple)  # says what to install before anything else happens
        where = tracker.address(target.tracker)
        self.say = say
        self._models: dict[str, _Compiled] = {}
        self._apart_said = False
        self._libraries = Libraries(target)
        builder = ThreadPoolExecutor(1)  # TVM takes seconds to load, there and here
        self._heat = Heat(target.timing, builder.submit(self._libraries.build_reference), wait, say)
        builder.shutdown(wait=False)
        self._pool = Pool(where, target, self._heat.begin, wait, say)
        try:
            self._pool.connect()
        except BaseException:
            self.close()
            raise
        self.target = replace(target, cpu=self._pool.devices[0].cpu or target.cpu)
        if self.target.emulated:
            say("the device is emulated: what works there works, but its latencies say nothing of a real one")

    def __enter__(self) -> RpcSession:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def devices(self) -> list[Mapping[str, Any]]:
        """Return what the devices in use said of themselves."""
        return [device.facts for device in self._pool.devices]

    def build(
        self, programs: Sequence[Program], *, assembly: bool = False, keep: Sequence[Built] = ()
    ) -> list[Built | Failure]:
        """See `Session.build`."""
        return self._libraries.build(programs, assembly, keep)

    def time(self, entries: Sequence[Built], *, slow_s: float = float("inf")) -> list[Timed | Failure]:
        """See `Session.time`.  Every device takes the next program that waits.

        DeviceLost has the answers that were there already.
        """
        return Batch(entries, self._libraries, self.target.timing, slow_s).timed(self._pool, self._heat)

    def race(self, entries: Sequence[Built], inputs: Sequence[Sequence[Array]], rounds: int) -> list[Timed | Failure]:
        """See `Session.race`: all on one device, and the fastest once more on another one where there is one.

        If the device's session dies of one program, each is run alone.
        """
        answers = self._pool.on_one(lambda device: self._race_on(device, entries, inputs, rounds))
        if isinstance(answers, Failure):
            if len(entries) == 1:
                return [answers]
            return [self.race([b], [a], rounds)[0] for b, a in zip(entries, inputs, strict=True)]
        medians_s = [(statistics.median(t.runs_s), i) for i, t in enumerate(answers) if isinstance(t, Timed)]
        if medians_s and len(self._pool.devices) > 1:
            _, fastest = min(medians_s)
            answers[fastest] = self._checked_elsewhere(entries[fastest], inputs[fastest], answers[fastest])
        return answers

    def _race_on(
        self, device: Device, entries: Sequence[Built], inputs: Sequence[Sequence[Array]], rounds: int
    ) -> list[Timed | Failure] | Failure:
        libraries = [self._libraries.path(built.handle) for built in entries]
        forms = [built.program.forms for built in entries]
        return self._heat.steady(device, lambda: device.race(libraries, inputs, forms, rounds, self.target.timing))

    def _checked_elsewhere(self, winner: Built, inputs: Sequence[Array], here: Timed | Failure) -> Timed | Failure:
        """Run the winner on a second device: another result is a failure, another speed is told."""
        first, second = self._pool.devices[:2]
        assert isinstance(here, Timed)
        assert here.output is not None
        try:
            answers = self._race_on(second, [winner], [inputs], 3)
        except Gone as error:
            self._pool.lose(second, str(error))
            return here
        there = answers if isinstance(answers, Failure) else answers[0]
        if isinstance(there, Failure):
            return Failure("check", f"works on {first.name}, not on {second.name}: {there.reason}")
        assert there.output is not None
        if apart(there.output, here.output) > DEVICES_TOLERANCE:
            return Failure("check", f"{first.name} and {second.name} compute different results")
        ratio = statistics.median(there.runs_s) / statistics.median(here.runs_s)
        if not 1 / APART < ratio < APART and not self._apart_said:
            self._apart_said = True
            self.say(f"{second.name} takes {ratio:.2f} of the time of {first.name} for the same program")
        return here

    # -- whole models

    def load(self, key: str, model: Model) -> Failure | None:
        """See `Session.load`."""
        library = self._libraries.build_model(model)
        return library if isinstance(library, Failure) else self.hold(key, library, model.weights)

    def hold(self, key: str, library: Path, weights: tuple[Array, ...]) -> Failure | None:
        """Hold a model that is compiled already; None when it is on a device."""
        try:
            link.check_machine(library, self.target.triple)
        except (OSError, ValueError) as error:
            return Failure("load", str(error))
        self._models[key] = _Compiled(library, weights)
        failed = self._pool.on_one(lambda device: self._brought(device, key))
        if failed is not None:
            self._models.pop(key, None)
        return failed

    def _brought(self, device: Device, *keys: str) -> Failure | None:
        """Bring held models to the device where they are not there; return why one of them is not."""
        for key in keys:
            failed = device.hold(key, str(self._models[key].library), self._models[key].weights)
            if failed is not None:
                return failed
        return None

    def run(self, key: str, inputs: Sequence[Array]) -> tuple[Array, ...] | Failure:
        """See `Session.run`."""
        return self._pool.on_one(lambda device: self._brought(device, key) or device.run(key, inputs))

    def time_models(
        self, keys: Sequence[str], inputs: Sequence[Array], rounds: int, run_ms: float
    ) -> dict[str, tuple[float, ...]] | Failure:
        """See `Session.time_models`: all on one device."""
        cooldown_s = self.target.timing.cooldown_s

        def work(device: Device) -> dict[str, tuple[float, ...]] | Failure:
            failed = self._brought(device, *keys)
            if failed is not None:
                return failed
            return self._heat.steady(device, lambda: device.time_models(keys, inputs, rounds, run_ms, cooldown_s))

        return self._pool.on_one(work)

    def drop(self, key: str) -> None:
        """See `Session.drop`."""
        for device in list(self._pool.devices):
            try:
                device.drop(key)
            except Gone as error:
                self._pool.lose(device, str(error))
        model = self._models.pop(key, None)
        if model is not None:
            self._libraries.remove(model.library)

    def close(self) -> None:
        """See `Session.close`."""
        self._pool.close()
        self._libraries.close()
