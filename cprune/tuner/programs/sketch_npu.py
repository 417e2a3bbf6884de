"""The sketch of a convolution of bytes for the simulated accelerator (`cprune.targets.npu`).

A tile of outputs stays in the accumulator while the reduction is walked: for every few blocks of input channels the
inputs and the weights are copied into the memories on the chip, and the multiplier goes through them.  What makes bytes
of the sums, and the residual, come once a tile.  Virtual threads let the loads of one tile run beside the products of
another.  The schedule is the one of VTA (Moreau et al., 2019, section 4; its convolution in TVM): loops, their order
and knobs are the same.

==========  ============================================================
knob
==========  ============================================================
tile_h      rows of outputs in a tile
tile_w      columns of outputs in a tile
tile_ci     blocks of input channels that are copied at a time
tile_co     blocks of output channels in a tile
threads_co  virtual threads that share out blocks of output channels
threads_h   virtual threads that share out rows
==========  ============================================================
"""

from __future__ import annotations

from functools import cache
from typing import Any

import tvm
from tvm import te

from cprune.targets.npu.lower import FINISH
from cprune.tuner.programs import sketch_integers
from cprune.tuner.programs.space import Candidate
from cprune.tuner.programs.workload import QuantizedConv2d


def schedule(s: Any, w: QuantizedConv2d, knobs: Candidate) -> None:
    """Schedule `sketch_integers.computation`."""
    out = s.get_sblock("out")
    store = s.cache_write(out, 0, "local.result")
    n, co, h, j, b = s.get_loops(store)
    co, tile_co = s.split(co, [None, knobs["tile_co"]])
    h, tile_h = s.split(h, [None, knobs["tile_h"]])
    j, tile_w = s.split(j, [None, knobs["tile_w"]])
    threads = []
    if knobs.number("threads_co") > 1:
        co, thread = s.split(co, [None, knobs["threads_co"]])
        threads.append(thread)
    if knobs.number("threads_h") > 1:
        h, thread = s.split(h, [None, knobs["threads_h"]])
        threads.append(thread)
    s.reorder(*threads, n, h, co, j, tile_co, tile_h, tile_w, b)
    for thread, name in zip(threads, ("vthread.x", "vthread.y"), strict=False):
        s.bind(thread, name)
    s.compute_at(out, j, preserve_unit_loops=True)
    conv = s.get_sblock("conv")
    s.compute_at(conv, j, preserve_unit_loops=True)
    s.set_scope(conv, 0, "local.sums")
    _, c, y, z, lanes, ic, kh, kw, four, k = s.get_loops(conv)[-10:]
    ic, tile_ci = s.split(ic, [None, knobs["tile_ci"]])
    s.reorder(ic, tile_ci, z, kw, kh, c, y, lanes, four, k)
    if any(w.pad):
        pad = s.get_sblock("pad")
        s.compute_at(pad, ic, preserve_unit_loops=True)
        s.set_scope(pad, 0, "local.input")
    else:
        s.compute_at(s.cache_read(conv, "x", "local.input"), ic, preserve_unit_loops=True)
    s.compute_at(s.cache_read(conv, "weight", "local.weight"), ic, preserve_unit_loops=True)
    if w.residual:
        residual = s.cache_read(out, "residual", "local.residual")
        s.compute_at(residual, j, preserve_unit_loops=True)
    s.decompose_reduction(conv, ic)
    if _uneven(w, knobs):  # a block that a condition leaves out is no match for the intrinsic, what is in it is
        [within] = s.get_child_blocks(s.blockize(lanes))
        lanes = s.get_loops(within)[-3]
    s.tensorize(lanes, intrinsic(w.out_block))


def _uneven(w: QuantizedConv2d, knobs: Candidate) -> bool:
    """Tell whether rows or blocks of output channels do not come out even among the virtual threads."""
    rows, blocks = w.out_height // knobs.number("tile_h"), w.out_channels // w.out_block // knobs.number("tile_co")
    return bool(rows % knobs.number("threads_h") or blocks % knobs.number("threads_co"))


def with_finish(module: Any, w: QuantizedConv2d) -> Any:
    """Return a scheduled module with one more PrimFunc, "finish": it makes the output of sums in memory.

    The accelerator's simulation carries sums (`cprune.targets.npu.execute`); the session applies this to them.
    """
    return tvm.IRModule({"main": module["main"], FINISH: _finish(w)})


@cache
def _finish(w: QuantizedConv2d) -> Any:
    given = {
        name: tensor for name, tensor in sketch_integers.given_to(w).items() if name not in ("x", "weight", "zero")
    }
    sums = te.placeholder(w.arguments()[-1], "int32", name="sums")
    function = te.create_prim_func([sums, *given.values(), sketch_integers.finished(w, sums, given)])
    return function.with_attr("global_symbol", FINISH)


@cache
def intrinsic(lanes: int) -> str:
    """Return the name of TVM's tensor intrinsic of the multiplier: a vector times a block of weights."""
    from tvm.s_tir import TensorIntrin
    from tvm.script import tirx as T

    words = lanes // 4

    @T.prim_func(s_tir=True)  # type: ignore[untyped-decorator]
    def wanted(a: T.handle, b: T.handle, c: T.handle) -> None:
        A = T.match_buffer(a, (lanes,), "uint8", offset_factor=1, scope="local.input")
        B = T.match_buffer(b, (words, lanes, 4), "int8", offset_factor=1, scope="local.weight")
        C = T.match_buffer(c, (lanes,), "int32", offset_factor=1, scope="local.sums")
        with T.sblock("root"):
            T.reads(C[0:lanes], A[0:lanes], B[0:words, 0:lanes, 0:4])
            T.writes(C[0:lanes])
            for i in T.serial(0, lanes):
                for four in T.serial(0, words):
                    for k in T.serial(0, 4):
                        with T.sblock("update"):
                            vi, vf, vk = T.axis.remap("SRR", [i, four, k])
                            C[vi] = C[vi] + T.cast(A[vf * 4 + vk], "int32") * T.cast(B[vf, vi, vk], "int32")

    @T.prim_func(s_tir=True)  # type: ignore[untyped-decorator]
    def given(a: T.handle, b: T.handle, c: T.handle) -> None:
        A = T.match_buffer(a, (lanes,), "uint8", offset_factor=1, scope="local.input")
        B = T.match_buffer(b, (words, lanes, 4), "int8", offset_factor=1, scope="local.weight")
        C = T.match_buffer(c, (lanes,), "int32", offset_factor=1, scope="local.sums")
        with T.sblock("root"):
            T.reads(C[0:lanes], A[0:lanes], B[0:words, 0:lanes, 0:4])
            T.writes(C[0:lanes])
            T.evaluate(T.call_extern("int32", "npu_gemm", C.access_ptr("rw"), A.access_ptr("r"), B.access_ptr("r")))

    name = f"cprune_npu_{lanes}"
    TensorIntrin.register(name, wanted, given, override=True)
    return name
