"""The rooms of the house: one direction, no way back, few floors, no file or class too long; and what stays light.

A room is a folder of `cprune/`, or a file at its root.

The imports are read from the source (functions included), not tried out, so that a message can name the line.
A file that really needs TVM or torch and is not listed here: add it, and say in the commit why it must.
"""

from __future__ import annotations

import ast
import fnmatch
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import networkx as nx
import pytest

ROOT = Path(__file__).parents[1]

MAY_NAME = {
    "tvm": (
        *(
            "cprune/compiling/relax_module.py",
            "cprune/method/channel_step.py",
            "cprune/compiling/deploy.py",
        ),
        *(
            "cprune/tuner/programs/sketch*.py",
            "cprune/tuner/programs/dots.py",
            "cprune/tuner/programs/space*.py",
            "cprune/tuner/programs/metaschedule.py",
        ),
        *(
            "cprune/tuner/programs/program.py",
            "cprune/tuner/programs/winograd.py",
            "cprune/tuner/programs/smooth.py",
            "cprune/tuner/records/tvm_database.py",
            "cprune/compiling/tvm_import.py",
        ),
        *("cprune/targets/worker.py", "cprune/targets/remote/builder.py", "cprune/targets/remote/client.py"),
        *("cprune/targets/npu/lower.py", "cprune/targets/npu/session.py"),
        "cprune/targets/serve.py",  # runs on the device, beside nothing else of ours
        "cprune/targets/target.py",  # to say whether TVM accepts the description of a target
    ),
    "torch": (
        *(
            "cprune/network/*.py",
            "cprune/channels/rules/*.py",
        ),
        *(
            "cprune/channels/branches.py",
            "cprune/channels/groups.py",
            "cprune/channels/flow.py",
            "cprune/channels/surgery.py",
            "cprune/channels/importance.py",
            "cprune/channels/statistics.py",
            "cprune/channels/elimination.py",
            "cprune/channels/compensation.py",
        ),
        *(
            "cprune/training/data.py",
            "cprune/channels/labels.py",
            "cprune/training/accuracy.py",  # KL of logits
            "cprune/training/readers/*.py",
            "cprune/training/train*.py",
            "cprune/training/fine_tune.py",
            "cprune/training/views.py",
            "cprune/training/checkpoint.py",
            "cprune/training/computing.py",
            "cprune/models/zoo/*.py",
        ),
        *(
            "cprune/compiling/lowering.py",
            "cprune/compiling/values.py",
            "cprune/compiling/kinds.py",  # weights of layers that wait
            "cprune/compiling/quantized.py",
            "cprune/compiling/halves*.py",
            "cprune/compiling/padding.py",
            "cprune/commands/rounded.py",
            "cprune/compiling/operators/*.py",
            "cprune/compiling/layout.py",
            "cprune/compiling/tuned.py",
            "cprune/compiling/workbench.py",
            "cprune/method/state.py",
            "cprune/method/fewer_bits.py",
            "cprune/method/subject.py",
            "cprune/method/damage.py",
        ),
        *(
            "cprune/api.py",
            "cprune/commands/export.py",
            "cprune/models/opened.py",
            "cprune/models/source.py",
            "cprune/commands/check*.py",
        ),
        *(
            "cprune/models/formats/write.py",
            "cprune/models/formats/pt2.py",
            "cprune/models/formats/onnx/*.py",
        ),
        *(
            "cprune/compiling/tvm_import.py",
            "cprune/commands/bench.py",
            "cprune/commands/explain.py",
        ),
        "cprune/tuner/programs/reference.py",  # what a task computes, in the words of PyTorch
    ),
    "xgboost": ("cprune/tuner/search/cost_model.py", "cprune/tuner/search/estimator.py"),
}
"""Which files may import a library at all, anywhere in the file."""

HEAVY = ("torch", "tvm", "xgboost", "sqlalchemy", "jinja2", "onnxruntime")
LIGHT = (
    *(
        "cprune/__init__.py",
        *(f"cprune/cli/{file.name}" for file in (ROOT / "cprune" / "cli").glob("*.py")),
        "cprune/tuner/records/place.py",
    ),
    *("cprune/runs/journal.py", "cprune/runs/report/__init__.py"),
    *("cprune/targets/__init__.py", "cprune/targets/target.py", "cprune/targets/errors.py"),
    "cprune/tuner/__init__.py",
)
"""Files that import none of HEAVY before one of their functions is called."""


@dataclass(frozen=True)
class Import:
    """One imported module: `file:line` of the statement, and whether it runs when the file is imported."""

    file: str
    line: int
    module: str
    at_top: bool

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.module}"

    def within(self, *packages: str) -> bool:
        return any(self.module == package or self.module.startswith(f"{package}.") for package in packages)


def imports_of(path: Path, root: Path = ROOT) -> Iterator[Import]:
    """Yield every import of a source file: statements and `import_module("…")`, not those for type
    checkers."""
    file = path.relative_to(root).as_posix()
    package = file.removesuffix(".py").split("/")[:-1]

    def visit(node: ast.AST, at_top: bool) -> Iterator[Import]:
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            for child in node.orelse:
                yield from visit(child, at_top)
            return
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            # "from cprune.channels import flow" imports cprune.channels.flow; for a class the longer name does no harm.
            names = [f"{module}.{alias.name}" for alias in node.names]
        elif (
            isinstance(node, ast.Call)
            and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__")
            and node.args
            and isinstance(node.args[0], ast.Constant)
        ):
            names = [str(node.args[0].value)]
        yield from (Import(file, getattr(node, "lineno", 0), name, at_top) for name in names)
        inner = at_top and not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.iter_child_nodes(node):
            yield from visit(child, inner)

    yield from visit(ast.parse(path.read_text(encoding="utf-8"), file), True)


FILES = sorted((ROOT / "cprune").rglob("*.py"))
IMPORTS = [found for path in FILES for found in imports_of(path)]


def lines(offenders: list[Import]) -> str:
    return "\n".join(map(str, offenders))


def test_there_is_something_to_check() -> None:
    assert len(FILES) > 5
    assert any(found.within("cprune.targets") for found in IMPORTS)


def test_targets_import_nothing_of_ours() -> None:
    offenders = [
        found
        for found in IMPORTS
        if found.file.startswith("cprune/targets/")
        and found.within("cprune", "experiments", "tests")
        and not found.within("cprune.targets")
    ]
    assert not offenders, lines(offenders)


def test_the_tuner_imports_only_targets() -> None:
    offenders = [
        found
        for found in IMPORTS
        if found.file.startswith("cprune/tuner/")
        and found.within("cprune", "experiments", "tests")
        and not found.within("cprune.tuner", "cprune.targets")
    ]
    assert not offenders, lines(offenders)


def test_the_package_never_imports_its_experiments_or_tests() -> None:
    # "tuner" and "targets" at the top are links for people: importing them would load a second copy.
    offenders = [found for found in IMPORTS if found.within("experiments", "tests", "tuner", "targets")]
    assert not offenders, lines(offenders)


# -- floors

FLOORS: tuple[tuple[str, ...], ...] = (
    ("targets", "progress"),
    ("files", "user_code", "tuner"),
    ("network", "runs", "training"),
    ("channels", "compiling", "models"),
    ("method",),
    ("api", "commands"),
    ("cli", "__init__"),
)
"""Every room of `cprune/` by its floor, the ground first: a room imports only rooms of floors below its own."""

MOST_LINES, MOST_LINES_OF_A_CLASS, MOST_FILES_AT_THE_ROOT = 400, 200, 6


def room_of(module: str) -> str:
    """Return the room of a module: "network" for cprune.network.node."""
    _, room, *_ = [*module.split("."), "__init__"]
    return room


def module_of(file: str) -> str:
    return file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def imports_of_ours() -> list[tuple[Import, str]]:
    """Return every import of a file of ours, with the module of the file that it names."""
    modules = {module_of(path.relative_to(ROOT).as_posix()) for path in FILES}
    named = []
    for found in IMPORTS:
        module = found.module
        while module and module not in modules:
            module = module.rpartition(".")[0]
        if module and module != "cprune":
            named.append((found, module))
    return named


def test_every_room_has_its_floor() -> None:
    rooms = {path.relative_to(ROOT / "cprune").parts[0].removesuffix(".py") for path in FILES}
    assert rooms == {room for floor in FLOORS for room in floor}
    assert len(FLOORS) <= 7


def test_a_room_imports_only_rooms_of_floors_below() -> None:
    floor_of = {room: number for number, floor in enumerate(FLOORS) for room in floor}
    rooms = [(found, room_of(module_of(found.file)), room_of(module)) for found, module in imports_of_ours()]
    offenders = [found for found, room, other in rooms if room != other and floor_of[room] <= floor_of[other]]
    assert not offenders, lines(offenders)


def test_files_do_not_import_each_other_in_a_circle() -> None:
    files = nx.DiGraph((module_of(found.file), module) for found, module in imports_of_ours())
    files.remove_edges_from(list(nx.selfloop_edges(files)))
    circles = list(nx.simple_cycles(files))
    assert not circles, circles[0]


def test_the_root_holds_few_files() -> None:
    files = [path.name for path in (ROOT / "cprune").glob("*.py")]
    assert len(files) <= MOST_FILES_AT_THE_ROOT, files


def test_no_file_and_no_class_is_too_long_to_read_at_once() -> None:
    offenders = []
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        offenders += [path.name] if text.count("\n") > MOST_LINES else []
        offenders += [
            f"{path.name}: {node.name}"
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.ClassDef) and (node.end_lineno or 0) - node.lineno >= MOST_LINES_OF_A_CLASS
        ]
    assert not offenders, offenders


def test_only_run_and_resume_know_the_loop() -> None:
    knowing = {found.file for found, module in imports_of_ours() if module == "cprune.method.loop"}
    assert knowing == {"cprune/method/whole_run.py"}
    running = {found.file for found, module in imports_of_ours() if module == "cprune.method.whole_run"}
    assert running == {"cprune/api.py"}
    behind_the_door = {found.file for found, module in imports_of_ours() if module == "cprune.api"}
    assert behind_the_door == {"cprune/__init__.py", "cprune/cli/runs.py"}


# -- libraries


@pytest.mark.parametrize("library", MAY_NAME)
def test_a_library_is_named_in_a_handful_of_files(library: str) -> None:
    allowed = MAY_NAME[library]
    offenders = [
        found
        for found in IMPORTS
        if found.within(library) and not any(fnmatch.fnmatch(found.file, pattern) for pattern in allowed)
    ]
    assert not offenders, f"{lines(offenders)}\nonly these may: {', '.join(allowed)}"


@pytest.mark.parametrize("file", [file for file in LIGHT if (ROOT / file).exists()])
def test_a_light_file_imports_nothing_heavy_at_its_top(file: str) -> None:
    offenders = [found for found in IMPORTS if found.file == file and found.at_top and found.within(*HEAVY)]
    assert not offenders, lines(offenders)


def test_importing_the_light_files_loads_nothing_heavy() -> None:
    # Not only what they import themselves, but what that imports in turn.
    modules = [
        file.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for file in LIGHT if (ROOT / file).exists()
    ]
    code = (
        "import sys\n"
        f"for module in {modules!r}:\n"
        "    __import__(module)\n"
        f"    for heavy in {HEAVY!r}:\n"
        "        if heavy in sys.modules: sys.exit(f'import {module} loads {heavy}')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["tuner", "targets"])
def test_the_links_at_the_top_point_into_the_package(name: str) -> None:
    link = ROOT / name
    assert link.is_symlink()
    assert os.readlink(link) == f"cprune/{name}"
    assert (link / "__init__.py").samefile(ROOT / "cprune" / name / "__init__.py")


class TestTheReader:
    """The test above proves nothing if it overlooks imports."""

    def test_it_sees_every_kind_of_import(self, tmp_path: Path) -> None:
        path = tmp_path / "cprune" / "tuner" / "x.py"
        path.parent.mkdir(parents=True)
        path.write_text(
            "import a.b as c\n"
            "from d import e\n"
            "from . import f\n"
            "from ..g import h\n"
            "def later():\n"
            "    import i\n"
            "    importlib.import_module('j')\n"
            "try:\n"
            "    import k\n"
            "finally: pass\n"
            "if TYPE_CHECKING:\n"
            "    import l\n"
            "class C:\n"
            "    import m\n"
        )
        found = [(one.line, one.module, one.at_top) for one in imports_of(path, tmp_path)]
        assert found == [
            *((1, "a.b", True), (2, "d.e", True), (3, "cprune.tuner.f", True), (4, "cprune.g.h", True)),
            *((6, "i", False), (7, "j", False), (9, "k", True), (14, "m", True)),
        ]

    def test_a_message_names_file_and_line(self) -> None:
        assert str(Import("cprune/x.py", 7, "tvm", True)) == "cprune/x.py:7 imports tvm"
