"""One device behind a tracker: a process that talks to it, and what it said of itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from cprune.targets.errors import BrokenWorld
from cprune.targets.process import MODEL_DEADLINE_S, Process
from cprune.targets.remote import tracker
from cprune.targets.session import Array, Failure, Forms, Timed
from cprune.targets.target import Timing

CONNECT_DEADLINE_S = 60.0
BACK_S = 10.0  # a server whose session crashed registers again at once; one that does not within this is gone
STATE_DEADLINE_S = 10.0
DROP_DEADLINE_S = 60.0
POLL_S = 1.0  # between two looks at what is waited for


class Gone(Exception):
    """The device does not answer any more."""


class Device:
    """A device that this session holds until `close`.

    `facts` is what its server says (`serve.device`), with `threads`, `connect_s` and `round_trip_ms`; `models` are the
    keys of the models it holds.  `threads` of 0 leaves the number to the device.  Every request raises Gone if the
    device is gone.
    """

    def __init__(self, name: str, where: tracker.Address, key: str, threads: int) -> None:
        self.name, self.where, self.key, self.threads = name, where, key, threads
        self.facts: dict[str, Any] = {}
        self.models: set[str] = set()
        self.reference_s, self.checked_at = 0.0, 0.0
        self._process = Process(
            "cprune.targets.remote.client",
            [where.host, str(where.port), key, str(threads)],
            {"TVM_USE_RUNTIME_LIB": "1"},  # it compiles nothing, and starts faster without the compiler
            self._greeted,
            start_deadline_s=CONNECT_DEADLINE_S,
        )

    def _greeted(self, value: dict[str, Any]) -> str:
        if "error" in value:
            return f"did not get a device ({value['error']})"
        if self.threads and value["threads"] != self.threads:
            return f"got {value['threads']} threads on the device, not {self.threads}"
        if self.facts and value["cpu"] != self.cpu:
            return f"got another device ({value['cpu']})"
        self.facts = value
        return ""

    @property
    def cpu(self) -> str:
        """Return what its processor is; "" where its server does not say."""
        return str(self.facts["cpu"])

    def start(self) -> None:
        """Get the device.  Raises BrokenWorld if it does not answer, or does not give as many threads."""
        self._process.start()

    def ask(self, name: str, args: tuple[Any, ...], deadline_s: float) -> Any:
        """Return the device's answer, or a Failure if the candidate was to blame.  Raises Gone if the device is gone.

        Whose fault it was, the device's server knows: a session that crashed, or that computed when its client gave up,
        was ended by the candidate.  One that was listening had lost its connection, and the request is sent once more;
        so is one that failed before anything ran (stage "load").
        """
        for last in (False, True):
            answer = self._process.ask(name, args, deadline_s)
            if not (isinstance(answer, Failure) and (silent(answer) or broke(answer))):
                return answer
            self._again(silent(answer))
            computed = self.facts.get("before", "killed") in ("crashed", "killed")
            if last or (computed and answer.stage != "load"):
                return answer
        raise AssertionError

    def _again(self, silent: bool) -> None:
        """Get the device again after its session ended, or after it was silent and so must be ended."""
        self.models.clear()
        if silent:
            self._process.close()
        end = time.monotonic() + BACK_S
        while not any(queue.key == self.key and queue.free for queue in self._known()):
            if time.monotonic() > end:
                raise Gone(f"its session ended, and no device registered again within {BACK_S:g} s")
            time.sleep(0.1)
        try:
            if not silent:
                answer = self._process.ask("again", (), CONNECT_DEADLINE_S)
                wrong = answer.reason if isinstance(answer, Failure) else self._greeted(answer)
                if not wrong:
                    return
                self._process.close()
            self._process.start()
        except BrokenWorld as error:
            raise Gone(str(error)) from error

    def _known(self) -> list[tracker.Free]:
        try:
            return tracker.summary(self.where)
        except BrokenWorld as error:
            raise Gone(str(error)) from error

    def temperature_c(self) -> float | None:
        """Return what the device says of its temperature now; None if it cannot tell."""
        answer = self.ask("state", (), STATE_DEADLINE_S)
        return None if isinstance(answer, Failure) else answer.get("temperature_c")

    def time(self, library: str, forms: Forms, timing: Timing, slow_s: float = float("inf")) -> Timed | Failure:
        """Return the runs of the program in `library` on random arguments; see `Session.time`."""
        args = (library, forms, timing.repeats, timing.min_run_ms / 1e3, slow_s, timing.cooldown_s)
        answer: Timed | Failure = self.ask("time", args, timing.deadline_s)
        return answer

    def race(
        self,
        libraries: Sequence[str],
        inputs: Sequence[Sequence[Array]],
        forms: Sequence[Forms],
        rounds: int,
        timing: Timing,
    ) -> list[Timed | Failure] | Failure:
        """Time programs in turns; see `Session.race`.  One Failure if the session on the device ended of them."""
        arrays = [list(each) for each in inputs]
        args = (list(libraries), arrays, list(forms), rounds, timing.min_run_ms / 1e3, timing.cooldown_s)
        answers: list[Timed | Failure] | Failure = self.ask("race", args, timing.deadline_s * len(libraries))
        return answers

    def hold(self, key: str, library: str, weights: tuple[Array, ...]) -> Failure | None:
        """Bring a whole model to the device if it is not there."""
        if key in self.models:
            return None
        failed: Failure | None = self.ask("load", (key, library, weights), MODEL_DEADLINE_S)
        if failed is None:
            self.models.add(key)
        return failed

    def run(self, key: str, inputs: Sequence[Array]) -> tuple[Array, ...] | Failure:
        """Return the outputs of a held model."""
        answer: tuple[Array, ...] | Failure = self.ask("run", (key, list(inputs)), MODEL_DEADLINE_S)
        return answer

    def time_models(
        self, keys: Sequence[str], inputs: Sequence[Array], rounds: int, run_ms: float, cooldown_s: float
    ) -> dict[str, tuple[float, ...]] | Failure:
        """Time held models in turns; see `Session.time_models`."""
        args = (list(keys), list(inputs), rounds, run_ms / 1e3, cooldown_s)
        answer: dict[str, tuple[float, ...]] | Failure = self.ask("time_models", args, MODEL_DEADLINE_S)
        return answer

    def drop(self, key: str) -> None:
        """Forget a model if it is there."""
        if key in self.models:
            self.models.discard(key)
            self.ask("drop", (key,), DROP_DEADLINE_S)

    def close(self) -> None:
        """Let go of the device."""
        self._process.close()
        self.models.clear()


def free_devices(
    where: tracker.Address, key: str, threads: int, say: Callable[[str], None]
) -> tuple[list[Device], str]:
    """Return every free device of a key, held, and why there is none (else "")."""
    try:
        queue = next((q for q in tracker.summary(where) if q.key == key), None)
    except BrokenWorld as error:
        return [], str(error)
    if queue is None or not queue.devices:  # the tracker remembers keys of devices that left
        return [], f"no device is registered under the key {key!r} at the tracker {where}"
    if not queue.free:
        return [], f"every device under the key {key!r} is in use"

    def started(index: int) -> Device | None:
        device = Device(f"{key}/{index}", where, key, threads)
        try:
            device.start()
        except BrokenWorld as error:
            say(f"{device.name}: {error}")
            return None
        return device

    with ThreadPoolExecutor(queue.free) as pool:
        devices = [device for device in pool.map(started, range(queue.free)) if device is not None]
    return devices, "" if devices else f"no device under the key {key!r} answers"


def silent(failure: Failure) -> bool:
    """Tell whether the process that talks to the device did not answer, or ended."""
    return failure.stage == "timeout" or failure.reason.startswith("the worker ended")


def broke(failure: Failure) -> bool:
    """Tell whether the connection behind a failure cannot be used any more."""
    words = ("kShutdown", "RPCCode::kReturn", "onnection", "ocket", "channel", "RPCError", "Broken pipe")
    return any(word in failure.reason for word in words)
