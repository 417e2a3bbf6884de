"""Hidden features: what only the compiled kernel tells, read from its assembly text.

ML^2Tuner (arXiv 2411.10764) takes loop counts, branches, partial tiles and output-store loops out of the compilation
for its accelerator.  Ours is for CPUs: how the code generator really used the vector registers (width, spills,
broadcasts) and what the loop looks like that does the multiplying.  x86-64 in AT&T or Intel syntax and AArch64 are
read, as LLVM prints them.  This is a reader of text, not a disassembler: any text gives finite numbers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

from cprune.targets.npu.lower import FACTS

HIDDEN = (
    "instructions",
    "fma",
    "loads",
    "stores",
    "broadcasts",
    "vector_bits",
    "vector_share",
    "spill_loads",
    "spill_stores",
    "branches",
    "loops",
    "depth",
    "calls",
    "hot_instructions",
    "hot_fma",
    "hot_loads",
    "hot_spills",
    "hot_fma_per_load",
    "hot_fma_share",
)
"""The names that `hidden` returns, in this order."""

_X86 = re.compile(r"%[a-z]|\b[re][abcd]x\b|\b[xyz]mm\d")
_LABEL = re.compile(r'^\s*("[^"]+"|[.\w$@]+):')
_NAME = re.compile(r"^[a-z][a-z0-9.]*$")
_PREFIXES = frozenset(("lock", "rep", "repe", "repz", "repne", "repnz", "notrack", "{evex}", "{vex}"))
_FMA = re.compile(
    r"^(v?fn?m(add|sub|la|ls)|vf?mla|vfmacc|[su]dot$|bfdot$|vdpbf16|vpdp)"  # fused
    r"|^(v?mul[ps][sd]|fmul)$"  # separate, on machines that have nothing fused
)
_WIDE = re.compile(r"\b([xyz])mm\d")
_SCALAR = re.compile(r"s[sd][lq]?$|^v?mov[dq]$|2u?si")
_NEON = re.compile(r"\bv\d+\.(?:16b|8h|4s|2d)|\bq\d+\b|\bz\d+\.")
_NEON_HALF = re.compile(r"\bv\d+\.(?:8b|4h|2s|1d)")
_ELEMENT = re.compile(r"\bv\d+\.[hsd]\[\d+\]")
_X86_READS = re.compile(r"^(v?u?comis|cmp|test|vptest|vtest|bt[lqw]?$|ptest|push|i?mul[bwlq]?$|i?div)")
_X86_WRITES = re.compile(r"^(v?p?mov|v?p?extract|v?pextr|set|v?compress|vp?scatter|vcvtps2ph|fi?st|pop)")
_X86_NO_ACCESS = re.compile(r"^(lea|nop|prefetch|clflush)")
_ARM_BRANCH = re.compile(r"^(b|b\.[a-z]+|cbn?z|tbn?z|br)$")
_ARM_FRAME = re.compile(r"^(mov|add)\s+x29,\s*sp\b")
_X86_FRAME = re.compile(r"^mov[lq]?\s+(%rsp,\s*%rbp|rbp,\s*rsp)")
_BITS = {"x": 128, "y": 256, "z": 512}


@dataclass
class _Code:
    """One entry an instruction in every list; `loops` are (first, last) instruction of every backward branch."""

    fma: list[int] = field(default_factory=list)
    load: list[int] = field(default_factory=list)
    store: list[int] = field(default_factory=list)
    spill_load: list[int] = field(default_factory=list)
    spill_store: list[int] = field(default_factory=list)
    vector: list[int] = field(default_factory=list)
    broadcasts: int = 0
    branches: int = 0
    calls: int = 0
    bits: int = 0
    functions: list[int] = field(default_factory=list)
    loops: list[tuple[int, int]] = field(default_factory=list)


def hidden(assembly: str) -> dict[str, float]:
    """Return the hidden features of one compiled kernel, by the names of HIDDEN.

    Counts are of instructions in the text, not of executions.  `fma` are multiply-adds (or multiplies of floats where
    nothing is fused); an instruction with a memory operand is counted as a load as well.  Spills are accesses to the
    stack.  A loop is a backward branch; `depth` is the deepest nesting.  `hot_…` looks at the innermost loop with the
    most multiply-adds (at the function with the most of them if no loop has any).

    A program of the simulated accelerator has no assembly: behind FACTS its session writes features of its own as JSON.
    """
    if assembly.startswith(FACTS):
        return {name: float(value) for name, value in json.loads(assembly[len(FACTS) :]).items()}
    code = _read(assembly)
    total = len(code.fma)
    first, last = _hottest(code)
    hot = slice(first, last + 1)
    hot_size = last + 1 - first
    hot_fma, hot_loads = sum(code.fma[hot]), sum(code.load[hot])
    values = (
        total,
        sum(code.fma),
        sum(code.load),
        sum(code.store),
        code.broadcasts,
        code.bits,
        sum(code.vector) / max(1, total),
        sum(code.spill_load),
        sum(code.spill_store),
        code.branches,
        len(code.loops),
        _depth(code.loops),
        code.calls,
        hot_size,
        hot_fma,
        hot_loads,
        sum(code.spill_load[hot]) + sum(code.spill_store[hot]),
        hot_fma / max(1, hot_loads),
        hot_fma / max(1, hot_size),
    )
    return dict(zip(HIDDEN, map(float, values), strict=True))


def _read(assembly: str) -> _Code:
    x86 = _X86.search(assembly) is not None
    att = "%" in assembly
    comment = "#" if x86 else "//"
    code = _Code(functions=[0])
    labels: dict[str, int] = {}
    jumps: list[tuple[int, str]] = []
    frame = False  # whether the frame pointer is one, and not a register like any other
    for raw in assembly.splitlines():
        line = raw.partition(comment)[0].strip()
        at_label = _LABEL.match(line)
        if at_label:
            label = at_label[1]
            labels[label] = len(code.fma)
            if not label.startswith((".", "L")):
                code.functions.append(len(code.fma))
                frame = False
            line = line[at_label.end() :].strip()
        if not line or line.startswith("."):
            continue
        name, _, operands = line.replace("\t", " ").partition(" ")
        while name in _PREFIXES:
            name, _, operands = operands.strip().partition(" ")
        if not _NAME.match(name):
            continue
        operands = operands.strip()
        frame = frame or (_X86_FRAME if x86 else _ARM_FRAME).match(f"{name} {operands}") is not None
        target = _x86(code, name, operands, att, frame) if x86 else _arm(code, name, operands, frame)
        if target:
            jumps.append((len(code.fma) - 1, target))
    ends: dict[int, int] = {}
    for index, target in jumps:
        start = labels.get(target)
        if start is not None and start <= index:
            ends[start] = max(index, ends.get(start, 0))
    code.loops = sorted(ends.items(), key=lambda loop: (loop[0], -loop[1]))
    return code


def _x86(code: _Code, name: str, operands: str, att: bool, frame: bool) -> str:
    """Count one x86 instruction; return the label it may jump to, or ""."""
    jump, call = name.startswith("j"), name.startswith("call")
    load = store = stack = 0
    if ("(" in operands or "[" in operands) and not (jump or call or _X86_NO_ACCESS.match(name)):
        parts = _operands(operands)
        there = [("(" in part or "[" in part) for part in parts]
        result = there[-1] if att else there[0]
        reads = bool(_X86_READS.match(name)) and len(parts) < 3
        store = int(result and not reads)
        load = int(sum(there) > result or (result and (reads or not _X86_WRITES.match(name))))
        bases = ("(%rsp", "(%esp", "[rsp", "[esp", *(("(%rbp", "[rbp") if frame else ()))
        stack = int(any(base in operands for base in bases))
    wide = [_BITS[letter] for letter in _WIDE.findall(operands)]
    scalar = _SCALAR.search(name) is not None and "broadcast" not in name
    vector = bool(wide) and not (scalar and max(wide) == 128)
    if vector:
        code.bits = max(code.bits, *wide)
    code.broadcasts += int("broadcast" in name or "{1to" in operands)
    code.branches += int(jump)
    code.calls += int(call)
    _append(code, name, load, store, stack, vector)
    return operands.split()[-1] if jump and operands else ""


def _arm(code: _Code, name: str, operands: str, frame: bool) -> str:
    """Count one AArch64 instruction; return the label it may jump to, or ""."""
    load, store = int(name.startswith("ld")), int(name.startswith("st"))
    stack = int("[sp" in operands or (frame and "[x29" in operands))
    branch = _ARM_BRANCH.match(name) is not None
    vector = _NEON.search(operands) is not None
    half = not vector and _NEON_HALF.search(operands) is not None
    if vector or half:
        code.bits = max(code.bits, 128 if vector else 64)
    by_element = _FMA.match(name) is not None and _ELEMENT.search(operands) is not None
    code.broadcasts += int(name == "dup" or name.startswith("ld1r") or by_element)
    code.branches += int(branch)
    code.calls += int(name in ("bl", "blr"))
    _append(code, name, load, store, stack, vector or half)
    return operands.split()[-1] if branch and operands else ""


def _append(code: _Code, name: str, load: int, store: int, stack: int, vector: bool) -> None:
    code.fma.append(int(_FMA.match(name) is not None))
    code.load.append(load)
    code.store.append(store)
    code.spill_load.append(load & stack)
    code.spill_store.append(store & stack)
    code.vector.append(int(vector))


def _operands(text: str) -> list[str]:
    """Split at the commas outside brackets."""
    parts, depth, start = [], 0, 0
    for index, letter in enumerate(text):
        if letter in "([":
            depth += 1
        elif letter in ")]":
            depth -= 1
        elif letter == "," and depth <= 0:
            parts.append(text[start:index])
            start = index + 1
    return [*parts, text[start:]]


def _hottest(code: _Code) -> tuple[int, int]:
    """Return (first, last) instruction of the innermost loop, else of the function, with the most multiply-adds."""
    sums = [0, *accumulate(code.fma)]

    def heat(span: tuple[int, int]) -> tuple[int, int]:
        return (sums[span[1] + 1] - sums[span[0]], span[0] - span[1])  # of equals the shorter

    best = max(_innermost(code.loops), key=heat, default=None)
    if best is not None and (heat(best)[0] or not sums[-1]):
        return best
    starts = [*code.functions, len(code.fma)]
    bodies = [(a, b - 1) for a, b in pairwise(starts) if b > a]
    return max(bodies, key=heat, default=(0, -1))


def _innermost(loops: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return those of the sorted loops that hold no other one."""
    innermost = []
    for index, (start, end) in enumerate(loops):
        for other_start, other_end in loops[index + 1 :]:
            if other_start > end:
                innermost.append((start, end))
                break
            if other_end <= end:
                break
        else:
            innermost.append((start, end))
    return innermost


def _depth(loops: Sequence[tuple[int, int]]) -> int:
    """Return how deep the sorted loops are nested."""
    deepest, around = 0, list[int]()
    for start, end in loops:
        while around and around[-1] < start:
            around.pop()
        around.append(end)
        deepest = max(deepest, len(around))
    return deepest
