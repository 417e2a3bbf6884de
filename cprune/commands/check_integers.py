"""Does every kernel of bytes, or of 16 bits, give what PyTorch simulates, to one step?

A network in integers computes in PyTorch with `fake_quantize`, compiled with bytes.  Each kernel is given the bytes
that PyTorch has for its inputs, so that a value at a tie between two steps early in the network does not hide what is
wrong behind it, and its bytes are compared with PyTorch's.  Of bfloat16 likewise: a step is there what lies between two
neighbours of the value's largest magnitude, 1/128 of it at most; of float16 what its sums may be apart, twice that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any

import torch
from torch import Tensor

from cprune.compiling.activations import joined
from cprune.compiling.lowered import Call, Step
from cprune.compiling.operators.quantizing import QUANTIZING, step_of
from cprune.compiling.padding import Sides, unpadded
from cprune.compiling.tuned import Tuned
from cprune.network.node import operator_name
from cprune.network.quantizing import BYTES_PASS, HIGHEST, LOWEST
from cprune.targets.difference import apart
from cprune.targets.session import Array, Built, Session, Timed
from cprune.tuner.programs import program as programs
from cprune.tuner.programs.reference import halves, numbers, pack, tolerance, unpack
from cprune.tuner.programs.workload import Shape, dtypes, key


@dataclass(frozen=True)
class Compared:
    """A rounded value: its name, and how many steps the kernel's is from PyTorch's at most; None: it does not run."""

    value: str
    steps: int | None


def as_simulated(tuned: Tuned, session: Session) -> Iterator[Compared]:
    """Compare every value that a kernel of a tuned model rounds, and that PyTorch has under the same name."""
    values = dict(tuned.network.values(*tuned.example))
    steps = _steps(tuned)
    for name, (padded, sides) in unpadded(joined(tuned.network.nodes), values).rounded.items():
        values[name] = _without(values[padded], sides)
        if padded in steps:
            steps[name] = steps[padded]
    for call in tuned.lowered.calls:
        kinds = dtypes(call.workload)
        reads = zip(call.inputs, kinds, strict=False)  # weights come after them
        known = all(name in values and (kind != "uint8" or name in steps) for name, kind in reads)
        rounded = kinds[-1:] in (("uint16",), ("float16",)) or (kinds[-1:] == ("uint8",) and call.output in steps)
        if rounded and known and call.output in values:
            yield Compared(call.output, _apart(tuned, session, call, values, steps))


def _without(value: Tensor, sides: Sides) -> Tensor:
    """Return an image without the zeros at its sides, which a kernel adds by itself."""
    above, left, below, right = sides
    return value[..., above : value.shape[2] - below, left : value.shape[3] - right]


def _steps(tuned: Tuned) -> dict[str, Step]:
    """Return scale and zero point of every value that is of bytes, also of those that only pass bytes on."""
    steps: dict[str, Step] = {}
    for node in tuned.network.nodes:
        if operator_name(node) in QUANTIZING:
            step = step_of(node)
            steps.update({} if step is None else {node.name: step})
        elif operator_name(node) in BYTES_PASS and node.args[0].name in steps:
            steps[node.name] = steps[node.args[0].name]
    return steps


def _apart(
    tuned: Tuned, session: Session, call: Call, values: Mapping[str, Any], steps: Mapping[str, Step]
) -> int | None:
    workload = call.workload
    shapes, kinds = workload.arguments(), dtypes(workload)
    given: list[Array] = []
    for name, shape, kind in zip(call.inputs, shapes, kinds, strict=False):
        given.append(_stored(_typed(values[name], kind, steps.get(name)), shape))
    given += [tuned.lowered.weights[name] for name in call.weights]
    (built,) = session.build([programs.program(workload, tuned.best[key(workload)].candidate)])
    if not isinstance(built, Built):
        return None
    (ran,) = session.race([built], [given], 1)
    if not isinstance(ran, Timed) or ran.output is None:
        return None
    wanted = _typed(values[call.output], kinds[-1], steps.get(call.output))
    found = _plain(ran.output, wanted)
    if kinds[-1] != "uint8":
        return ceil(apart(numbers(found.numpy()), numbers(wanted.numpy())) / tolerance(workload))
    return int((found.int() - wanted.int()).abs().max())


def _typed(value: Tensor, kind: str, step: Step | None) -> Tensor:
    """Return a value of float32 as a kernel has it."""
    if kind == "uint8":
        assert step is not None
        return _bytes(value, step)
    return {"uint16": halves, "float16": Tensor.half}.get(kind, Tensor.float)(value.float())


def _bytes(value: Tensor, step: Step) -> Tensor:
    return (value.double() / step.scale + step.zero).round().clamp(LOWEST, HIGHEST).to(torch.uint8)


def _stored(value: Tensor, shape: Shape) -> Array:
    """Return a value as it lies in memory of this shape: plain, or in blocks; rows of a linear layer are planes."""
    if len(shape) == value.dim() + 3:
        value = value[:, :, None, None]
    return pack(value, shape[-1] if len(shape) == value.dim() + 1 else 0).reshape(shape)


def _plain(stored: Array, like: Tensor) -> Tensor:
    """Return what lies in memory in the shape of `like`."""
    block = stored.shape[-1] if stored.ndim > like.dim() else 0
    return unpack(stored, block, like.shape[1] if block else None).reshape(like.shape)
