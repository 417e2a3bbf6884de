"""`cprune check`: does pruning this model compute what it should, and does its compiled code?

For every channel group a few channels are removed, and the smaller network is compared with the whole one in which
those channels are held at zero.  Then all groups are pruned at once, down to one channel in the last test.  Every
residual branch is removed likewise, alone and with all others.  In the end the model is compiled, whole, pruned and
without its branches, and compared with PyTorch.  Where the target multiplies bytes the same is done in integers, and
every value in bytes is compared, kernel by kernel.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cprune.channels.branches import Branch, branches, without, zeroed
from cprune.channels.graph import Graph, Group
from cprune.channels.groups import analyse
from cprune.channels.surgery import Removed, masked, prune
from cprune.commands.check_integers import as_simulated
from cprune.commands.request import Request
from cprune.compiling.tuned import Tuned, multiplies, tune
from cprune.network.difference import PRUNED_TOLERANCE, difference
from cprune.network.halving import HALVES, halved
from cprune.network.network import Network
from cprune.network.precision import precision, tolerance
from cprune.network.quantizing import quantized
from cprune.progress import Progress
from cprune.targets.errors import CpruneError, UserError, type_and_first_line
from cprune.targets.session import Failure, Session
from cprune.tuner.tune import Tuner

SHARE = 0.3


@dataclass(frozen=True)
class Wrong:
    """A comparison that failed; `max_difference` is None where nothing came out to be compared.

    `group` is the id of a group or of a branch, "all groups" or "all branches"; empty for the compiled model.
    """

    group: str
    what: str
    max_difference: float | None


@dataclass(frozen=True)
class Checked:
    """How many groups, branches and frozen places a model has, whether compiled code was compared, what was wrong.

    `integers` and `halves` say how many values in bytes and in 16 bits were compared.
    """

    model: str
    groups: int
    branches: int
    frozen: int
    compiled: bool
    failures: tuple[Wrong, ...]
    integers: int = 0
    halves: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return what `cprune check --json` prints."""
        return {
            "model": self.model,
            "groups": self.groups,
            "branches": self.branches,
            "frozen": self.frozen,
            "compiled": self.compiled,
            "integers": self.integers,
            "halves": self.halves,
            "failed": len(self.failures),
            "failures": [asdict(wrong) for wrong in self.failures],
        }


def check(request: Request, compiled: bool, progress: Progress) -> Checked:
    """Compare pruned with masked, removed branches with zeros and, if `compiled`, compiled code with PyTorch."""
    settings, opened = request.settings, request.opened()
    network, inputs = opened.network.eval(), opened.example_inputs
    graph = analyse(network, inputs, settings.ignore, settings.whole_heads)
    if settings.strict:
        graph.must_be_free()
    found = branches(network, inputs, settings.ignore)
    failures = list(pruned_as_masked(network, graph, inputs, settings.seed, progress))
    failures += removed_as_zero(network, found, inputs, settings.seed, progress) if found else ()
    models = [("the whole model", network)]
    if graph.groups:
        models.append(("the pruned model", prune(network, graph, _some(graph.groups, random.Random(settings.seed)))))
    if found:
        models.append(("the model without its branches", without(network, found)))
    rounded = Counter[str]()
    if compiled:
        with request.tuner(progress) as (session, tuner):
            if multiplies(tuner.target, "int8") and precision(network) == "fp32":
                shown = [tuple(_noise(x, settings.seed) for x in inputs)]
                models += [(f"{what}, in integers", quantized(model, shown).eval()) for what, model in models[:2]]
            for half in HALVES if precision(network) == "fp32" else ():
                if multiplies(tuner.target, half):
                    models.append((f"the whole model, in {half}", halved(network, inputs, precision=half).eval()))
            for what, model in models:
                tuned = _tuned(what, model, inputs, tuner, settings.trials, progress)
                if isinstance(tuned, Wrong):
                    failures.append(tuned)
                    continue
                failures += _compiled(what, tuned, session)
                for value in as_simulated(tuned, session) if precision(model) != "fp32" else ():
                    rounded[precision(model)] += 1
                    if value.steps is None or value.steps > 1:
                        said = "does not run" if value.steps is None else f"is {value.steps} steps from PyTorch's"
                        failures.append(Wrong("", f"{what}: the value {value.value!r} {said}", None))
    counts = len(graph.groups), len(found), len(graph.frozen)
    return Checked(opened.name, *counts, compiled, tuple(failures), rounded["int8"], rounded["bf16"] + rounded["fp16"])


def pruned_as_masked(
    network: Network, graph: Graph, inputs: tuple[Tensor, ...], seed: int, progress: Progress
) -> Iterator[Wrong]:
    """Yield what differs: for each group alone, for all together, and with one channel left in each."""
    chosen = random.Random(seed)
    trials: list[tuple[str, Removed]] = [(group.id, _some((group,), chosen)) for group in graph.groups]
    if graph.groups:
        trials.append(("all groups", _some(graph.groups, chosen)))
        trials.append(("all groups, one channel each", {g.id: range(1, g.channels) for g in graph.groups}))
    noise = tuple(_noise(x, seed) for x in inputs)

    def outputs(removed: Removed) -> tuple[Any, Any]:
        return prune(network, graph, removed)(*noise), masked(network, graph, removed, *noise)

    progress.start("comparing pruned with masked", len(trials))
    for name, removed in trials:
        yield from _compared(name, "the pruned model", "the masked one", partial(outputs, removed))
        progress.advance()
    progress.done()


def removed_as_zero(
    network: Network, found: Sequence[Branch], inputs: tuple[Tensor, ...], seed: int, progress: Progress
) -> Iterator[Wrong]:
    """Yield what differs when a residual branch goes: each alone, and all together."""
    trials = [(branch.id, [branch]) for branch in found]
    if len(found) > 1:
        trials.append(("all branches", list(found)))
    noise = tuple(_noise(x, seed) for x in inputs)

    def outputs(chosen: Sequence[Branch]) -> tuple[Any, Any]:
        return without(network, chosen)(*noise), zeroed(network, chosen, *noise)

    progress.start("comparing removed branches with zeros", len(trials))
    for name, chosen in trials:
        yield from _compared(name, "the model without it", "the one with its value at zero", partial(outputs, chosen))
        progress.advance()
    progress.done()


def _compared(name: str, ours: str, theirs: str, outputs: Callable[[], tuple[Any, Any]]) -> Iterator[Wrong]:
    """Yield what is wrong if two models, called so, do not return the same."""
    try:
        with torch.no_grad():
            apart = difference(*outputs())
        if apart > PRUNED_TOLERANCE:
            yield Wrong(name, f"{ours} differs from {theirs}", apart)
    except (CpruneError, RuntimeError, IndexError, ValueError, TypeError) as error:
        yield Wrong(name, f"{ours} does not run: {type_and_first_line(error)}", None)


def _some(groups: tuple[Group, ...], chosen: random.Random) -> Removed:
    """Return some 30 % of the channels of each group, one at least and never all."""
    return {g.id: sorted(chosen.sample(range(g.channels), max(1, int(SHARE * g.channels)))) for g in groups}


def _noise(x: Tensor, seed: int) -> Tensor:
    if not x.is_floating_point():
        return x
    return torch.randn(x.shape, generator=torch.Generator().manual_seed(seed + 1)).to(x)


def _tuned(
    what: str, network: Network, inputs: tuple[Tensor, ...], tuner: Tuner, trials: int, progress: Progress
) -> Tuned | Wrong:
    """Return a model with one program a task."""
    try:
        return tune(network, inputs, tuner, trials, progress)
    except UserError as error:
        return Wrong("", f"{what} cannot be compiled: {error.message}", None)


def _compiled(what: str, tuned: Tuned, session: Session) -> Iterator[Wrong]:
    """Yield what is wrong with a compiled model, compared with PyTorch."""
    outputs = tuned.run(session, "checked")
    session.drop("checked")
    if isinstance(outputs, Failure):
        yield Wrong("", f"{what} does not work when compiled ({outputs.stage}): {outputs.reason}", None)
        return
    apart = tuned.difference(outputs)
    if apart > tolerance(tuned.network):
        yield Wrong("", f"{what}, compiled, differs from PyTorch", apart)
