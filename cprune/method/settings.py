"""The settings of a run, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from cprune.targets.errors import UserError, unknown
from cprune.targets.plain import read


@dataclass(frozen=True)
class Settings:
    """How a run decides.

    The defaults of `beta` and `max_steps` are those of CPrune's released code.  Its `alpha` is 0.995; ours is lower,
    since one coarse step of a small network often costs half a point that later training brings back, and `min_acc`
    holds in any case.

    Attributes:
        min_acc: accuracy on the images of the report that must be kept, in [0, 1]; None: `max_drop` below the start.
        max_drop: accuracy that may be lost.
        max_latency_ms, speedup, max_params, max_macs: limits; the most accurate model that meets them is looked for,
            without any the fastest that keeps the accuracy.
        confidence: that no more is lost on new images, 0.95 say; None: it is kept on the images that certify.
        trials: candidates per task for the model before and after pruning.
        loop_trials: candidates per task whose shape changed, while pruning.
        alpha: a step must keep this share of the accuracy before it.
        beta: a step must bring the latency below this share of the latency before it.
        importance: elimination, l1, l2, fpgm, taylor or random; None: elimination with the method tables, else l1.
        method: tables; cprune, which is Algorithm 1 of CPrune; uniform, fpgm, one-shot, one-shot-inner or netadapt.
        precision: of the pruned model: fp32, bf16, fp16, int8, or auto: with the method tables
            int8, else 16 bits, where the model as it is loses little in it and becomes clearly faster.
        estimate: decide by estimated latencies of tasks that nobody tuned, and tune and time only what is delivered or
            gone on from; for devices that are slow to reach.
        train_time_s: seconds of training in all; None: what suits model, data and machine, with the method cprune
            what its epochs and steps take.
        one_shot_share: of the channels that the methods one-shot and one-shot-inner remove.
        step_join: how the steps of a program's stages are joined: lcm (the paper) or max (the released code).
        short_epochs, short_lr: training after every step.
        retry_epochs: one more training, with the same rate, before a step is given up that is a little too inaccurate
            (2 % of what it needs at most); 0: none.
        long_epochs, long_lr: training at the end.
        long_varied: it moves and flips the images; pays for many images (50,000), not for few (8,000).
        distil: fine-tuning listens to the unpruned model.
        max_sparsity: no layer loses more than this share of its channels.
        max_steps: tried steps, whatever came of them.
        ignore: layers whose output channels stay, by name (with * and ?) or by type (Conv2d, Linear, …).
        whole_heads: of attention heads are removed, not the width of all heads.
        strict: a channel that cannot be pruned, for another reason than being the model's output, is an error.
        rounds, run_ms: interleaved rounds of a comparison, and how long each model runs in a round.
        seed: everything random follows from it.
    """

    min_acc: float | None = None
    max_drop: float = 0.01
    max_latency_ms: float | None = None
    speedup: float | None = None
    max_params: int | None = None
    max_macs: int | None = None
    confidence: float | None = None
    trials: int = 32
    loop_trials: int = 8
    alpha: float = 0.99
    beta: float = 0.99
    importance: str | None = None
    method: str = "tables"
    precision: str = "auto"
    estimate: bool = False
    train_time_s: float | None = None
    one_shot_share: float = 0.5
    step_join: str = "lcm"
    short_epochs: float = 1.0
    short_lr: float = 0.03
    retry_epochs: float = 3.0
    long_epochs: float = 12.0
    long_lr: float = 0.05
    long_varied: bool = False
    distil: bool = True
    max_sparsity: float = 0.8
    max_steps: int = 100
    rounds: int = 15
    run_ms: float = 10.0
    seed: int = 0
    ignore: tuple[str, ...] = ()
    whole_heads: bool = False
    strict: bool = False

    def __post_init__(self) -> None:
        """Refuse settings that make no sense.  Raises UserError."""
        for name in SHARES:
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise UserError(f"{option(name)} {value:g} is no share", _TYPE_A_SHARE)
        if self.confidence is not None and not 0.5 <= self.confidence < 1:
            raise UserError(f"{option('confidence')} {self.confidence:g} is not from 50% to 99.9%", "Type 95%.")
        for name in ("max_latency_ms", "max_params", "max_macs"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise UserError(f"{option(name)} {getattr(self, name):g}: it must be more than 0")
        if self.speedup is not None and not self.speedup > 1:
            raise UserError(f"--speedup {self.speedup:g}: it must be more than 1", "Type 2x, for half of the latency.")
        for name in ("trials", "loop_trials", "rounds"):
            if getattr(self, name) < 1:
                raise UserError(f"{option(name)} {getattr(self, name)}: at least 1 is needed")
        for name in ("short_epochs", "short_lr", "retry_epochs", "long_epochs", "long_lr", "max_steps"):
            if not getattr(self, name) >= 0:
                raise UserError(f"{option(name)} {getattr(self, name)}: it cannot be negative")
        if not self.run_ms > 0:
            raise UserError(f"{option('run_ms')} {self.run_ms:g}: it must be more than 0, for example 10")
        if self.train_time_s is not None and not self.train_time_s > 0:
            raise UserError(f"{option('train_time')} {self.train_time_s:g}: it must be more than 0", "Type 20m.")
        if self.precision not in PRECISIONS:
            raise unknown("precision", self.precision, PRECISIONS)
        if self.method not in METHODS:
            raise unknown("method", self.method, METHODS)
        if self.importance is not None and self.importance not in IMPORTANCE:
            raise unknown("importance", self.importance, IMPORTANCE)
        if self.step_join not in ("lcm", "max"):
            raise unknown("step join", self.step_join, ("lcm", "max"))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for `run.json`."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Settings:
        """Return the settings of a `to_dict` or of a TOML file, where a share may also be a text, "70%".

        Raises UserError for a name that is none, and for a value that makes no sense.
        """
        shares: dict[str, float] = {}
        for name in SHARES:
            value = values.get(name)
            if isinstance(value, str):
                try:
                    shares[name] = share(value)
                except UserError:
                    raise UserError(f"the setting {name} must be a share, not {value!r}", _TYPE_A_SHARE) from None
        return read(cls, {**values, **shares})


SHARES = ("min_acc", "max_drop", "confidence", "alpha", "beta", "max_sparsity", "one_shot_share")
_TYPE_A_SHARE = "Type a number from 0 to 1, or 70%."
METHODS = ("tables", "cprune", "uniform", "fpgm", "one-shot", "one-shot-inner", "netadapt")
PRECISIONS = ("auto", "fp32", "fp16", "bf16", "int8")
IMPORTANCE = ("elimination", "l1", "l2", "fpgm", "taylor", "random")


def option(name: str) -> str:
    """Return the command-line option of a setting."""
    return "--" + name.replace("_", "-")


def drop(text: str) -> float:
    """Return 0.01 for "1%" and for "0.01".  UserError for what `share` refuses, and for a plain 1 that means points."""
    value = share(text)
    if value >= 0.5 and not text.endswith("%"):
        raise UserError(f"--max-drop {text} would give away {value:.0%} of the accuracy", "One point is 1%, or 0.01.")
    return value


def share(text: str) -> float:
    """Return 0.7 for "0.7" and for "70%".  Raises UserError for anything else."""
    try:
        value = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        raise UserError(f"{text!r} is no accuracy", "Type a number like 0.7, or 70%.") from None
    if not 0 <= value <= 1:
        raise UserError(f"{text!r} is not between 0 and 1", "Type a number like 0.7, or 70%.")
    return value
