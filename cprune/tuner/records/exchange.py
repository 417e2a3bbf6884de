"""Records from one store to another: through a file, or directly.

The file is JSON Lines, UTF-8.  Its first line says what it is and how many records follow, so that a file that was cut
off is known as such:

    {"format": "cprune-records", "version": 1, "records": 2}

Every other line is one record with all fields of `cprune.tuner.records.record.Record` under their names; `task`,
`candidate` and `hidden` are JSON *text*, spelled as in the store, since their spelling is the key of a record.

Whatever comes in is looked at (`examine.py`).  A file with anything wrong in it is refused whole, before anything is
added; of another store what is wrong is left out, as is what is of no use to this version of cprune.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from cprune.targets.errors import BrokenWorld, UserError
from cprune.tuner.records.examine import OtherVersion, examine, strict_json
from cprune.tuner.records.record import Record
from cprune.tuner.records.store import Added, Store

FORMAT = "cprune-records"
VERSION = 1

_FIELDS = tuple(field.name for field in dataclasses.fields(Record))
_HEADER_CHARS = 100  # the header is filled in last, when the records are counted
_LINE_BYTES = 16_000_000
_BATCH = 500  # records in one transaction: milliseconds, so that a team's writers do not wait


def write_file(path: Path, records: Iterable[Record]) -> int:
    """Write `records` to `path` and return how many they were; afterwards it is the whole file or what it was before.

    Raises UserError if there is something else at `path`, BrokenWorld if the disk is full.
    """
    if path.exists() and not _is_ours(path):
        raise UserError(f"{path} exists and is no export of records", "Name another file.")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(_header(0))
            count = 0
            for record in records:
                file.write(json.dumps(dataclasses.asdict(record), allow_nan=False).encode() + b"\n")
                count += 1
            file.seek(0)
            file.write(_header(count))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise BrokenWorld(f"cannot write {path}: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    return count


def read_file(path: Path, left_out: Counter[str]) -> Iterator[Record]:
    """Yield the records of a file of `write_file`; those of another version of cprune are counted in `left_out`.

    Raises UserError, with the number of the line, for anything that is not such a file, whole and unchanged.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}", "Make it with: cprune records export FILE") from error
    with file:
        announced = _announced(path, file)
        count = 0
        while line := file.readline(_LINE_BYTES + 1):
            count += 1
            try:
                record = _parsed(line)
            except OtherVersion as error:
                left_out[str(error)] += 1
                continue
            except (ValueError, OverflowError) as error:
                raise _refused(path, count + 1, str(error)) from error
            yield record
    if count != announced:
        raise _refused(path, count + 1, f"the file ends after {count} of {announced} records")


def sound(records: Iterable[Record], left_out: Counter[str]) -> Iterator[Record]:
    """Yield those of `records` that `read_file` would take, and count the others in `left_out`, by reason."""
    for record in records:
        try:
            examine(record)
        except ValueError as error:
            left_out[str(error)] += 1
        else:
            yield record


def vet(records: Iterable[Record]) -> int:
    """Read `records` to the end, which raises what is wrong with them, and return how many there are."""
    return sum(1 for _ in records)


def take(store: Store, records: Iterable[Record]) -> Added:
    """Add `records`, which passed `vet` or `sound`, to `store` and return what came of it.

    They are added in short transactions; if the process is killed on the way, taking them again completes it.
    """
    added, left = Added(), iter(records)
    while batch := list(itertools.islice(left, _BATCH)):
        added += store.add(batch)
    return added


def _header(count: int) -> bytes:
    text = json.dumps({"format": FORMAT, "version": VERSION, "records": count})
    return text.ljust(_HEADER_CHARS).encode() + b"\n"


def _is_ours(path: Path) -> bool:
    with contextlib.suppress(OSError, UserError), path.open("rb") as file:
        _announced(path, file)
        return True
    return False


def _announced(path: Path, file: BinaryIO) -> int:
    """Read the header and return how many records it announces."""
    try:
        header = strict_json(file.readline(_LINE_BYTES))
    except (ValueError, OSError):
        header = None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise _refused(path, 1, "this is no export of records")
    version, count = header.get("version"), header.get("records")
    if type(version) is int and version > VERSION:
        raise UserError(
            f"{path} was written by a newer cprune (format {version}, this one knows {VERSION})",
            "Update cprune with: pip install --upgrade cprune",
        )
    if version != VERSION or type(count) is not int or count < 0:
        raise _refused(path, 1, "the header lacks the version or the number of records")
    return count


def _parsed(line: bytes) -> Record:
    if len(line) > _LINE_BYTES:
        raise ValueError(f"longer than {_LINE_BYTES} bytes")
    try:
        value = strict_json(line)
    except ValueError as error:
        raise ValueError(f"not JSON ({error})" if line.endswith(b"\n") else "the line is cut off") from error
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    for name in value:
        if name not in _FIELDS:
            raise ValueError(f"unknown field {name[:40]!r}")
    for name in _FIELDS:
        if name not in value:
            raise ValueError(f"the field {name!r} is missing")
        _typed(name, value[name])
    created, runs_s = float(value["created"]), tuple(float(run) for run in value["runs_s"])
    record = Record(**{**value, "created": created, "runs_s": runs_s})
    examine(record)
    return record


def _typed(name: str, value: object) -> None:
    number = (int, float)
    if name == "runs_s":
        good = isinstance(value, list) and all(type(run) in number for run in value)
    elif name == "created":
        good = type(value) in number
    else:
        good = type(value) is (bool if name == "checked" else str)
    if not good:
        raise ValueError(f"the field {name!r} is of the wrong kind")


def _refused(path: Path, line: int, what: str) -> UserError:
    return UserError(
        f"{path}, line {line}: {what}",
        "Nothing was imported. The file is cut off, changed or of another program; export the records again.",
    )
