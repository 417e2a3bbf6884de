"""Programs and models made by hand, for tests of what builds and times: fast ones, and ones that crash or hang."""

from __future__ import annotations

from typing import Any

import numpy as np

from cprune.targets.session import Model, Program


def program(compute: Any, shape: tuple[int, ...] = (64,)) -> Program:
    import tvm
    from tvm import te

    x = te.placeholder(shape, name="x")
    func = te.create_prim_func([x, compute(te, x)]).with_attr("global_symbol", "main")
    return Program(tvm.ir.save_json(tvm.IRModule({"main": func})), (shape, shape))


def doubled() -> Program:
    return program(lambda te, x: te.compute((64,), lambda i: x[i] * 2.0, name="y"))


def tripled() -> Program:
    return program(lambda te, x: te.compute((64,), lambda i: x[i] * 3.0, name="y"))


def crashing() -> Program:
    return program(lambda te, x: te.compute((64,), lambda i: x[i + 2_000_000_000], name="y"))


def hanging() -> Program:
    def compute(te: Any, x: Any) -> Any:
        k = te.reduce_axis((0, 2_000_000_000), "k")
        return te.compute((64,), lambda i: te.sum(x[(i * 7 + k) % 64], axis=k), name="y")

    return program(compute)


def scaling(factor: float) -> Model:
    """A model that takes 64 numbers, and returns them times its only weight."""
    import tvm
    from tvm import relax

    form = relax.TensorType((64,), "float32")
    x, weight = relax.Var("x", form), relax.Var("weight", form)
    builder = relax.BlockBuilder()
    with builder.function("main", [x, weight], attrs={"num_input": 1}):
        with builder.dataflow():
            result = builder.emit_output(relax.op.multiply(x, weight))
        builder.emit_func_output(result)
    return Model(tvm.ir.save_json(builder.finalize()), (), (np.full(64, factor, np.float32),))
