"""Instructions that multiply short numbers and add the products to each lane of a register.

Four of uint8 and int8 to an int32 lane, two of bfloat16 to a float32 lane, or one of float16 to a float16 lane.

TIR has no words for all but the last, so each is a few lines of LLVM's language that ride along with a program and are
inlined there.  LLVM ends the whole process, with no exception, where a processor lacks an instruction: ask `of_target`
first.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeGuard

from cprune.targets.target import Target
from cprune.tuner.programs.workload import FMLA, QuantizedConv2d, Workload

WORDS, PAIR = 4, 2
"""Bytes, and numbers of bfloat16, that one lane takes at a time."""
NPU = "npu"
"""What multiplies bytes on the simulated accelerator: no instruction of a processor, see `sketch_npu.py`."""


@dataclass(frozen=True)
class Dot:
    """An instruction: LLVM's name, its lanes, the processors' features that bring it (one is enough).

    `precision` is int8, bf16 or fp16: what it multiplies.
    `signed` says that it takes both factors as int8: bytes are moved by 128 in a register then, and the caller adds
    128 times the sum of a channel's weights.  `bytes_typed`: its factors are vectors of bytes, not of words.
    """

    intrinsic: str
    lanes: int
    features: tuple[str, ...]
    precision: str = "int8"
    signed: bool = False
    bytes_typed: bool = False

    def text(self, name: str, lanes: int) -> str:
        """Return LLVM's text of `name(<lanes x i32> sums, i32 four bytes, <4 lanes x i8> weights)`.

        Of bfloat16 sums are <lanes x float>, the word has two numbers, and weights are <2 lanes x i16>.
        """
        halves = self.precision == "bf16"
        lane, kind, each = ("float", "i16", PAIR) if halves else ("i32", "i8", WORDS)
        own, words, sums = self.lanes, f"<{self.lanes} x i32>", f"<{self.lanes} x {lane}>"
        factor, every = f"<{each * self.lanes} x {kind}>", f"<{each * lanes} x {kind}>"
        given = f"<{each * own} x bfloat>" if halves else factor if self.bytes_typed else words
        lines = [
            f"declare {sums} @{self.intrinsic}({sums}, {given}, {given})",
            f"define linkonce_odr <{lanes} x {lane}> @{name}(<{lanes} x {lane}> %c, i32 %a, {every} %b) "
            "alwaysinline nounwind {",
            f"  %a0 = xor i32 %a, {-2139062144 if self.signed else 0}",
            f"  %a1 = insertelement {words} poison, i32 %a0, i64 0",
            f"  %aw = shufflevector {words} %a1, {words} poison, {words} zeroinitializer",
            f"  %ab = bitcast {words} %aw to {given}",
        ]
        parts = []
        for i in range(lanes // own):
            lines += [
                f"  %c{i} = shufflevector <{lanes} x {lane}> %c, <{lanes} x {lane}> poison, {_mask(own, i * own)}",
                f"  %b{i} = shufflevector {every} %b, {every} poison, {_mask(each * own, each * i * own)}",
                f"  %w{i} = bitcast {factor} %b{i} to {given}",
                f"  %r{i} = call {sums} @{self.intrinsic}({sums} %c{i}, {given} %ab, {given} %w{i})",
            ]
            parts.append((f"%r{i}", own))
        while len(parts) > 1:  # two neighbours become one vector of twice the lanes
            joined = []
            for (left, size), (right, _) in zip(parts[::2], parts[1::2], strict=True):
                both = f"{left}_{right[1:]}"
                half = f"<{size} x {lane}>"
                lines.append(f"  {both} = shufflevector {half} {left}, {half} {right}, {_mask(2 * size, 0)}")
                joined.append((both, 2 * size))
            parts = joined
        return "\n".join([*lines, f"  ret <{lanes} x {lane}> {parts[0][0]}", "}", ""])


def _mask(count: int, start: int) -> str:
    return f"<{count} x i32> <" + ", ".join(f"i32 {start + i}" for i in range(count)) + ">"


DOTS = {
    "vnni512": Dot("llvm.x86.avx512.vpdpbusd.512", 16, ("avx512vnni",)),
    "vnni256": Dot("llvm.x86.avx512.vpdpbusd.256", 8, ("avxvnni", "avx512vnni")),
    "usdot": Dot("llvm.aarch64.neon.usdot.v4i32.v16i8", 4, ("i8mm",), bytes_typed=True),
    "sdot": Dot("llvm.aarch64.neon.sdot.v4i32.v16i8", 4, ("dotprod",), signed=True, bytes_typed=True),
    "bf16x512": Dot("llvm.x86.avx512bf16.dpbf16ps.512", 16, ("avx512bf16",), "bf16"),
    "bf16x256": Dot("llvm.x86.avx512bf16.dpbf16ps.256", 8, ("avx512bf16",), "bf16"),
    "bfdot": Dot("llvm.aarch64.neon.bfdot.v4f32.v8bf16", 4, ("bf16",), "bf16"),
    FMLA: Dot("", 8, ("fullfp16",), "fp16"),
}
"""The instructions by name, the better of two that a processor has first.

The x86 text is the form of LLVM before version 22, whose newer ones bring it up to date themselves.
"""


MIDDLE = 128


def moved_by(workload: QuantizedConv2d) -> int:
    """Return by how much its programs move every byte down before they multiply it: a depthwise one has no dot."""
    return MIDDLE if workload.dot != NPU and DOTS[workload.dot].signed and not workload.depthwise else 0


def on_multiplier(workload: Workload) -> TypeGuard[QuantizedConv2d]:
    """Tell whether the simulated accelerator's multiplier computes it: depthwise convolutions have no use for it."""
    return isinstance(workload, QuantizedConv2d) and workload.dot == NPU and not workload.depthwise


def of_target(target: Target, precision: str) -> str:
    """Return the name of the instruction that a target's programs multiply with in a precision; "" where none does.

    The precision is int8, bf16 or fp16; in fp32 no name is needed, and "" is returned.
    """
    if target.simulated:
        return NPU if precision == "int8" else ""
    return _of(target.compiler, target.vector, precision)


@cache
def _of(compiler: str, vector: int, precision: str) -> str:
    import tvm

    known = tvm.target.Target(json.loads(compiler))
    has = tvm.target.codegen.target_has_features
    for name, dot in DOTS.items():
        lanes = dot.lanes // 2 if precision == "fp16" else dot.lanes  # of a vector of float32
        fits = dot.precision == precision and lanes <= vector
        if fits and any(has(feature, known) for feature in dot.features):
            return name
    return ""


@cache
def intrinsic(name: str, lanes: int) -> tuple[str, str]:
    """Return the name of TVM's tensor intrinsic for `lanes` sums in registers, and the LLVM text that it calls.

    It matches `sums[lane] += int32(bytes[k]) * int32(weights[lane, k])` for k below WORDS; of bfloat16 the same in
    float32, for k below PAIR.
    """
    from tvm.s_tir import TensorIntrin

    called = f"cprune_{name}_{lanes}"
    functions = _of_halves if DOTS[name].precision == "bf16" else _functions
    TensorIntrin.register(called, *functions(called, lanes), override=True)
    return called, DOTS[name].text(called, lanes)


def _functions(called: str, lanes: int) -> tuple[Any, Any]:
    """Return what the intrinsic computes, and how."""
    from tvm.script import tirx as T

    words, factors = f"int32x{lanes}", f"int8x{WORDS * lanes}"

    @T.prim_func(s_tir=True)  # type: ignore[untyped-decorator]
    def wanted(a: T.handle, b: T.handle, c: T.handle) -> None:
        A = T.match_buffer(a, (4,), "uint8", offset_factor=1)
        B = T.match_buffer(b, (lanes, 4), "int8", offset_factor=1)
        C = T.match_buffer(c, (lanes,), "int32", offset_factor=1, scope="local")
        with T.sblock("root"):
            T.reads(C[0:lanes], A[0:4], B[0:lanes, 0:4])
            T.writes(C[0:lanes])
            for i in T.serial(0, lanes):
                for k in T.serial(0, 4):
                    with T.sblock("update"):
                        vi, vk = T.axis.remap("SR", [i, k])
                        C[vi] = C[vi] + T.cast(A[vk], "int32") * T.cast(B[vi, vk], "int32")

    @T.prim_func(s_tir=True)  # type: ignore[untyped-decorator]
    def given(a: T.handle, b: T.handle, c: T.handle) -> None:
        A = T.match_buffer(a, (4,), "uint8", offset_factor=1)
        B = T.match_buffer(b, (lanes, 4), "int8", offset_factor=1)
        C = T.match_buffer(c, (lanes,), "int32", offset_factor=1, scope="local")
        with T.sblock("root"):
            T.reads(C[0:lanes], A[0:4], B[0:lanes, 0:4])
            T.writes(C[0:lanes])
            C[T.ramp(T.int32(0), 1, lanes)] = T.call_extern(
                words,
                called,
                C.vload([0], words),
                T.reinterpret(A.vload([0], "uint8x4"), dtype="int32"),
                B.vload([0, 0], factors),
            )

    return wanted, given


def _of_halves(called: str, lanes: int) -> tuple[Any, Any]:
    """Return what the intrinsic of bfloat16 computes, and how."""
    from tvm.script import tirx as T

    words, factors = f"float32x{lanes}", f"uint16x{PAIR * lanes}"

    @T.prim_func(s_tir=True)  # type: ignore[untyped-decorator]
    def wanted(a: T.handle, b: T.handle, c: T.handle) -> None:
        A = T.match_buffer(a, (2,), "uint16", offset_factor=1)
        B = T.match_buffer(b, (lanes, 2), "uint16", offset_factor=1)
        C = T.match_buffer(c, (lanes,), "float32", offset_factor=1, scope="local")
        with T.sblock("root"):
            T.reads(C[0:lanes], A[0:2], B[0:lanes, 0:2])
            T.writes(C[0:lanes])
            for i in T.serial(0, lanes):
                for k in T.serial(0, 2):
                    with T.sblock("update"):
                        vi, vk = T.axis.remap("SR", [i, k])
                        C[vi] = C[vi] + T.reinterpret(
                            T.shift_left(T.cast(A[vk], "uint32"), T.uint32(16)), dtype="float32"
                        ) * T.reinterpret(T.shift_left(T.cast(B[vi, vk], "uint32"), T.uint32(16)), dtype="float32")

    @T.prim_func(s_tir=True)  # type: ignore[untyped-decorator]
    def given(a: T.handle, b: T.handle, c: T.handle) -> None:
        A = T.match_buffer(a, (2,), "uint16", offset_factor=1)
        B = T.match_buffer(b, (lanes, 2), "uint16", offset_factor=1)
        C = T.match_buffer(c, (lanes,), "float32", offset_factor=1, scope="local")
        with T.sblock("root"):
            T.reads(C[0:lanes], A[0:2], B[0:lanes, 0:2])
            T.writes(C[0:lanes])
            C[T.ramp(T.int32(0), 1, lanes)] = T.call_extern(
                words,
                called,
                C.vload([0], words),
                T.reinterpret(A.vload([0], "uint16x2"), dtype="int32"),
                B.vload([0, 0], factors),
            )

    return wanted, given
