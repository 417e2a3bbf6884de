"""The models of a run that are worth choosing from: `front.json` in its folder.  Light: only the standard library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from cprune.files import read_json, write_json
from cprune.targets.errors import UserError
from cprune.targets.interval import Interval
from cprune.targets.plain import read, to_plain

PointStatus = Literal["forecast", "trained", "certified"]


@dataclass(frozen=True)
class FrontPoint:
    """One model: it is thought to exist (forecast), exists (trained), or passed on the images that certify.

    Attributes:
        status: one of the three.
        latency_ms: as measured; of a forecast its three numbers are one.
        speedup: against the unpruned model.
        loss: accuracy that is lost against the unpruned model, with its standard error where it was measured.
        params, macs: its size.
        gone: how many residual branches it lacks.
        widths: output channels of the layers that are narrower than in the unpruned model.
        step: its number in the journal; None for a forecast.
        damage: KL divergence from the unpruned model's predictions before any training, as forecast; None: not known.
        meets: it meets the limits that were asked for; None where there were none.
        delivered: it is the model of the run folder.
        afterwards: it was asked for when the run was over, and certified after all others.
    """

    status: PointStatus
    latency_ms: Interval
    speedup: float
    loss: float
    params: int
    macs: int
    gone: int
    widths: Mapping[str, int]
    se: float | None = None
    step: int | None = None
    damage: float | None = None
    meets: bool | None = None
    delivered: bool = False
    afterwards: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return plain values; the latency of a forecast is one number."""
        values = {name: to_plain(value) for name, value in vars(self).items()}
        if self.status == "forecast":
            values["latency_ms"] = float(f"{self.latency_ms.median:.6g}")
        return values


@dataclass(frozen=True)
class Unpruned:
    """The model as it was, tuned: latency, accuracy on the images of the report, size."""

    latency_ms: Interval
    accuracy: float
    params: int
    macs: int


@dataclass(frozen=True)
class Front:
    """The unpruned model and the points, slowest first; `estimate` says where the loss of a forecast comes from."""

    unpruned: Unpruned
    points: tuple[FrontPoint, ...]
    estimate: str = ""

    def with_point(self, point: FrontPoint) -> Front:
        """Return it with a point more, in the place of the one with the same step if there was one."""
        others = [one for one in self.points if one.step is None or one.step != point.step]
        return replace(self, points=tuple(sorted((*others, point), key=lambda one: one.speedup)))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for `front.json`."""
        return {
            "unpruned": to_plain(self.unpruned),
            "points": [point.to_dict() for point in self.points],
            "estimate": self.estimate,
        }


def write_front(path: Path, front: Front) -> None:
    """Write `front.json`, whole.  Raises BrokenWorld if the disk is full."""
    write_json(path, front.to_dict())


def read_front(path: Path) -> Front | None:
    """Return what `write_front` wrote, None if there is none.  Raises UserError for a file that is damaged."""
    values = read_json(path)
    if values is None:
        return None
    points = values.get("points")
    if not isinstance(points, list) or not all(isinstance(point, dict) for point in points):
        raise UserError(f"{path}: the field points must be a list of named values", "Put a copy of the file back.")
    spread = [{**point, "latency_ms": _interval(point.get("latency_ms"))} for point in points]
    return read(Front, {**values, "points": spread}, "field", str(path))


def _interval(latency_ms: object) -> object:
    """Return the three numbers of a latency, also of a forecast, which is one."""
    if isinstance(latency_ms, (int, float)):
        return dict.fromkeys(("median", "low", "high"), latency_ms)
    return latency_ms
