"""The session of the simulated accelerator: programs are walked, simulated and executed in this process.

A program whose module has a function "finish" is one for the multiplier: "main" is what the accelerator runs, as far as
its sums, and "finish" makes its output of them.  All others run on this machine's processor, and their time is charged
by `host_s`: the accelerator would move their values in and out once, and go over them with its ALU.

Times are exact: cycles by the clock of the machine, the same in every run.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from cprune.targets.npu.cycles import DEADLOCK, FAULT, LIMIT, Cycles, cycles_of
from cprune.targets.npu.execute import sums_of
from cprune.targets.npu.lower import FACTS, FINISH, lowered
from cprune.targets.npu.machine import NpuMachine
from cprune.targets.npu.stream import Stream
from cprune.targets.npu.walk import stream_of
from cprune.targets.process import failure
from cprune.targets.session import Array, Built, Failure, Forms, Model, Program, Timed, empty


@dataclass(frozen=True, eq=False)
class _Held:
    """A built program: its stream (None: one for the host), its cycles, and what computes its output."""

    forms: Forms
    stream: Stream | None
    cycles: Cycles | None
    call: Callable[..., Array]
    host_s: float = 0.0


class NpuSession:
    """Session for the target `npu-sim`."""

    def __init__(self, machine: NpuMachine) -> None:
        self.machine = machine
        self._handles = itertools.count()
        self._held: dict[int, _Held] = {}
        self._finishers: dict[str, Callable[..., Array]] = {}
        self._kernels: dict[str, _Held] = {}
        self._models: dict[str, _Model] = {}

    def __enter__(self) -> NpuSession:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def build(
        self, programs: Sequence[Program], *, assembly: bool = False, keep: Sequence[Built] = ()
    ) -> list[Built | Failure]:
        """See `Session.build`.  The "assembly" is what the walk found out, as JSON text."""
        kept = {built.handle for built in keep}
        self._held = {handle: held for handle, held in self._held.items() if handle in kept}
        return [self._build(program, assembly) for program in programs]

    def _build(self, program: Program, assembly: bool) -> Built | Failure:
        import tvm

        try:
            held = self._made(tvm.ir.load_json(program.module), program.forms)
        except Exception as error:
            return failure("build", error)
        handle = next(self._handles)
        self._held[handle] = held
        facts = FACTS + json.dumps(held.stream.facts) if assembly and held.stream is not None else ""
        return Built(handle, program, facts)

    def _made(self, module: Any, forms: Forms) -> _Held:
        if FINISH not in [variable.name_hint for variable in module.get_global_vars()]:
            main = _alone(module["main"])
            return _Held(forms, None, None, _compiled(main), host_s(main, forms, self.machine))
        text = str(module[FINISH])
        if text not in self._finishers:
            self._finishers[text] = _compiled(_alone(module[FINISH]))
        stream = stream_of(lowered(_alone(module["main"])), self.machine)
        return _Held(forms, stream, cycles_of(stream, self.machine), self._finishers[text])

    def time(self, entries: Sequence[Built], *, slow_s: float = float("inf")) -> list[Timed | Failure]:
        """See `Session.time`.  A program that is slow is so in every run: `slow_s` changes nothing."""
        return [self._time(self._held[built.handle]) for built in entries]

    def _time(self, held: _Held) -> Timed | Failure:
        stopped = self._stopped(held)
        return stopped if stopped is not None else Timed((self._seconds(held),))

    def _stopped(self, held: _Held) -> Failure | None:
        """Return why a program does not come to its end; None if it does."""
        if held.cycles is not None and held.cycles.end == DEADLOCK:
            return Failure("run", f"deadlock after {held.cycles.cycles:,.0f} cycles: the queues wait for each other")
        if held.cycles is not None and held.cycles.end == FAULT:
            return Failure("run", "a dependency fault: the queues are left out of step, what they moved may be stale")
        if held.cycles is not None and held.cycles.end == LIMIT:
            return Failure("timeout", f"more than {self.machine.limit_cycles:,} cycles")
        return None

    def _seconds(self, held: _Held) -> float:
        return held.host_s if held.cycles is None else held.cycles.cycles / self.machine.clock_hz

    def race(self, entries: Sequence[Built], inputs: Sequence[Sequence[Array]], rounds: int) -> list[Timed | Failure]:
        """See `Session.race`.  One round is enough: they are all the same."""
        answers: list[Timed | Failure] = []
        for built, arguments in zip(entries, inputs, strict=True):
            held = self._held[built.handle]
            stopped = self._stopped(held)
            answers.append(stopped or Timed((self._seconds(held),), self._output(held, arguments)))
        return answers

    def _output(self, held: _Held, arguments: Sequence[Array]) -> Array:
        if held.stream is None:
            return held.call(*arguments, empty(held.forms))
        sums = executed(held.stream, self.machine, arguments, held.forms)
        _x, *others, _zero = arguments
        residual = others[:-4] if len(others) == 5 else []
        return held.call(sums, *residual, *others[-3:], empty(held.forms))

    # -- whole models

    def load(self, key: str, model: Model) -> Failure | None:
        """See `Session.load`."""
        import tvm

        try:
            for kernel in model.kernels:
                if kernel.name not in self._kernels:
                    module = tvm.ir.load_json(kernel.module)
                    functions = {each.name_hint: function for each, function in module.functions.items()}
                    main = functions.pop(kernel.name)
                    made = tvm.IRModule({"main": main.with_attr("global_symbol", "main"), **functions})
                    self._kernels[kernel.name] = self._made(made, _forms(main))
            self._models[key] = _Model(model, self._call)
        except Exception as error:
            return failure("build", error)
        return None

    def _call(self, name: str, arguments: Sequence[Array]) -> Array:
        return self._output(self._kernels[name], arguments)

    def run(self, key: str, inputs: Sequence[Array]) -> tuple[Array, ...] | Failure:
        """See `Session.run`."""
        model = self._models.get(key)
        if model is None:
            return Failure("run", f"no model {key!r} is held")
        return model.outputs(inputs)

    def time_models(
        self, keys: Sequence[str], inputs: Sequence[Array], rounds: int, run_ms: float
    ) -> dict[str, tuple[float, ...]] | Failure:
        """See `Session.time_models`: the sum over a model's calls, which come one after the other."""
        seconds = {}
        for key in keys:
            if key not in self._models:
                return Failure("run", f"no model {key!r} is held")
            calls = self._models[key].calls
            stopped = next((s for name in calls if (s := self._stopped(self._kernels[name])) is not None), None)
            if stopped is not None:
                return stopped
            seconds[key] = (sum(self._seconds(self._kernels[name]) for name in calls),) * rounds
        return seconds

    def drop(self, key: str) -> None:
        """See `Session.drop`."""
        self._models.pop(key, None)

    def close(self) -> None:
        """Forget everything."""
        self._held, self._models, self._kernels = {}, {}, {}


class _Model:
    """A model that is held: the kernels that it calls in order, and what computes its outputs."""

    def __init__(self, model: Model, call: Callable[[str, Sequence[Array]], Array]) -> None:
        import tvm

        self.weights = model.weights
        self.names = {kernel.name for kernel in model.kernels}
        module = tvm.ir.load_json(model.module)
        for name in self.names:
            tvm.register_global_func(name, self._kernel(name, call), override=True)
        self.machine = tvm.relax.VirtualMachine(tvm.compile(module, tvm.target.Target({"kind": "llvm"})), tvm.cpu())
        self.calls = _called(module, self.names)

    def _kernel(self, name: str, call: Callable[[str, Sequence[Array]], Array]) -> Callable[..., None]:
        def run(*tensors: Any) -> None:
            *arguments, out = tensors
            out.copyfrom(call(name, [tensor.numpy() for tensor in arguments]))

        return run

    def outputs(self, inputs: Sequence[Array]) -> tuple[Array, ...]:
        """Return what the model computes."""
        import tvm

        arguments = [tvm.runtime.tensor(np.ascontiguousarray(a)) for a in (*inputs, *self.weights)]
        answer = self.machine["main"](*arguments)
        tensors = [answer] if hasattr(answer, "numpy") else list(answer)
        return tuple(tensor.numpy() for tensor in tensors)


def host_s(module: Any, forms: Forms, machine: NpuMachine) -> float:
    """Return what is charged for a program that the multiplier has no part in, in seconds.

    All its values go through the port once, and every operation on `lanes` of them takes the ALU a cycle.
    """
    from tvm.s_tir.analysis import estimate_tir_flops

    size = sum(prod(shape) * np.dtype(dtype).itemsize for shape, dtype in forms)
    cycles = size / machine.port_bytes + machine.costs.alu_vector * estimate_tir_flops(module) / machine.lanes
    return float(cycles / machine.clock_hz)


def executed(stream: Stream, machine: NpuMachine, arguments: Sequence[Array], forms: Forms) -> Array:
    """Return the sums that a program stores for the arguments of a convolution of bytes, in the output's shape."""
    lanes = machine.lanes
    x, weight, zero = arguments[0], arguments[-5], arguments[-1]
    shape = forms[-1][0]
    blocks = weight.reshape(-1, lanes // 4, lanes, 4).transpose(0, 1, 3, 2).reshape(-1, lanes, lanes)
    sums = sums_of(stream, machine, x.reshape(-1, lanes), blocks.astype(np.int32), int(zero[0]), prod(shape) // lanes)
    return sums.reshape(shape)


def _compiled(module: Any) -> Callable[..., Array]:
    """Return a function over arrays of a module's "main"; its last argument is the output, which it returns."""
    import tvm

    library = tvm.driver.build(module, tvm.target.Target({"kind": "llvm"}))
    main = library["main"]

    def call(*arrays: Array) -> Array:
        tensors = [tvm.runtime.tensor(np.ascontiguousarray(array)) for array in arrays]
        main(*tensors)
        output: Array = tensors[-1].numpy()
        return output

    return call


def _alone(function: Any) -> Any:
    """Return a module of one function, called "main"."""
    import tvm

    return tvm.IRModule({"main": function.with_attr("global_symbol", "main")})


def _forms(function: Any) -> Forms:
    """Return shape and type of every argument of a PrimFunc, the output's last."""
    return tuple((tuple(int(n) for n in buffer.shape), str(buffer.dtype)) for buffer in function.params)


def _called(module: Any, names: set[str]) -> list[str]:
    """Return the kernels that a Relax module calls, in order, as often as it does."""
    calls = []
    for block in module["main"].body.blocks:
        for binding in block.bindings:
            arguments = getattr(binding.value, "args", None)
            name = str(getattr(arguments[0], "global_symbol", "")) if arguments else ""
            if name in names:
                calls.append(name)
    return calls
