"""A database for TVM's MetaSchedule: TVM loads it, and its best schedule is our best program."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tvm
from test_sketch import WORKLOADS, conv
from tvm import te
from tvm.s_tir.meta_schedule.database import JSONDatabase

from cprune.cli import main as cli
from cprune.targets.errors import UserError
from cprune.targets.target import Target
from cprune.tuner.programs import metaschedule, space
from cprune.tuner.programs import program as programs
from cprune.tuner.programs.space import Candidate
from cprune.tuner.programs.workload import Conv2d, Dense, Elementwise, Mean, Pool2d, Tir, Workload, key
from cprune.tuner.records import tvm_database
from cprune.tuner.records.examine import examine
from cprune.tuner.records.record import Record
from cprune.tuner.records.store import Store


def matmul() -> Tir:
    """Return a product of matrices as TVM's importer would hand it over."""
    a, b = te.placeholder((16, 32), name="a"), te.placeholder((32, 16), name="b")
    k = te.reduce_axis((0, 32), "k")
    c = te.compute((16, 16), lambda i, j: te.sum(a[i, k] * b[k, j], axis=k), name="c")
    func = te.create_prim_func([a, b, c]).with_attr("global_symbol", "main")
    return Tir("matmul", tvm.ir.save_json(tvm.IRModule({"main": func})), ((16, 32), (32, 16), (16, 16)))


def record(workload: Workload, candidate: Candidate, target: Target, microseconds: float) -> Record:
    return Record(key(workload), target.fingerprint, candidate.text(), (microseconds * 1e-6,) * 3, created=1.0)


def best_of(folder: Path, module: Any, target: Target) -> Any:
    """Return the module that TVM makes of the best record it finds for `module` in `folder`."""
    database = JSONDatabase(work_dir=str(folder), allow_missing=False)
    kind = tvm.target.Target(json.loads(target.compiler))
    schedule = database.query_schedule(module, kind, "main")
    assert schedule is not None
    return schedule.mod


ONE_OF_EACH = [next(w for w in WORKLOADS if isinstance(w, kind)) for kind in (Conv2d, Dense, Pool2d, Mean, Elementwise)]


def test_tvm_finds_our_best_program_of_every_kind_of_task(tmp_path: Path, target: Target) -> None:
    records, winners = [], {}
    for workload in [*ONE_OF_EACH, conv(16, 8, 16, groups=16)]:
        points = space.of_target(workload, target)[:3]
        records += [record(workload, p, target, 9.0 - i) for i, p in enumerate(points)]
        winners[workload] = points[-1]
    compilers = tvm_database.compilers([target.fingerprint], None)
    told = tvm_database.write_folder(tmp_path / "db", records, compilers)
    assert (told.records, told.tasks, told.failed, told.left_out) == (len(records), len(winners), 0, {})
    for workload, winner in winners.items():
        found = best_of(tmp_path / "db", programs.computation(workload), target)
        tvm.ir.assert_structural_equal(found, programs.module_of(workload, winner))


def test_points_of_metaschedule_s_own_space_are_found_as_well(tmp_path: Path, target: Target) -> None:
    workload = matmul()
    points = metaschedule.candidates(workload, target, 0)
    assert any("trace" in dict(p.knobs) for p in points)
    records = [record(workload, p, target, 99.0 - i) for i, p in enumerate(points)]
    tvm_database.write_folder(tmp_path / "db", records, {target.fingerprint: target.compiler})
    found = best_of(tmp_path / "db", programs.computation(workload), target)
    tvm.ir.assert_structural_equal(found, programs.module_of(workload, points[-1]))


def test_every_point_of_our_spaces_may_be_imported(target: Target) -> None:
    # A sketch with a new knob: add it to `examine.KNOBS`.
    for workload in WORKLOADS:
        points = [p for vector in (4, 8, 16) for p in space.candidates(workload, vector, 32, 2)]
        for point in {tuple(name for name, _ in p.knobs): p for p in points}.values():  # one of each family
            examine(record(workload, point, target, 1.0))
    for point in metaschedule.candidates(matmul(), target, 0):
        examine(record(matmul(), point, target, 1.0))


def test_what_failed_or_cannot_be_scheduled_is_counted_and_left_out(tmp_path: Path, target: Target) -> None:
    workload = ONE_OF_EACH[0]
    good = space.of_target(workload, target)[0]
    told = tvm_database.write_folder(
        tmp_path / "db",
        [
            record(workload, good, target, 1.0),
            Record(key(workload), target.fingerprint, '{"oc_tile":1}', (), failure="run"),
            Record(key(workload), target.fingerprint, '{"knobs":"of a later cprune"}', (1e-6,)),
            Record("no task at all", target.fingerprint, good.text(), (1e-6,)),
        ],
        {target.fingerprint: target.compiler},
    )
    assert (told.records, told.tasks, told.failed) == (1, 1, 1)
    assert sum(told.left_out.values()) == 2


def test_a_winograd_program_is_left_out(tmp_path: Path, target: Target) -> None:
    candidate = Candidate.of(winograd=2, oc_tile=1, p_tile=4, rows=1, oc_groups=1)
    told = tvm_database.write_folder(
        tmp_path / "db", [record(conv(16, 8, 16), candidate, target, 1.0)], {target.fingerprint: target.compiler}
    )
    assert told.left_out == {"a Winograd program has no trace": 1}


def test_a_target_that_is_not_this_machine_must_be_said(target: Target) -> None:
    with pytest.raises(UserError, match=r"not this machine\n.*--target-tvm"):
        tvm_database.compilers([target.fingerprint, "77aa77aa"], None)
    phone = '{"kind":"llvm","mcpu":"generic","num-cores":4}'
    assert tvm_database.compilers(["77aa77aa"], phone) == {"77aa77aa": phone}
    with pytest.raises(UserError, match="one target"):
        tvm_database.compilers([target.fingerprint, "77aa77aa"], phone)


@pytest.mark.parametrize("text", ["llvm -mcpu=x", "[]", '{"kind":"abacus"}', "{}"])
def test_what_is_no_target_of_tvm_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="TVM takes this for no target"):
        tvm_database.compilers(["77aa77aa"], text)


def test_a_folder_with_anything_in_it_is_left_alone(tmp_path: Path, target: Target) -> None:
    (tmp_path / tvm_database.FILES[0]).write_text("hours of tuning")
    with pytest.raises(UserError, match="exists already"):
        tvm_database.write_folder(tmp_path, [], {})
    assert (tmp_path / tvm_database.FILES[0]).read_text() == "hours of tuning"


def test_the_command_exports_this_machine_s_records_by_itself(
    tmp_path: Path, target: Target, capsys: pytest.CaptureFixture[str]
) -> None:
    workload = ONE_OF_EACH[1]
    with Store(tmp_path / "r.sqlite") as store:
        store.add([record(workload, space.of_target(workload, target)[0], target, 1.0)])
    arguments = [str(tmp_path / "db"), "--records", str(tmp_path / "r.sqlite"), "--format", "metaschedule"]
    assert cli.main(["records", "export", *arguments, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {"folder": str(tmp_path / "db"), "records": 1, "tasks": 1, "failed": 0, "left_out": {}}
    assert sorted(path.name for path in (tmp_path / "db").iterdir()) == sorted(tvm_database.FILES)
