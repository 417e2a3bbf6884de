"""The law of surgery for every group of every model in the zoo; in doubles, so that no rounding hides."""

from __future__ import annotations

import functools
import random
from collections.abc import Iterable

import pytest
import torch
from small_nets import Captured, randomised

from cprune.channels.graph import Group
from cprune.channels.groups import analyse
from cprune.channels.surgery import masked, prune
from cprune.models import zoo
from cprune.network.capture import capture

MODELS = [info.name for info in zoo.models()]
# What a reader of the papers expects: the first is the stream of the first stage, which all later ones
# contain.
COUNTS = {"resnet20": 12, "resnet32": 18, "resnet44": 24, "resnet56": 30, "vgg16_bn": 13}


@functools.cache
def model(name: str) -> Captured:
    loaded = zoo.load_model(name)
    x = tuple(t[..., :96, :96] for t in loaded.example_inputs)  # groups do not know how large an image is
    network = capture(randomised(loaded.model), x)
    graph = analyse(network, tuple(t.double() for t in x), raise_bugs=True)
    return Captured(network.double(), tuple(t.double() for t in x), graph)


def law(name: str, removed: dict[str, list[int]]) -> None:
    its = model(name)
    with torch.no_grad():
        found = prune(its.network, its.graph, removed)(*its.example)
        wanted = masked(its.network, its.graph, removed, *its.example)
    assert wanted.abs().max() > 0
    assert ((found - wanted).abs().max() / wanted.abs().max()) < 1e-9, removed


def alone(name: str, groups: Iterable[Group]) -> None:
    """Hold the law for each of these groups by itself."""
    for group in groups:
        count = max(1, int(0.3 * group.channels))
        law(name, {group.id: random.Random(group.id).sample(range(group.channels), count)})


@pytest.mark.parametrize("name", MODELS)
def test_some_groups_alone(name: str) -> None:
    groups = model(name).graph.groups
    alone(name, random.Random(name).sample(groups, min(5, len(groups))))


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_every_group_alone(name: str) -> None:
    alone(name, model(name).graph.groups)


@pytest.mark.parametrize("name", MODELS)
def test_all_groups_at_once(name: str) -> None:
    chosen = random.Random(name)
    groups = model(name).graph.groups
    law(name, {g.id: chosen.sample(range(g.channels), g.channels // 2) for g in groups})
    law(name, {g.id: list(range(g.channels - 1)) for g in groups})


@pytest.mark.parametrize("name", MODELS)
def test_only_the_last_layer_is_frozen(name: str) -> None:
    graph = model(name).graph
    assert [(len(frozen.layers), frozen.reason) for frozen in graph.frozen] == [(1, "the model returns it")]
    assert len(graph.groups) == COUNTS.get(name, len(graph.groups))
    for layer in graph.layers.values():
        assert graph.groups_of(layer.name) or layer.name in graph.frozen[0].layers


def test_channels_of_resnet20_by_hand() -> None:
    groups = {g.id: g for g in model("resnet20").graph.groups}
    stream = ("conv1", *(f"layer{s}.{b}.conv2" for s in (1, 2, 3) for b in (0, 1, 2)))
    assert groups["conv1"].layers == stream
    assert groups["conv1"].channels == 16
    assert groups["layer2.0.conv2"].layers == stream[4:]
    assert groups["layer2.0.conv2"].channels == 16  # 32 without the 16 from below
    assert groups["layer3.0.conv2"].layers == stream[7:]
    assert groups["layer3.0.conv2"].channels == 32
    assert groups["layer3.2.conv1"].channels == 64
