"""What a record that comes from elsewhere must look like before it goes into a store.

A record is believed when a task is tuned: models learn from it, and its candidate is built and run here.  So a workload
must have a shape, and a knob a number that a sketch could have.  A trace is a program for TVM's scheduler, and TVM
knows annotations that compile whatever text they hold (`pragma_import_llvm`), so a trace may hold only the instructions
that MetaSchedule's rules for a CPU write.

What is sound but of another version of cprune (an operator or a knob that this one lacks) is no reason to refuse
anything else: it is of no use here, and left out.
"""

from __future__ import annotations

import json
import re
from dataclasses import fields
from typing import Any, NoReturn, get_args, get_origin, get_type_hints

from cprune.tuner.programs.workload import KINDS, from_key
from cprune.tuner.records.record import Record

TASK_CHARS = 4_000_000  # the PrimFunc of an operator without a sketch, as JSON
CANDIDATE_CHARS = 400_000  # a trace
HIDDEN_CHARS = 100_000
REASON_CHARS = 5_000  # a store keeps 4,000 and says how many it left out
RUNS = 10_000
HOUR_S = 3600.0
_LATEST = 1e11  # the year 5138: later is not a date but a mistake

_TARGET = re.compile(r"[0-9A-Za-z._-]{1,128}")
_SPACE = re.compile(r"[0-9a-z._-]{1,32}")

INSTRUCTIONS = frozenset(
    (
        *("GetSBlock", "GetLoops", "GetChildBlocks", "GetConsumers", "GetProducers", "GetOutputBlocks"),
        *("SamplePerfectTile", "SampleCategorical", "SampleComputeLocation"),
        *("Split", "Fuse", "Reorder", "Parallel", "Vectorize", "Unroll", "AddUnitLoop"),
        *("ComputeAt", "ReverseComputeAt", "ComputeInline", "ReverseComputeInline"),
        *("CacheRead", "CacheWrite", "SetScope", "StorageAlign", "RFactor", "DecomposeReduction"),
        *("Annotate", "Unannotate", "EnterPostproc"),
    )
)
_ANNOTATIONS = ("pragma_auto_unroll_max_step", "pragma_unroll_explicit")


KNOBS = {
    "conv2d": (
        {"oc_tile", "oh_tile", "ow_tile", "rows", "parallel", "pad", "unroll"},
        {"winograd", "oc_tile", "p_tile", "rows", "oc_groups"},
    ),
    "dense": ({"oc_tile", "n_tile", "k_tile", "parallel"},),
}
"""The knobs of the sketches of a kind of task; any kind may have a plain schedule or a trace."""
_ANY_KIND = ({"parallel"}, {"trace"})
_WORDS = ("parallel", "pad", "trace")
_MOST = 1 << 31


class OtherVersion(ValueError):
    """A record that is sound, as far as one can tell, and of no use to this version of cprune."""


def examine(record: Record) -> None:
    """Raise ValueError, saying what and where, if `record` holds anything that a store of ours would not.

    It is an OtherVersion if all that is wrong is an operator or a knob that this cprune does not have.
    """
    try:
        _examine(record)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _examine(record: Record) -> None:
    if not _TARGET.fullmatch(record.target):
        raise ValueError(f"target: {record.target[:40]!r} is no fingerprint")
    if not _SPACE.fullmatch(record.space):
        raise ValueError(f"space: {record.space[:40]!r} is no name of a search space")
    if len(record.reason) > REASON_CHARS:
        raise ValueError(f"reason: {len(record.reason)} characters, more than {REASON_CHARS}")
    if len(record.runs_s) > RUNS or any(run > HOUR_S for run in record.runs_s):
        raise ValueError(f"runs_s: more than {RUNS} runs, or one of more than an hour")
    if not 0 <= record.created < _LATEST:  # not true of nan either
        raise ValueError(f"created: {record.created} is no time in unix seconds")
    kind = _examine_task(record.task)
    candidate = _canonical("candidate", record.candidate, CANDIDATE_CHARS)
    if not isinstance(candidate, dict):
        raise ValueError("candidate: not an object of knobs")
    _examine_knobs(kind, candidate)
    if "trace" in candidate:
        _examine_trace(candidate["trace"])
    hidden = _canonical("hidden", record.hidden or "{}", HIDDEN_CHARS)
    if not isinstance(hidden, dict) or any(type(value) not in (int, float) for value in hidden.values()):
        raise ValueError("hidden: not an object of numbers")


def strict_json(text: str | bytes) -> Any:
    """Return the value of JSON text, without the numbers that JSON lacks; ValueError whatever is wrong with it."""
    try:
        return json.loads(text, parse_constant=_no_number)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number in JSON")


def _canonical(what: str, text: str, limit: int) -> Any:
    """Return the value of `text`, which must be spelled as we spell it: the spelling is the key of a record."""
    if len(text) > limit:
        raise ValueError(f"{what}: {len(text)} characters, more than {limit}")
    try:
        value = strict_json(text)
    except ValueError as error:
        raise ValueError(f"{what}: not JSON ({error})") from error
    if json.dumps(value, sort_keys=True, separators=(",", ":")) != text:
        raise ValueError(f"{what}: not canonical JSON (sorted keys, no spaces)")
    return value


def _examine_task(text: str) -> str:
    """Return the kind of a task whose workload has fields of the right kinds, and arguments of a size."""
    task = _canonical("task", text, TASK_CHARS)
    if not (isinstance(task, list) and [type(part) for part in task] == [str, dict]):
        raise ValueError("task: not [KIND, {…}]")
    kind, values = task
    if kind not in KINDS:
        raise OtherVersion(f"task: this cprune knows no {kind[:40]!r}")
    if values.keys() != {field.name for field in fields(KINDS[kind])}:
        raise OtherVersion(f"task: a {kind} of another version of cprune")
    workload = from_key(text)
    for name, hint in get_type_hints(KINDS[kind]).items():
        if not _fits(getattr(workload, name), hint):
            raise ValueError(f"task: {name} is of the wrong kind")
    try:
        sizes = [size for shape in workload.arguments() for size in shape]
        sound = all(0 < size < _MOST for size in sizes) and 0 <= workload.macs < _MOST**2
    except (ArithmeticError, ValueError):  # a division by a stride of 0, a block of a value without channels
        sound = False
    if not sound:
        raise ValueError("task: its arguments have no size")
    return str(kind)


def _fits(value: object, hint: object) -> bool:
    """Tell whether `value` is what the field of a workload holds: plain numbers, words, and tuples of those."""
    if hint is Any:
        return True
    if get_origin(hint) is not tuple:
        return type(value) is hint and (type(value) is not int or 0 <= value < _MOST)
    if not isinstance(value, tuple):
        return False
    parts = get_args(hint)
    if parts[-1] is Ellipsis:
        return all(_fits(item, parts[0]) for item in value)
    return len(value) == len(parts) and all(_fits(item, part) for item, part in zip(value, parts, strict=True))


def _examine_knobs(kind: str, candidate: dict[str, object]) -> None:
    for name, value in candidate.items():
        least = 0 if name == "unroll" else 1
        word = isinstance(value, str)
        if not word and not (type(value) is int and least <= value < _MOST):
            raise ValueError(f"candidate: the knob {name[:40]!r} is neither a word nor a number that a loop could have")
        if name in _WORDS and not word:
            raise ValueError(f"candidate: the knob {name!r} is a word")
    if candidate.keys() not in (*KNOBS.get(kind, ()), *_ANY_KIND):
        raise OtherVersion(f"candidate: a {kind} of this cprune has other knobs")
    for name in candidate.keys() - set(_WORDS):
        if isinstance(candidate[name], str):
            raise ValueError(f"candidate: the knob {name!r} is a number")


def _examine_trace(text: str) -> None:
    try:
        instructions, _ = strict_json(text)
        named = [(name, attributes) for name, _, attributes, _ in instructions]
    except (ValueError, TypeError) as error:
        raise ValueError("candidate: its trace is no trace of TVM") from error
    for name, attributes in named:
        if not isinstance(name, str) or name not in INSTRUCTIONS:
            raise ValueError(f"candidate: its trace holds the instruction {str(name)[:40]!r}, which is not allowed")
        if name in ("Annotate", "Unannotate") and not _harmless(attributes):
            raise ValueError(f"candidate: its trace holds the annotation {str(attributes)[:60]}, which is not allowed")


def _harmless(attributes: object) -> bool:
    if not (isinstance(attributes, list) and len(attributes) == 1 and isinstance(attributes[0], str)):
        return False
    return attributes[0] in _ANNOTATIONS or attributes[0].startswith("meta_schedule.")
