"""Rounding that is learnt: outputs are nearer to the floats', and what was learnt rounds to itself."""

from __future__ import annotations

import torch
from test_integers import residual

from cprune.network.capture import capture
from cprune.network.flexround import learn_rounding
from cprune.network.folding import folded
from cprune.network.network import Network
from cprune.network.quantizing import channel_means, quantized, quantized_weight, rounded, to_steps


def wrong(network: Network, plain: Network, images: torch.Tensor) -> float:
    with torch.no_grad():
        return float((network(images) - plain(images)).square().mean())


def test_learnt_weights_are_on_the_steps_of_their_channels_and_answer_nearer_to_the_floats() -> None:
    model, images = residual()
    plain = folded(capture(model, (images[:1],))).eval()
    layers = list(channel_means(plain, (images,)))
    nearest = rounded(folded(plain).eval(), layers)
    learnt = folded(plain).eval()
    learn_rounding(learnt, plain, layers, (images,))
    again = rounded(folded(learnt).eval(), layers)
    before, after = plain.tensors(), learnt.tensors()
    for name in ("stem.weight", "first.weight", "depthwise.weight", "linear.weight"):
        assert torch.equal(after[name], again.tensors()[name])  # rounding it once more changes nothing
        steps = (quantized_weight(before[name])[0] - quantized_weight(after[name])[0]).abs()
        assert steps.max() <= 8
        assert (steps <= 1).double().mean() > 0.8
    assert not torch.equal(after["first.weight"], to_steps(before["first.weight"]))
    assert wrong(learnt, plain, images) < wrong(nearest, plain, images)


def test_a_network_in_integers_may_be_made_with_it() -> None:
    model, images = residual()
    network = capture(model, (images[:1],))
    usual, learnt = (quantized(network, [(images,)], learn=each).eval() for each in (None, learn_rounding))
    assert not torch.equal(usual.tensors()["first.weight"], learnt.tensors()["first.weight"])
    assert wrong(learnt, network, images) < 2 * wrong(usual, network, images)  # values are rounded as well
