"""What a record that comes from elsewhere must look like before it goes into a store.

A record is believed when a task is tuned: its candidate is built and run here.  Knobs only choose numbers of our own
sketches.  A trace is a program for TVM's scheduler, and TVM knows annotations that compile whatever text they hold
(`pragma_import_llvm`), so a trace may hold only the instructions that MetaSchedule's rules for a CPU write.
"""

from __future__ import annotations

import json
import re
from typing import Any

from cprune.tuner.records import Record

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


def examine(record: Record) -> None:
    """Raise ValueError, saying what and where, if `record` holds anything that a store of ours would not."""
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
    task = _canonical("task", record.task, TASK_CHARS)
    if not (isinstance(task, list) and [type(part) for part in task] == [str, dict]):
        raise ValueError("task: not [KIND, {…}]")
    candidate = _canonical("candidate", record.candidate, CANDIDATE_CHARS)
    if not isinstance(candidate, dict):
        raise ValueError("candidate: not an object of knobs")
    for name, value in candidate.items():
        if not isinstance(value, (str, int, float)):
            raise ValueError(f"candidate: the knob {name[:40]!r} is neither a number nor a word")
    if "trace" in candidate:
        _examine_trace(candidate["trace"])
    if record.hidden and not isinstance(_canonical("hidden", record.hidden, HIDDEN_CHARS), dict):
        raise ValueError("hidden: not an object of features")


def strict_json(text: str | bytes) -> Any:
    """Return the value of JSON text, without the numbers that JSON lacks; ValueError whatever is wrong with it."""
    try:
        return json.loads(text, parse_constant=_no_number)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _no_number(name: str) -> Any:
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


def _examine_trace(text: Any) -> None:
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


def _harmless(attributes: Any) -> bool:
    if not (isinstance(attributes, list) and len(attributes) == 1 and isinstance(attributes[0], str)):
        return False
    return attributes[0] in _ANNOTATIONS or attributes[0].startswith("meta_schedule.")
