"""What a run leaves behind beside its model: `result.json`, `analysis.json`, and the versions it was made with."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from cprune.method.ending import Outcome
from cprune.method.plan import widths
from cprune.method.settings import Settings
from cprune.method.state import Version
from cprune.method.task_table import task_table
from cprune.network.precision import precision
from cprune.targets.interval import Interval
from cprune.targets.plain import to_plain
from cprune.tuner.programs.workload import HalfConv2d, QuantizedConv2d, Workload


def result_of(outcome: Outcome, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the contents of `result.json`.

    Accuracies and the loss, image by image against the unpruned model, are on the images of the report; the bound is on
    the loss on new images, from the images that certify.
    """
    ratio = outcome.comparison.ratio
    speedup = Interval(1 / ratio.median, 1 / ratio.high, 1 / ratio.low)
    (first, last), choice = outcome.sizes, outcome.choice
    return {
        "status": outcome.status,
        "model": config["model"],
        "target": config["target"]["name"],
        "precision": _precision(outcome),
        "accuracy": {
            "required": outcome.start.required,
            "before": outcome.start.report,
            "after": choice.accuracy,
            "images": to_plain(outcome.start.images),
            "loss": to_plain(choice.loss),
            "bound": to_plain(choice.bound),
            "memorised": outcome.start.memorised,
        },
        "latency_ms": {
            "before": outcome.comparison.old_ms.to_dict(),
            "after": outcome.comparison.new_ms.to_dict(),
        },
        "speedup": speedup.to_dict(),
        "macs": {"before": first.macs, "after": last.macs},
        "params": {"before": first.params, "after": last.params},
        "trials": outcome.trials,
        "seconds": outcome.seconds,
        "steps": outcome.counts,
        "limits": to_plain(outcome.limits),
        "forecasts": to_plain(outcome.forecasts),
        "notes": list(outcome.notes),
    }


def _precision(outcome: Outcome) -> dict[str, Any]:
    """Return what both models compute in, and what fewer bits without pruning brought if the final one has them."""
    after = precision(outcome.network)
    return {"before": "fp32", "after": after, "alone": None if after == "fp32" else round(1 / outcome.start.share, 3)}


def analysis(before: Version, after: Version, settings: Settings, threads: int) -> dict[str, Any]:
    """Return the contents of `analysis.json`: tasks, channels, the bits of the final weights, and what is frozen."""
    old, new = widths(before.graph), widths(after.graph)
    bits = {layer: _bits(c.workload) for c in after.tuned.lowered.calls for layer in c.layers}
    return {
        "tasks_before": [asdict(row) for row in task_table(before.tuned, before.graph, settings.step_join, threads)],
        "tasks_after": [asdict(row) for row in task_table(after.tuned, after.graph, settings.step_join, threads)],
        "channels": [
            {"layer": n, "before": w, "after": new.get(n, w), "bits": bits.get(n, 32)} for n, w in old.items()
        ],
        "frozen": [{"layers": list(f.layers), "reason": f.reason, "channels": f.channels} for f in before.graph.frozen],
        "groups": [{"id": g.id, "channels": g.channels, "layers": list(g.layers)} for g in before.graph.groups],
    }


def _bits(workload: Workload) -> int:
    return 8 if isinstance(workload, QuantizedConv2d) else 16 if isinstance(workload, HalfConv2d) else 32


def versions() -> dict[str, str]:
    """Return the versions of what a result depends on."""
    found = {"python": platform.python_version(), "system": platform.platform()}
    for package in ("cprune", "torch", "apache-tvm", "apache-tvm-ffi", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed as a package"
    return found
