"""The network as a graph for other programs: what a node tells, which edges there are, and the files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import networkx
import pytest

from cprune.cli import main as cli
from cprune.commands.graph_file import network_graph, programs_of, write
from cprune.compiling.lowering import lower
from cprune.method.task_table import TaskRow
from cprune.network.shapes import sample
from cprune.targets.errors import UserError
from cprune.tuner.programs.describing import describe
from tests.small_nets import NETS, captured


def row(task: str, latency_us: float = 1.5, step: int = 0) -> TaskRow:
    return TaskRow(task, (), latency_us, 1, step, 0)


def drawn(name: str, programs: dict[str, list[TaskRow]] | None = None) -> networkx.DiGraph:
    its = captured(name)
    return network_graph(its.network, sample(its.network, its.example), its.graph, programs or {})


def of_layer(graph: networkx.DiGraph, layer: str) -> dict[str, Any]:
    (about,) = (about for _, about in graph.nodes(data=True) if about.get("layer") == layer)
    return about


def test_a_node_is_an_operator_with_what_is_known_of_it() -> None:
    graph = drawn("Residual")
    a1 = of_layer(graph, "a1")
    assert a1.pop("source").startswith("small_nets.py:")
    assert a1 == {
        "operator": "conv2d",
        "output_shape": "2x4x8x8",
        "groups": "a1",
        "layer": "a1",
        "channels": 4,
    }
    assert of_layer(graph, "bna")["groups"] == "stem"
    assert "channels" not in of_layer(graph, "bna")
    last = of_layer(graph, "fc")
    assert (last["channels"], last["frozen"], last["output_shape"]) == (4, "the model returns it", "2x4")
    assert "groups" not in last


def test_an_edge_is_a_tensor_and_a_weight_is_no_node() -> None:
    graph = drawn("Residual")
    assert networkx.is_directed_acyclic_graph(graph)
    assert sum(about["operator"] == "conv2d" for _, about in graph.nodes(data=True)) == 8
    assert [name for name in graph if graph.in_degree(name) == 0] == ["x"]
    (first,) = graph.successors("x")
    assert graph.edges["x", first] == {"shape": "2x3x8x8"}
    (last,) = graph.predecessors("output")
    assert graph.edges[last, "output"] == {"shape": "2x4"}
    assert sorted(graph.in_degree(name) for name, op in graph.nodes(data="operator") if op == "add") == [2, 2, 2]


def test_a_tensor_in_which_groups_lie_side_by_side_names_them_all() -> None:
    its = captured("Dense")
    graph = drawn("Dense")
    several = [about["groups"].split(", ") for _, about in graph.nodes(data=True) if ", " in about.get("groups", "")]
    assert several
    assert {group for groups in several for group in groups} <= {group.id for group in its.graph.groups}


def test_what_a_program_computes_carries_its_task() -> None:
    its = captured("Residual")
    lowered = lower(its.network, its.example, 4)
    rows = [row(f"task {i}", float(i), 4 if task.layers else 0) for i, task in enumerate(lowered.tasks())]
    graph = drawn("Residual", programs_of(lowered, rows))
    stem = of_layer(graph, "stem")
    assert (stem["task"], stem["latency_us"], stem["step"]) == ("task 0", 0.0, 4)
    assert of_layer(graph, "bn")["task"] == "task 0"  # the program of the convolution computes it
    assert "task" not in graph.nodes["x"]
    assert {about["task"] for _, about in graph.nodes(data=True) if "task" in about} == {row.id for row in rows}


@pytest.mark.parametrize("name", [name for name in NETS if name not in ("Dense", "Upward")])  # nobody can compile them
def test_every_program_computes_a_node_or_changes_a_layout(name: str) -> None:
    its = captured(name)
    lowered = lower(its.network, its.example, 4)
    rows = [row(describe(task.workload)) for task in lowered.tasks()]
    programs = programs_of(lowered, rows)
    graph = drawn(name, programs)
    others = programs.keys() - set(graph)
    assert all(row.id == "elementwise layout" for other in others for row in programs[other])
    assert all("task" in about for _, about in graph.nodes(data=True) if "channels" in about)


@pytest.mark.parametrize("ending", [".graphml", ".json"])
def test_a_file_is_the_graph(tmp_path: Path, ending: str) -> None:
    graph = drawn("Residual", {"relu": [row("conv 3→16")]})
    file = tmp_path / "new" / f"net{ending}"
    write(graph, file)
    if ending == ".graphml":
        again = networkx.read_graphml(file)
    else:
        again = networkx.node_link_graph(json.loads(file.read_text()), edges="edges")
    assert dict(again.nodes(data=True)) == dict(graph.nodes(data=True))
    assert list(again.edges(data="shape")) == list(graph.edges(data="shape"))


def test_graphviz_gets_a_box_for_every_node_and_an_arrow_for_every_edge(tmp_path: Path) -> None:
    graph = networkx.DiGraph()
    graph.add_node('a"b', operator="conv2d", channels=3, groups="g", source="m.py:1")
    graph.add_node("c", operator="linear", channels=2, frozen="the model returns it")
    graph.add_edge('a"b', "c", shape="1x3")
    write(graph, tmp_path / "net.dot")
    assert (tmp_path / "net.dot").read_text().splitlines() == [
        "digraph {",
        "node [shape=box, style=filled, fillcolor=white]",
        r'"a\"b" [label="a\"b\noperator: conv2d\nchannels: 3\ngroups: g", fillcolor=palegreen]',
        r'"c" [label="c\noperator: linear\nchannels: 2\nfrozen: the model returns it", fillcolor=lightgrey]',
        r'"a\"b" -> "c" [label="1x3"]',
        "}",
    ]


def test_another_ending_is_refused_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=r"'\.png'"):
        write(networkx.DiGraph(), tmp_path / "net.png")
    assert cli.main(["explain", "resnet20", "--graph", "net.png"]) == 2
    assert capsys.readouterr().err == (
        "error: net.png has the ending '.png'\nA graph is written as one of .graphml, .dot, .json.\n"
    )


def test_explain_writes_it_with_what_was_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "net.graphml"
    words = ("--trials", "1", "--records", str(tmp_path / "records.sqlite"), "--json")
    assert cli.main(["explain", "tests.small_nets:tiny", "--graph", str(file), *words]) == 0
    told = json.loads(capsys.readouterr().out)
    graph = networkx.read_graphml(file)
    conv = of_layer(graph, "0")
    (task,) = (task for task in told["tasks"] if "0" in task["layers"])
    assert (conv["task"], conv["latency_us"], conv["step"]) == (task["id"], task["latency_us"], task["step"])
    assert (conv["groups"], conv["channels"]) == ("0", 16)
