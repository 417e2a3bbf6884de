"""Lowered calls and the program of every task become one Relax module for TVM's virtual machine.

The module takes the input and then every weight, so that a pruned model of the same shapes differs in its arrays
alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tvm
from tvm import relax

from cprune.lower import Lowered
from cprune.targets.session import Model
from cprune.tuner.programs import arranged, module_of, shapes
from cprune.tuner.space import Candidate
from cprune.tuner.workload import Conv2d, Shape, key

OPAQUE = 8  # TVM's pattern for functions that its own fusion must leave alone


def relax_model(lowered: Lowered, programs: Mapping[str, Candidate]) -> Model:
    """Return the model in which every task runs the program given for its key."""
    builder = relax.BlockBuilder()
    variables: dict[str, Any] = {}
    parameters: list[Any] = []
    for name, shape in lowered.inputs:
        variables[name] = relax.Var(_plain(name), relax.TensorType(shape, "float32"))
        parameters.append(variables[name])
    weights = dict(lowered.weights)
    for call in lowered.calls:
        if isinstance(call.workload, Conv2d):
            name = call.weights[0]
            weights[name] = arranged(call.workload, programs[key(call.workload)], weights[name])
    for name, array in weights.items():
        variables[name] = relax.Var(_plain(name), relax.TensorType(array.shape, "float32"))
        parameters.append(variables[name])
    functions: dict[str, Any] = {}
    with builder.function("main", parameters, attrs={"num_input": len(lowered.inputs)}):
        with builder.dataflow():
            for call in lowered.calls:
                task = key(call.workload)
                if task not in functions:
                    func = module_of(call.workload, programs[task])["main"]
                    func = func.without_attr("global_symbol")
                    func = func.with_attr({"op_pattern": OPAQUE, "tirx.is_scheduled": True})
                    functions[task] = builder.add_func(func, f"task{len(functions)}")
                *given, out = shapes(call.workload, programs[task])
                names = (*call.inputs, *call.weights)
                args = [_shaped(builder, variables[name], shape) for name, shape in zip(names, given, strict=True)]
                made = relax.call_tir(functions[task], args, relax.TensorType(out, "float32"))
                variables[call.output] = builder.emit(made)
            results = [_shaped(builder, variables[name], shape) for name, shape in lowered.outputs]
            result = builder.emit_output(results[0] if len(results) == 1 else relax.Tuple(results))
        builder.emit_func_output(result)
    return Model(tvm.ir.save_json(builder.finalize()), tuple(weights.values()))


def _plain(name: str) -> str:
    return name.replace(".", "_").replace("@", "_")


def _shaped(builder: Any, variable: Any, shape: Shape) -> Any:
    found = tuple(int(extent) for extent in variable.ty.shape)
    return variable if found == tuple(shape) else builder.emit(relax.op.reshape(variable, shape))
