from __future__ import annotations

import numpy as np
import torch
from rule_nets import Vit
from small_nets import captured_net

from cprune.channels.graph import Graph
from cprune.channels.groups import analyse
from cprune.channels.surgery import prune
from cprune.compiling.lowered import Task
from cprune.compiling.lowering import lower
from cprune.method.plan import Impact, Memory, Proposal, channels, proposals, widths
from cprune.models import zoo
from cprune.network.capture import capture
from cprune.network.network import Network

NOTHING = Memory(frozenset(), {})


class Case:
    """A zoo model with every channel's score equal to its number, and one second a use for every task."""

    def __init__(self, name: str) -> None:
        loaded = zoo.load_model(name)
        self.example = loaded.example_inputs
        self.network: Network = capture(loaded.model, self.example)
        self.graph: Graph = analyse(self.network, self.example)
        self.tasks: dict[str, Task] = {
            name: t for t in lower(self.network, self.example, 16).tasks() for name in t.layers
        }
        self.scores = {g.id: np.arange(g.channels, dtype=float) for g in self.graph.groups}

    def propose(self, layer: str, step: int, memory: Memory = NOTHING, sparsity: float = 0.8) -> list[Proposal]:
        impact = Impact(self.tasks[layer], 1.0, step)
        return list(proposals([impact], self.graph, self.scores, widths(self.graph), memory, 8, sparsity))


RESNET20 = Case("resnet20")
FASHION = Case("resnet-fashion")


def test_all_groups_of_a_task_shrink_together_then_each_alone() -> None:
    first, *single = RESNET20.propose("layer2.1.conv1", 16)
    assert first.removed == (("layer2.1.conv1", 16), ("layer2.2.conv1", 16))
    assert [p.removed for p in single] == [(("layer2.1.conv1", 16),), (("layer2.2.conv1", 16),)]


def test_the_task_with_the_largest_impact_comes_first() -> None:
    # two uses of 3 s weigh more than one use of 5 s
    impacts = [
        Impact(RESNET20.tasks["layer3.0.conv1"], 5.0, 16),
        Impact(RESNET20.tasks["layer2.1.conv1"], 3.0, 16),
    ]
    found = proposals(impacts, RESNET20.graph, RESNET20.scores, widths(RESNET20.graph), NOTHING, 8)
    assert next(found).task.layers[0] == "layer2.1.conv1"


def test_a_rejected_set_is_tried_with_one_step_more() -> None:
    key = "layer3.1.conv1 layer3.2.conv1"
    again = RESNET20.propose("layer3.1.conv1", 16, Memory(frozenset(), {key: 2}))[0]
    assert dict(again.removed) == {"layer3.1.conv1": 48, "layer3.2.conv1": 48}


def test_the_halves_of_an_excluded_set_are_tried_and_the_half_that_matters_less_comes_first() -> None:
    case = Case("resnet56")
    layers = [f"layer3.{i}.conv1" for i in range(1, 9)]  # eight groups of one task
    for i, name in enumerate(layers):
        case.scores[name] = case.scores[name] + i % 2 * 100  # every second one matters more
    found = case.propose(layers[0], 16, Memory(frozenset({" ".join(layers)}), {}))
    assert [p.key for p in found[:2]] == [" ".join(layers[0::2]), " ".join(layers[1::2])]
    assert [len(p.removed) for p in found] == [4, 4, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1]


def test_an_excluded_set_is_left_alone_but_its_members_are_tried() -> None:
    found = RESNET20.propose("layer2.1.conv1", 16, Memory(frozenset({"layer2.1.conv1 layer2.2.conv1"}), {}))
    assert [p.key for p in found] == ["layer2.1.conv1", "layer2.2.conv1"]


def test_a_layer_too_narrow_for_a_step_is_offered_half_of_it() -> None:
    # 16 of 16 channels would be all; 8 is the smallest number that the layout tells apart
    assert RESNET20.propose("layer1.0.conv1", 16)[0].step == 8


def test_no_layer_loses_more_than_the_sparsity_allows() -> None:
    assert RESNET20.propose("layer2.1.conv1", 16, sparsity=0.5)[0].step == 16  # 32 -> 16 is half
    assert RESNET20.propose("layer2.1.conv1", 16, sparsity=0.49)[0].step == 8


def test_a_padded_stream_of_two_groups_is_narrowed_through_one_of_them() -> None:
    # the second stage's stream is the first stage's 16 channels and 16 of its own
    first = RESNET20.propose("layer2.1.conv2", 8)[0]
    assert len(first.removed) == 1
    assert first.removed[0][1] == 8


def test_a_stream_of_two_groups_of_16_loses_16_as_8_and_8() -> None:
    first = RESNET20.propose("layer2.1.conv2", 16)[0]
    assert sorted(count for _, count in first.removed) == [8, 8]


def test_a_head_that_is_wider_than_the_step_goes_as_a_whole() -> None:
    model = captured_net(Vit)  # 24 outputs are q, k and v of two heads of 4
    graph = analyse(model.network, model.example, whole_heads=True)
    task = next(t for t in lower(model.network, model.example, 8).tasks() if "qkv" in t.layers)
    scores = {g.id: np.arange(g.channels, dtype=float) for g in graph.groups}
    first = next(proposals([Impact(task, 1.0, 8)], graph, scores, widths(graph), NOTHING, 8))
    assert first.removed == (("qkv", 1),)  # 12 channels, not 8


def test_the_channels_with_the_lowest_scores_go() -> None:
    proposal = FASHION.propose("layer2.0.conv1", 16)[0]
    chosen = channels(proposal, {g: -s for g, s in FASHION.scores.items()})
    assert chosen["layer2.0.conv1"] == list(range(48, 64))


def test_a_frozen_layer_has_no_proposal() -> None:
    assert FASHION.propose("linear", 4) == []


def test_what_is_proposed_can_be_pruned_until_nothing_is_left_to_propose() -> None:
    network, graph = FASHION.network, FASHION.graph
    first = widths(graph)
    for _ in range(60):
        tasks = [t for t in lower(network, FASHION.example, 16).tasks() if t.layers]
        scores = {g.id: np.arange(g.channels, dtype=float) for g in graph.groups}
        found = next(proposals([Impact(t, 1.0, 16) for t in tasks], graph, scores, first, NOTHING, 8), None)
        if found is None:
            break
        network = prune(network, graph, channels(found, scores))
        graph = analyse(network, FASHION.example)
    else:
        raise AssertionError("60 steps and no end")
    assert all(w >= 0.2 * first[name] for name, w in widths(graph).items())
    with torch.no_grad():
        assert network.eval()(*FASHION.example).shape == (1, 10)
