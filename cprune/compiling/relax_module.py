"""Lowered calls and the program of every task become a model for TVM's virtual machine.

The Relax module only says which kernel is called with what; the kernels come beside it, one for each task.  So a
pruned model shares the kernels of the tasks that did not change, and a session builds none of them twice.  The module
takes the input and then every weight.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import tvm
from tvm import relax

from cprune.compiling.lowered import Lowered
from cprune.targets.session import Kernel, Model
from cprune.tuner.programs.program import arranged, module_of, shapes
from cprune.tuner.programs.space import Candidate
from cprune.tuner.programs.workload import Conv2d, Shape, Workload, dtypes, key

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
        variables[name] = relax.Var(_plain(name), relax.TensorType(array.shape, str(array.dtype)))
        parameters.append(variables[name])
    kernels: dict[str, Kernel] = {}
    with builder.function("main", parameters, attrs={"num_input": len(lowered.inputs)}):
        with builder.dataflow():
            for call in lowered.calls:
                task = key(call.workload)
                if task not in kernels:
                    kernels[task] = kernel(call.workload, programs[task])
                *reads, out = shapes(call.workload, programs[task])
                dtype = (dtypes(call.workload) or ("float32",))[-1]
                names = (*call.inputs, *call.weights)
                args = [_shaped(builder, variables[name], shape) for name, shape in zip(names, reads, strict=True)]
                value = relax.call_dps_packed(kernels[task].name, args, relax.TensorType(out, dtype))
                variables[call.output] = builder.emit(value)
            results = [_shaped(builder, variables[name], shape) for name, shape in lowered.outputs]
            result = builder.emit_output(results[0] if len(results) == 1 else relax.Tuple(results))
        builder.emit_func_output(result)
    return Model(tvm.ir.save_json(builder.finalize()), tuple(kernels.values()), tuple(weights.values()))


@lru_cache(maxsize=1024)
def kernel(workload: Workload, candidate: Candidate) -> Kernel:
    """Return the program of a task under a name of its own, the same for the same workload and candidate."""
    name = "kernel_" + hashlib.sha256(f"{key(workload)} {candidate!r}".encode()).hexdigest()[:16]
    functions = {each.name_hint: function for each, function in module_of(workload, candidate).functions.items()}
    main = functions.pop("main").with_attr({"global_symbol": name, "op_pattern": OPAQUE, "tirx.is_scheduled": True})
    return Kernel(name, tvm.ir.save_json(tvm.IRModule({name: main, **functions})))


def linked(model: Model) -> Any:
    """Return one module with everything in it, for a compiled model that stands alone."""
    whole = tvm.ir.load_json(model.module)
    for part in model.kernels:
        whole.update(tvm.ir.load_json(part.module))
    return whole


def _plain(name: str) -> str:
    return name.replace(".", "_").replace("@", "_")


def _shaped(builder: Any, variable: Any, shape: Shape) -> Any:
    own = tuple(int(extent) for extent in variable.ty.shape)
    return variable if own == tuple(shape) else builder.emit(relax.op.reshape(variable, shape))
