"""`cprune explain --graph FILE`: the network as a graph that other programs draw, search and compare.

A node is an operator, an edge a tensor that one writes and another reads; weights are not nodes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import networkx
import numpy as np

from cprune.channels.graph import Graph
from cprune.compiling.lowered import Lowered
from cprune.files import atomic_write
from cprune.method.task_table import TaskRow
from cprune.network.network import Network
from cprune.network.node import operator_name, tensors_of
from cprune.targets.errors import UserError
from cprune.tuner.programs.workload import key


def network_graph(
    network: Network, sample: Mapping[str, Any], channel_graph: Graph, programs: Mapping[str, Sequence[TaskRow]]
) -> networkx.DiGraph:
    """Return the operators of `network` in order, each under its name with what is known of it.

    `operator`, `output_shape` and `source` are of every one (several shapes where it returns several tensors), `groups`
    of those whose tensors hold channels that can be pruned.  `layer` is of those with weights; of a convolution or
    linear layer also `channels` and, where some stay, why: `frozen`.  `task`, `latency_us` and `step` are those of the
    program that computes it, perhaps with its neighbours: `programs` has the rows of `task_table` by the last operator
    of each program, and none where nothing was tuned.  An edge has the `shape` of its tensor.

    `sample` is every node's value, as `cprune.network.shapes.sample` returns it.
    """
    group_of = {label: group for group, labels in channel_graph.classes.items() for label in labels.tolist()}
    parameters = {node.name: str(node.args[0]) for node in network.nodes if node.op == "param"}
    layers = {call: layer for layer in channel_graph.layers.values() for call in layer.calls}
    drawn = networkx.DiGraph()
    for node in network.nodes:
        shape = _shapes(sample.get(node.name))
        if node.op == "param" or not (shape or node.op == "output"):  # a weight, or arithmetic on sizes
            continue
        about: dict[str, Any] = {"operator": operator_name(node), "output_shape": shape, "source": node.source}
        labels = [label for spread in channel_graph.values.get(node.name, ()) for label in np.unique(spread.labels)]
        about["groups"] = _listed(group_of[label] for label in labels if label in group_of)
        weights = [parameters[name] for name in node.refs() if name in parameters]
        if node.name in layers:
            layer = layers[node.name]
            reasons = (frozen.reason for frozen in channel_graph.frozen if layer.name in frozen.layers)
            about["layer"], about["frozen"] = layer.name, _listed(reasons)
            about["channels"] = len(channel_graph.axes[layer.weight, layer.out_axis])
        elif weights:
            about["layer"] = weights[0].rpartition(".")[0]
        drawn.add_node(node.name, **{name: value for name, value in about.items() if value != ""})
        for read in node.refs():
            if read in drawn:
                drawn.add_edge(read, node.name, shape=_shapes(sample[read]))
    for name, about in reversed(list(drawn.nodes(data=True))):
        if name in programs:
            about.update(_measured(programs[name]))
        elif about["operator"] != "input":  # what has no program of its own is computed in that of whoever reads it
            reader: Mapping[str, Any] = next((drawn.nodes[after] for after in drawn.successors(name)), {})
            about.update({fact: reader[fact] for fact in ("task", "latency_us", "step") if fact in reader})
    return drawn


def programs_of(lowered: Lowered, tasks: Sequence[TaskRow]) -> dict[str, list[TaskRow]]:
    """Return the rows of `task_table` by the operator whose value the program writes, in the order of the calls.

    A program that only writes a value again in another layout is nobody's: it stands under a name that no operator has.
    """
    rows = {task.key: row for task, row in zip(lowered.tasks(), tasks, strict=True)}
    programs: dict[str, list[TaskRow]] = {}
    for call in lowered.calls:  # an operator that TVM's importer compiles is several calls: NODE.1, NODE.2
        programs.setdefault(call.output.partition(".")[0], []).append(rows[key(call.workload)])
    return programs


def _measured(rows: Sequence[TaskRow]) -> dict[str, Any]:
    steps = [row.step for row in rows if row.step]
    about = {"task": _listed(row.id for row in rows), "latency_us": round(sum(row.latency_us for row in rows), 3)}
    return {**about, "step": steps[0]} if steps else about


def _shapes(value: Any) -> str:
    return ", ".join("x".join(map(str, tensor.shape)) or "scalar" for tensor in tensors_of(value))


def _listed(names: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(names))


# --- files -----------------------------------------------------------------------------------------------------


def _graphml(drawn: networkx.DiGraph) -> str:
    return "\n".join(networkx.generate_graphml(drawn)) + "\n"


def _node_link(drawn: networkx.DiGraph) -> str:
    return json.dumps(networkx.node_link_data(drawn, edges="edges"), indent=1) + "\n"


def _dot(drawn: networkx.DiGraph) -> str:
    """Return Graphviz's text: green can be pruned, grey could be if it were not frozen."""
    lines = ["digraph {", "node [shape=box, style=filled, fillcolor=white]"]
    for name, about in drawn.nodes(data=True):
        label = "\n".join([name, *(f"{fact}: {value}" for fact, value in about.items() if fact != "source")])
        color = "lightgrey" if "frozen" in about else "white"
        if "channels" in about and "groups" in about:
            color = "palegreen"
        lines.append(f"{json.dumps(name)} [label={json.dumps(label, ensure_ascii=False)}, fillcolor={color}]")
    for reads, name, about in drawn.edges(data=True):
        lines.append(f"{json.dumps(reads)} -> {json.dumps(name)} [label={json.dumps(about['shape'])}]")
    return "\n".join([*lines, "}", ""])


_FORMS = {".graphml": _graphml, ".dot": _dot, ".json": _node_link}


def must_be_known(path: Path) -> None:
    """Raise UserError for a file whose ending names none of the forms that `write` knows."""
    if path.suffix not in _FORMS:
        raise UserError(f"{path} has the ending {path.suffix!r}", f"A graph is written as one of {', '.join(_FORMS)}.")


def write(drawn: networkx.DiGraph, path: Path) -> None:
    """Write a graph as GraphML, as Graphviz's text or as networkx's node-link JSON, by the ending of `path`.

    Raises UserError for another ending, BrokenWorld where nothing can be written.
    """
    must_be_known(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, _FORMS[path.suffix](drawn))
