"""A tuned model: a network, its calls, and the fastest program of every task.  What every command compiles.

`tune` lowers a network in a layout that is measured or given, and spends trials on its tasks.  The result can be built
in a session (`Tuned.load`, compared with PyTorch) or written for a device (`cprune.compiling.deploy`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cprune.compiling.layout import choose_block, choose_widths, jobs
from cprune.compiling.lowered import Layout, Lowered
from cprune.compiling.lowering import lower
from cprune.compiling.relax_module import relax_model
from cprune.network.difference import difference
from cprune.network.network import Network
from cprune.network.precision import precision, tolerance
from cprune.progress import Progress
from cprune.targets.connect import connect
from cprune.targets.errors import BrokenWorld, UserError
from cprune.targets.session import Array, Failure, Model, Session
from cprune.targets.target import Target
from cprune.tuner.programs.dots import DOTS, of_target
from cprune.tuner.programs.space import Candidate
from cprune.tuner.records.store import Store
from cprune.tuner.search.strategy import DEFAULT
from cprune.tuner.tune import Best, Tuner

LEAST_BLOCK = 8
"""Channels of a block of bytes or 16 bits, at least: two instructions' worth of sums on Arm."""
NO_PROGRAMS: Mapping[str, Candidate] = {}


@dataclass(frozen=True)
class Tuned:
    """A network with its calls, the fastest program of every task by task key, and an example input."""

    network: Network
    example: tuple[Tensor, ...]
    lowered: Lowered
    best: Mapping[str, Best]

    @property
    def forecast_s(self) -> float:
        """Return the sum of the tasks' latencies: a forecast, good enough to drop hopeless candidates."""
        return sum(self.best[t.key].latency_s * t.uses for t in self.lowered.tasks())

    @property
    def trials(self) -> int:
        """Return how many candidates had to be timed for it."""
        return sum(best.measured for best in self.best.values())

    @property
    def programs(self) -> dict[str, Candidate]:
        """Return the fastest program of every task by task key."""
        return {task: best.candidate for task, best in self.best.items()}

    @property
    def layer_programs(self) -> dict[str, Candidate]:
        """Return the fastest program of every layer by name: what a narrower form of the layer is tuned from."""
        return {name: self.best[task.key].candidate for task in self.lowered.tasks() for name in task.layers}

    @property
    def arrays(self) -> list[Array]:
        """Return the example input as arrays."""
        return [x.detach().numpy() for x in self.example]

    def compiled(self) -> Model:
        """Return the model for TVM's virtual machine, with a kernel for every task."""
        return relax_model(self.lowered, self.programs)

    def run(self, session: Session, key: str) -> tuple[Array, ...] | Failure:
        """Build the model in `session` under the name `key` and return its outputs on the example."""
        return session.load(key, self.compiled()) or session.run(key, self.arrays)

    def difference(self, outputs: Sequence[Array]) -> float:
        """Return how far `outputs` are from what PyTorch makes of the example, as a share of its magnitude."""
        with torch.no_grad():
            return difference(outputs, self.network.eval()(*self.example))

    def load(self, session: Session, key: str) -> tuple[Array, ...]:
        """Do what `run` does, compare with PyTorch, and return the outputs.

        Raises BrokenWorld if the compiled model does not run, or computes something else.
        """
        outputs = self.run(session, key)
        if isinstance(outputs, Failure):
            raise BrokenWorld(f"the compiled model does not work ({outputs.stage}): {outputs.reason}")
        apart = self.difference(outputs)
        if apart > tolerance(self.network):
            raise BrokenWorld(f"the compiled model differs from PyTorch by {apart:.3g}; nothing was changed")
        return outputs


MULTIPLIED = {
    "int8": ("bytes", "x86 with VNNI, Arm with dotprod (--target android-arm64:cortex-a76, say)"),
    "bf16": ("bfloat16", "x86 with AVX-512 BF16, Arm with bf16 (--target linux-arm64:neoverse-v1, say)"),
    "fp16": ("float16", "Arm since version 8.2 (--target android-arm64:cortex-a76, say)"),
}
"""What is multiplied in each precision but fp32, and by which processors; of several the first is tried first."""


def layout_in(precision: str, target: Target) -> Layout:
    """Return the layout of models in int8, bf16 or fp16: whole blocks of channels.

    Raises UserError where the target's processor has no instruction that multiplies these.
    """
    dot = of_target(target, precision)
    if not dot:
        what, which = MULTIPLIED[precision]
        raise UserError(
            f"{target.name} ({target.cpu}) has no instruction that multiplies {what}: {precision} would be no faster "
            "there",
            f"Leave --precision away. Processors that have one: {which}.",
        )
    return Layout(max(LEAST_BLOCK, target.vector), dot=dot)


def precision_of(layout: Layout) -> str:
    """Return in which precision a layout's models multiply: fp32, int8, bf16 or fp16."""
    return DOTS[layout.dot].precision if layout.dot in DOTS else "int8" if layout.dot else "fp32"


def multiplies(target: Target, precision: str) -> bool:
    """Tell whether the target's processor has an instruction for int8, bf16 or fp16."""
    return bool(of_target(target, precision))


def tune(
    network: Network,
    example: tuple[Tensor, ...],
    tuner: Tuner,
    trials: int,
    progress: Progress,
    *,
    layout: Layout | None = None,
    siblings: Mapping[str, Candidate] = NO_PROGRAMS,
    text: str = "tuning",
    time_limit_s: float = float("inf"),
) -> Tuned:
    """Return `network` with the fastest program of every task, after at most `trials` trials each.

    Without a `layout` the best one is looked for first.  `siblings` gives a layer the program of its wider form to
    start from.  `text` names the progress bar; "" shows none.  After `time_limit_s` seconds nothing new is proposed.
    """
    if layout is None:
        layout = choose_layout(network, example, tuner, trials, progress)
    lowered = lower(network, example, layout)
    tasks = lowered.tasks()
    left = sum(tuner.left(t.workload, trials) for t in tasks)
    if left and text:
        progress.start(text, left)
    best = tuner.tune_all(jobs(tasks, siblings), trials, time_limit_s, progress.advance)
    progress.done()
    tuner.say_if_noisy(progress.say)
    return Tuned(network, example, lowered, best)


def choose_layout(
    network: Network,
    example: tuple[Tensor, ...],
    tuner: Tuner,
    trials: int,
    progress: Progress,
    *,
    layout: Layout | None = None,
    siblings: Mapping[str, Candidate] = NO_PROGRAMS,
) -> Layout:
    """Return the fastest layout by measured cost; `layout` is a first one, None to look for its block too.

    A network that rounds has whole blocks where the target multiplies what it rounds to.
    """
    fewer = precision(network)
    if layout is None and fewer != "fp32" and multiplies(tuner.target, fewer):
        layout = layout_in(fewer, tuner.target)
    if layout is None:
        layout = Layout(choose_block(network, example, tuner, trials, progress))
    return choose_widths(network, example, layout, tuner, trials, siblings, progress)


@contextmanager
def opened_tuner(
    target: Target,
    records: str | Path,
    seed: int,
    progress: Progress,
    spaces: str = "sketch",
    search: str | None = None,
) -> Iterator[tuple[Session, Tuner]]:
    """Open the record store and a session on `target`, and close both afterwards.

    The tuner's target is what the session found, with the device's processor.
    """
    with Store(records) as store, connect(target, progress.wait, progress.say) as (session, actual):
        say_if_strange(store, actual, progress)
        yield session, Tuner(session, store, actual, seed, spaces=spaces, search=search or DEFAULT)


def say_if_strange(store: Store, target: Target, progress: Progress) -> None:
    """Say so if the store knows other machines and not this one."""
    known = store.targets()
    if known and target.fingerprint not in known:
        progress.say(
            f"the records in {store.name} are of {len(known)} other machine{'s' if len(known) > 1 else ''}, none "
            f"of this one ({target.cpu}, {target.threads} threads): it is measured from the beginning"
        )
