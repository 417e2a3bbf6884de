"""Our records as a database of TVM's MetaSchedule: two files that TVM's own `JSONDatabase` loads.

A workload there is the module before any schedule, and a record the trace of a schedule with its timing.  Candidates
that failed are left out: MetaSchedule would take them for programs of 1e10 seconds.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cprune.targets.errors import BrokenWorld, UserError, first_line
from cprune.targets.target import find
from cprune.tuner.programs import program as programs
from cprune.tuner.programs.space import Candidate
from cprune.tuner.programs.workload import from_key
from cprune.tuner.records.record import Record

FILES = ("database_workload.json", "database_tuning_record.json")


@dataclass(frozen=True)
class Exported:
    """How many records of how many tasks were written; how many had failed; what else was left out, by reason."""

    records: int
    tasks: int
    failed: int
    left_out: Mapping[str, int]


def compilers(targets: Iterable[str], compiler: str | None) -> dict[str, str]:
    """Return the TVM target, as JSON text, of each of these fingerprints.

    This machine's are known, whatever their number of threads; any other must be said by `compiler`.  Raises UserError
    if it is not, if it is no target of TVM, or if it is said for more than one fingerprint.
    """
    targets = list(targets)
    if compiler is not None:
        if len(targets) > 1:
            raise UserError(
                f"--target-tvm describes one target, and there are records of {len(targets)}: {', '.join(targets)}",
                "Choose one with --target FINGERPRINT.",
            )
        return dict.fromkeys(targets, _valid(compiler))
    cores = os.cpu_count() or 1
    here = {}
    for threads in range(1, cores + 1):
        try:
            target = find("local", threads)
        except UserError:  # this process may use fewer
            break
        here[target.fingerprint] = target.compiler
    unknown = [target for target in targets if target not in here]
    if unknown:
        raise UserError(
            f"what does TVM call the target {unknown[0]}? It is not this machine",
            f"""Say it with --target {unknown[0]} --target-tvm '{{"kind":"llvm","mcpu":"…","num-cores":4}}', or """
            "choose this machine's records with --target.",
        )
    return {target: here[target] for target in targets}


def write_folder(folder: Path, records: Iterable[Record], compiler_of: Mapping[str, str]) -> Exported:
    """Write `records` into a new folder and return what was written and what was left out.

    `compiler_of` gives the TVM target of every fingerprint.  Raises UserError if the folder holds anything already.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists already", "Name a new folder: TVM would add to what is there.")
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir()
        exported = _write(temporary, records, compiler_of)
        os.replace(temporary, folder)
    except OSError as error:
        raise BrokenWorld(f"cannot write {folder}: {error.strerror}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return exported


def _valid(text: str) -> str:
    import tvm

    try:
        tvm.target.Target(json.loads(text))
    except Exception as error:  # TVM raises its own kinds, with a C++ stack behind the first line
        raise UserError(
            f"--target-tvm {text}: TVM takes this for no target ({first_line(error)})",
            """Type for example --target-tvm '{"kind":"llvm","mcpu":"cortex-a76","num-cores":4}'""",
        ) from error
    return text


def _write(folder: Path, records: Iterable[Record], compiler_of: Mapping[str, str]) -> Exported:
    import tvm
    from tvm.s_tir.meta_schedule.arg_info import ArgInfo
    from tvm.s_tir.meta_schedule.database import JSONDatabase, TuningRecord

    database = JSONDatabase(*(str(folder / name) for name in FILES))
    targets = {name: tvm.target.Target(json.loads(text)) for name, text in compiler_of.items()}
    entries: dict[str, tuple[Any, Any]] = {}
    tasks = set[str]()
    written, failed = 0, 0
    left_out = Counter[str]()
    for record in records:
        if record.failure:
            failed += 1
            continue
        try:
            workload = from_key(record.task)
            module = programs.computation(workload)
            trace = programs.scheduled(workload, Candidate.parse(record.candidate)).trace
        except Exception as error:  # whatever TVM says of a candidate that this version cannot schedule any more
            left_out[first_line(error)[:80]] += 1
            continue
        if record.task not in entries:
            entries[record.task] = database.commit_workload(module), ArgInfo.from_entry_func(module, False)
        entry, arguments = entries[record.task]
        runs_s = list(record.runs_s)
        database.commit_tuning_record(TuningRecord(trace, entry, runs_s, targets[record.target], arguments))
        tasks.add(record.task)
        written += 1
    for name in FILES:  # an empty store makes an empty database, not none
        (folder / name).touch()
    with (folder / FILES[1]).open("rb") as file:
        lines = sum(1 for _ in file)
    if lines != written:  # TVM does not look whether its writes succeed
        raise BrokenWorld(f"cannot write {folder}: only {lines} of {written} records arrived; is the disk full?")
    return Exported(written, len(tasks), failed, dict(left_out))
