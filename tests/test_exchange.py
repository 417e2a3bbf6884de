"""Records through a file: nothing is lost on the way, and nothing that is not ours gets in."""

from __future__ import annotations

import errno
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from cprune.targets.errors import BrokenWorld, UserError
from cprune.tuner.programs.space import Candidate
from cprune.tuner.programs.workload import Dense, key
from cprune.tuner.records import exchange
from cprune.tuner.records.record import Record
from cprune.tuner.records.store import Added, Store

DENSE = Dense(1, 64, 10, "none", 16)
TASK = key(DENSE)


def knobs(n: int) -> str:
    """Return a candidate of a dense layer."""
    return Candidate.of(oc_tile=n, n_tile=1, k_tile=4, parallel="none").text()


GOOD = Record(TASK, "8f3a11c0", knobs(2), (1e-6, 0.1 + 0.2), hidden='{"spills":2}', created=1.5)
BAD = Record(TASK, "8f3a11c0", knobs(4), (), failure="build", reason="line 1\nline 2 €", created=2.0)


def trace(*instructions: list[Any]) -> str:
    """Return a candidate that holds a trace."""
    return json.dumps({"trace": json.dumps([instructions, []])}, separators=(",", ":"))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "r.sqlite") as made:
        yield made


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """An export of two records."""
    path = tmp_path / "export.jsonl"
    assert exchange.write_file(path, [GOOD, BAD]) == 2
    return path


def imported(store: Store, path: Path) -> Added:
    exchange.vet(exchange.read_file(path, Counter()))
    return exchange.take(store, exchange.read_file(path, Counter()))


def test_what_is_imported_is_what_was_exported(file: Path, store: Store) -> None:
    assert imported(store, file) == Added(new=2)
    assert store.all() == [GOOD, BAD]


def test_the_first_line_says_what_follows(file: Path) -> None:
    first, *rest = file.read_text().splitlines()
    assert json.loads(first) == {"format": "cprune-records", "version": 1, "records": 2}
    assert json.loads(rest[0]) == {**asdict(GOOD), "runs_s": [1e-6, 0.1 + 0.2]}
    assert len(rest) == 2


def test_importing_twice_adds_nothing(file: Path, store: Store) -> None:
    imported(store, file)
    assert imported(store, file) == Added(known=2)


def test_a_better_informed_record_is_said_to_be_better(file: Path, store: Store) -> None:
    store.add([replace(GOOD, runs_s=(1e-6,)), replace(BAD, candidate=knobs(1))])
    assert imported(store, file) == Added(new=1, better=1)


def test_many_records_go_in_batch_by_batch(tmp_path: Path, store: Store) -> None:
    path = tmp_path / "many.jsonl"
    exchange.write_file(path, (replace(GOOD, candidate=knobs(i + 1)) for i in range(1201)))
    assert imported(store, path) == Added(new=1201)


def test_no_records_are_a_file_as_well(tmp_path: Path, store: Store) -> None:
    exchange.write_file(tmp_path / "none.jsonl", [])
    assert imported(store, tmp_path / "none.jsonl") == Added()


# --- what is refused -------------------------------------------------------------------------------------------


def refused(store: Store, path: Path) -> str:
    """Return the message for a file that must be refused, and of which nothing may be in the store."""
    with pytest.raises(UserError) as caught:
        imported(store, path)
    assert len(store.all()) == 0
    return str(caught.value)


def test_a_file_cut_off_in_a_line_is_refused_with_the_line(file: Path, store: Store) -> None:
    file.write_bytes(file.read_bytes()[:-40])
    assert "export.jsonl, line 3: the line is cut off" in refused(store, file)


def test_a_file_cut_off_between_two_lines_is_refused(file: Path, store: Store) -> None:
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:2]))
    assert "line 2: the file ends after 1 of 2 records" in refused(store, file)


def test_two_files_in_one_are_refused(file: Path, store: Store) -> None:
    file.write_bytes(file.read_bytes() * 2)
    assert "line 4: unknown field 'format'" in refused(store, file)


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff\xd8\xff\xe0" * 999, b"a,b\n1,2\n", b"{}\n", b'{"format":"other","version":1}\n', b"[" * 9999],
)
def test_a_file_of_another_kind_is_refused(content: bytes, tmp_path: Path, store: Store) -> None:
    (tmp_path / "x").write_bytes(content)
    assert "line 1: this is no export of records" in refused(store, tmp_path / "x")


def test_a_file_of_a_newer_cprune_says_so(file: Path, store: Store) -> None:
    file.write_text(file.read_text().replace('"version": 1', '"version": 2', 1))
    assert "newer cprune" in refused(store, file)


def test_a_file_that_is_not_there_is_said(tmp_path: Path, store: Store) -> None:
    assert "cannot read" in refused(store, tmp_path / "nowhere")
    assert "cannot read" in refused(store, tmp_path)


GET = ["GetSBlock", [], ["C", "main"], ["b0"]]
WRONG: dict[str, dict[str, Any]] = {
    "unknown field 'extra'": {"extra": 1},
    "the field 'runs_s' is of the wrong kind": {"runs_s": "1.0"},
    "the field 'checked' is of the wrong kind": {"checked": 1},
    "the field 'created' is of the wrong kind": {"created": "now"},
    "the field 'task' is of the wrong kind": {"task": ["dense", {}]},
    "timing runs must be positive": {"runs_s": [1.0, -1.0]},
    "never both or none": {"runs_s": []},
    "runs_s: more than 10000 runs": {"runs_s": [1.0] * 10_001},
    "or one of more than an hour": {"runs_s": [1e9]},
    "is none of lower, build": {"runs_s": [], "failure": "slow"},
    "too large": {"runs_s": [10**400]},
    "created: -1.0 is no time": {"created": -1},
    "target: '../../x' is no fingerprint": {"target": "../../x"},
    "space: 'A B' is no name": {"space": "A B"},
    "reason: 6000 characters": {"reason": "x" * 6000},
    "task: not [KIND": {"task": '{"op":"dense"}'},
    "task: batch is of the wrong kind": {"task": key(replace(DENSE, batch="1"))},  # type: ignore[arg-type]
    "task: in_features is of the wrong kind": {"task": key(replace(DENSE, in_features=-64))},
    "task: its arguments have no size": {"task": key(replace(DENSE, block=0))},
    "task: out_features is of the wrong kind": {"task": key(replace(DENSE, out_features=True))},
    "nested too deeply": {
        "task": f'["elementwise",{{"block":0,"expression":{"[" * 900 + "]" * 900},"inputs":[],"shape":[1]}}]'
    },
    "task: not JSON": {"task": "dense"},
    "task: not canonical JSON": {"task": '["dense", {}]'},
    "candidate: 500010 characters": {"candidate": '{"k":"' + "x" * 500_002 + '"}'},
    "candidate: not an object": {"candidate": "[1]"},
    "the knob 'k' is neither": {"candidate": '{"k":[1]}'},
    "the knob 'oc_tile' is neither": {"candidate": knobs(0)},
    "the knob 'oc_tile' is a number": {"candidate": knobs("two")},  # type: ignore[arg-type]
    "the knob 'parallel' is a word": {"candidate": '{"parallel":1}'},
    "hidden: not an object of numbers": {"hidden": '{"spills":"many"}'},
    "hidden: not JSON (NaN": {"hidden": '{"a":NaN}'},
    "hidden features are a JSON object": {"hidden": "[]"},
    "its trace is no trace": {"candidate": '{"trace":"__import__"}'},
    "the instruction 'Tensorize'": {"candidate": trace(GET, ["Tensorize", ["b0"], ["x"], []])},
    "the annotation ['pragma_import_llvm']": {
        "candidate": trace(["Annotate", ["b0", "x"], ["pragma_import_llvm"], []])
    },
}


@pytest.mark.parametrize("told", WRONG)
def test_a_record_with_anything_wrong_in_it_is_refused_with_its_line(
    told: str, tmp_path: Path, file: Path, store: Store
) -> None:
    header, good, _ = file.read_text().splitlines()
    wrong = json.dumps({**json.loads(good), **WRONG[told]})
    file.write_text("\n".join([header, good, wrong, ""]))
    message = refused(store, file)
    assert "export.jsonl, line 3: " in message
    assert told in message


@pytest.mark.parametrize("line", [b"[]", b"null", b"\xff\xfe", b'{"task":', b'{"runs_s":[NaN]}', b"[" * 100_000])
def test_a_line_that_is_no_record_is_refused(line: bytes, file: Path, store: Store) -> None:
    header, good, _ = file.read_bytes().splitlines()
    file.write_bytes(b"\n".join([header, good, line, b""]))
    assert "export.jsonl, line 3: " in refused(store, file)


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("task", '["transformer",{"heads":8}]', "task: this cprune knows no 'transformer'"),
        ("task", '["dense",{"batch":1,"heads":8}]', "task: a dense of another version of cprune"),
        ("candidate", '{"oc_tile":2,"warps":4}', "candidate: a dense of this cprune has other knobs"),
    ],
)
def test_what_only_a_later_cprune_knows_is_left_out_and_the_rest_is_taken(
    field: str, value: str, told: str, file: Path, store: Store
) -> None:
    header, good, bad = file.read_text().splitlines()
    file.write_text("\n".join([header, json.dumps({**json.loads(good), field: value}), bad, ""]))
    left_out = Counter[str]()
    assert exchange.take(store, exchange.read_file(file, left_out)) == Added(new=1)
    assert left_out == {told: 1}
    assert store.all() == [BAD]


def test_a_trace_of_harmless_instructions_is_taken(tmp_path: Path, store: Store) -> None:
    unroll = ["Annotate", ["b0", 16], ["pragma_auto_unroll_max_step"], []]
    record = replace(GOOD, candidate=trace(GET, unroll, ["EnterPostproc", [], [], []]))
    exchange.write_file(tmp_path / "x", [record])
    assert imported(store, tmp_path / "x") == Added(new=1)


def test_what_would_be_refused_is_left_out_with_its_reason() -> None:
    left_out = Counter[str]()
    wrong = replace(GOOD, candidate=trace(["Tensorize", [], [], []]))
    assert list(exchange.sound([GOOD, wrong, BAD], left_out)) == [GOOD, BAD]
    ((reason, count),) = left_out.items()
    assert "Tensorize" in reason
    assert count == 1


# --- writing ---------------------------------------------------------------------------------------------------


def test_an_export_takes_the_place_of_an_older_one(file: Path, store: Store) -> None:
    exchange.write_file(file, [GOOD])
    assert imported(store, file) == Added(new=1)


def test_an_export_never_takes_the_place_of_anything_else(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("important")
    with pytest.raises(UserError, match=r"thesis\.txt exists"):
        exchange.write_file(tmp_path / "thesis.txt", [GOOD])
    assert (tmp_path / "thesis.txt").read_text() == "important"


def test_a_full_disk_leaves_the_older_export(file: Path, store: Store) -> None:
    def filling() -> Iterator[Record]:
        yield GOOD
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(BrokenWorld, match="No space left"):
        exchange.write_file(file, filling())
    assert [path.name for path in file.parent.glob("*export*")] == ["export.jsonl"]
    assert imported(store, file) == Added(new=2)
