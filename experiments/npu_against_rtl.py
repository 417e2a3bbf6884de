"""The simulated accelerator against the RTL of VTA: cycles, and what goes through the port.

    python experiments/npu_against_rtl.py vta_rtl_cycles_2.jsonl
    python experiments/npu_against_rtl.py vta_rtl_cycles_1.jsonl --fit

A line of the file is one configuration of a layer of ResNet-18: `layer`, the knobs `c`, `why` a static rule objects to
it, and `rtl` what VTA's own hardware description did in a cycle-accurate simulation with an ideal memory.  Those that
were not run there are left out here; those that did not end within the limit must not end here either.

Every program is lowered from TIR by TVM and walked, so instructions, beats and bursts are compared as well: they are
counted, not fitted.  VTA's programs have five instructions more for one thread and four for each further one
(micro-operations, first and last tokens): these are added to ours.  `--fit` looks for the constants of
`cprune.targets.npu.machine.Costs` that make the mean error of this file smallest, an error of more than MOST counted as
that; the ones that are there were found with the first file alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from cprune.targets.npu.cycles import DONE, LIMIT, Cycles, cycles_of
from cprune.targets.npu.lower import lowered
from cprune.targets.npu.machine import VTA, Costs
from cprune.targets.npu.stream import Stream
from cprune.targets.npu.walk import stream_of
from cprune.tuner.programs import sketch_integers, sketch_npu
from cprune.tuner.programs.space import Candidate
from cprune.tuner.programs.workload import QuantizedConv2d

LAYERS = {
    # name: height and width, channels in and out, kernel, stride
    "C1": (56, 64, 64, 3, 1),
    "C2": (56, 64, 64, 1, 1),
    "C3": (56, 64, 128, 3, 2),
    "C4": (56, 64, 128, 1, 2),
    "C5": (28, 128, 128, 3, 1),
    "C6": (28, 128, 256, 3, 2),
    "C7": (28, 128, 256, 1, 2),
    "C8": (14, 256, 256, 3, 1),
    "C9": (14, 256, 512, 3, 2),
    "C10": (14, 256, 512, 1, 2),
    "C11": (7, 512, 512, 3, 1),
}
"""ResNet-18 at 224, but for its first layer, by the names of the files."""
MADE_UP = {
    "M1": (28, 96, 192, 3, 1),
    "M2": (20, 64, 96, 5, 1),
    "M3": (40, 48, 80, 1, 1),
    "M4": (10, 320, 160, 3, 2),
}
"""Layers of no network, for choosing settings by."""
MOST = 0.08
KNOBS = {
    "th": "tile_h",
    "tw": "tile_w",
    "tci": "tile_ci",
    "tco": "tile_co",
    "ont": "threads_co",
    "hnt": "threads_h",
}


@dataclass(frozen=True, eq=False)
class Row:
    """A configuration with what the RTL did, and its program here."""

    layer: str
    knobs: dict[str, int]
    rtl: dict[str, Any]
    stream: Stream


def workload(layer: str) -> QuantizedConv2d:
    """Return a layer as a workload of the accelerator."""
    size, channels, out, kernel, stride = {**LAYERS, **MADE_UP}[layer]
    p = kernel // 2
    return QuantizedConv2d(
        1, channels, size, size, out, (kernel,) * 2, (stride,) * 2, (p,) * 4, (1, 1), 1, False, "none", 16, 16,
        "uint8", "npu",
    )  # fmt: skip


def scheduled(layer: str, knobs: dict[str, int], shift: int) -> Any:
    """Return the program that VTA's compiler would schedule: sums are shifted and cut to bytes, in three passes."""
    from tvm import te, tirx
    from tvm.s_tir import Schedule

    w = workload(layer)
    x_shape, weight_shape, *_, out_shape = w.arguments()
    x, weight = te.placeholder(x_shape, "uint8", name="x"), te.placeholder(weight_shape, "int8", name="weight")
    sums = sketch_integers.sums_of(w, x, weight, tirx.const(0, "uint8"))

    def finish(*at: Any) -> Any:
        value = tirx.shift_right(sums(*at), tirx.const(shift, "int32"))
        return tirx.max(tirx.min(value, tirx.const(127, "int32")), tirx.const(-128, "int32")).astype("int8")

    out = te.compute(out_shape, finish, name="out")
    function = te.create_prim_func([x, weight, out]).with_attr("global_symbol", "main")
    schedule = Schedule(function.with_attr("tirx.noalias", True))
    sketch_npu.schedule(schedule, w, Candidate.of(**{KNOBS[k]: v for k, v in knobs.items() if k in KNOBS}))
    return schedule.mod


def read(path: Path) -> list[Row]:
    """Return the configurations of a file that the RTL ran."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        values = json.loads(line)
        if "rtl" in values:
            module = scheduled(values["layer"], values["c"], values["c"]["shr"])
            rows.append(Row(values["layer"], values["c"], values["rtl"], stream_of(lowered(module), VTA)))
    return rows


def errors(rows: Sequence[Row], costs: Costs) -> list[float]:
    """Return the relative error of every configuration that ended, with its sign."""
    machine = replace(VTA, costs=costs, limit_cycles=10**9)
    ended = [row for row in rows if row.rtl["finished"]]
    return [cycles_of(row.stream, machine).cycles / row.rtl["cycles"] - 1 for row in ended]


def fit(rows: Sequence[Row], start: Costs) -> Costs:
    """Return constants that make the mean error of these configurations smallest."""
    from scipy.optimize import minimize

    def loss(values: Any) -> float:
        if (values < 0).any():
            return 1.0
        return float(np.mean(np.minimum(np.abs(errors(rows, Costs(*map(float, values)))), MOST)))

    best = np.array(astuple(start))
    for _ in range(3):
        best = minimize(loss, best, method="Nelder-Mead", options={"maxfev": 2000, "xatol": 0.01, "fatol": 1e-6}).x
    return Costs(*(round(float(value), 2) for value in best))


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Return Spearman's."""
    ranks = [np.argsort(np.argsort(values)) for values in (a, b)]
    return float(np.corrcoef(*ranks)[0, 1])


def table(rows: Sequence[Row], costs: Costs) -> list[str]:
    """Return what is printed of these configurations."""
    machine = replace(VTA, costs=costs)
    found: list[Cycles] = [cycles_of(row.stream, machine) for row in rows]
    ended = [i for i, row in enumerate(rows) if row.rtl["finished"]]
    wrong_end = [i for i, row in enumerate(rows) if (found[i].end == DONE) != bool(row.rtl["finished"])]
    relative = [found[i].cycles / rows[i].rtl["cycles"] - 1 for i in ended]
    counted = {
        "instructions": [(len(row.stream) + 4 * row.stream.threads + 1) / row.rtl["insns"] - 1 for row in rows],
        "beats read": [found[i].read_beats / rows[i].rtl["rd_beats"] - 1 for i in ended],
        "bursts read": [found[i].read_bursts / rows[i].rtl["rd_bursts"] - 1 for i in ended],
        "beats written": [found[i].write_beats / rows[i].rtl["wr_beats"] - 1 for i in ended],
        "bursts written": [found[i].write_bursts / rows[i].rtl["wr_bursts"] - 1 for i in ended],
    }
    lines = [f"{len(rows)} configurations, {len(ended)} ended, {len(wrong_end)} end otherwise here"]
    for i in wrong_end:
        what = "the limit" if found[i].end == LIMIT else "a deadlock" if found[i].end != DONE else "the end"
        lines.append(f"  {rows[i].layer} {rows[i].knobs}: here {what}, {found[i].cycles:,.0f} cycles")
    for name, values in counted.items():
        lines.append(f"{name:16} off by {100 * statistics.mean(map(abs, values)):.3f} % in the mean, worst "
                     f"{100 * max(values, key=abs):+.2f} %")  # fmt: skip
    worst = max(range(len(relative)), key=lambda i: abs(relative[i]))
    lines.append(
        f"cycles           off by {100 * statistics.mean(map(abs, relative)):.2f} % in the mean, worst "
        f"{100 * relative[worst]:+.1f} % ({rows[ended[worst]].layer} {rows[ended[worst]].knobs})"
    )
    pairs = ([found[i].cycles for i in ended], [rows[i].rtl["cycles"] for i in ended])
    lines.append(f"rank correlation {rank_correlation(*pairs):.4f}")
    return lines


def main() -> int:
    """Read, fit if asked to, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cycles", type=Path, help="a file of configurations with what the RTL did")
    parser.add_argument("--fit", action="store_true", help="look for the constants that suit this file")
    args = parser.parse_args()
    rows, costs = read(args.cycles), VTA.costs
    if args.fit:
        costs = fit(rows, costs)
        print("Costs(" + ", ".join(f"{f.name}={v}" for f, v in zip(fields(costs), astuple(costs), strict=True)) + ")")
    print("\n".join(table(rows, costs)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
