"""The trainer on cprune's data: what its trainings share, what they say, and what it passes on."""

from __future__ import annotations

import platform
import resource
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cprune.progress import Progress
from cprune.training import trainer as module
from cprune.training.computing import keep_freed_memory
from cprune.training.data import Data
from cprune.training.trainer import CallableTrainer, Checkpoint, DataTrainer, Schedule
from tests.stripes import small_net, stripes, weights


class Seen(Progress):
    """Notes what it is told."""

    def __init__(self, live_for: int = 10**6) -> None:
        self.bars: list[tuple[str, int]] = []
        self.units: list[int] = []
        self.said: list[str] = []
        self.live_for = live_for

    def start(self, text: str, total: int) -> None:
        self.bars.append((text, total))

    def advance(self, units: int = 1) -> None:
        self.units.append(units)
        if len(self.units) == self.live_for:
            raise KeyboardInterrupt

    def say(self, text: str) -> None:
        self.said.append(text)


class Counting(nn.Module):
    """A teacher that counts the images it is shown in batches of more than the two that are tried out."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.shown = small_net(1), 0

    def forward(self, x: Tensor) -> Tensor:
        self.shown += len(x) if len(x) > 2 else 0
        return self.net(x)  # type: ignore[no-any-return]


def stripes_data(augment: bool = True, classes: int = 2) -> Data:
    return Data("stripes", stripes(128), stripes(32, 1), stripes(32, 2), stripes(32, 3), classes, augment)


def test_trainings_share_the_answers_of_the_teacher() -> None:
    teacher = Counting()
    trainer = DataTrainer(stripes_data(), teacher, threads=1)
    trainer.fine_tune(small_net(), Schedule(1, 0.01), 0, Seen())
    assert teacher.shown == 128
    trainer.fine_tune(small_net(), Schedule(3, 0.01, varied=True), 1, Seen())
    assert teacher.shown == 3 * 128  # views 1 and 2
    trainer.fine_tune(small_net(2), Schedule(3, 0.01, varied=True, batch=32), 2, Seen())
    assert teacher.shown == 3 * 128


@pytest.mark.parametrize(("augment", "distil"), [(False, True), (True, False)])
def test_data_without_augmentation_have_one_view_and_no_teacher_is_not_asked(augment: bool, distil: bool) -> None:
    teacher = Counting()
    trainer = DataTrainer(stripes_data(augment), teacher, threads=1, distil=distil)
    trainer.fine_tune(small_net(), Schedule(3, 0.01, varied=True), 0, Seen())
    assert teacher.shown == (128 if distil else 0)


def test_large_answers_are_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "affordable_views", lambda images, classes: 2)
    trainer, seen = DataTrainer(stripes_data(), small_net(), threads=1), Seen()
    for seed in (0, 1):
        trainer.fine_tune(small_net(), Schedule(1, 0.01, varied=True), seed, seen)
    (said,) = seen.said
    assert "trained with 2 of 8 views" in said


def test_the_bar_of_a_training_that_goes_on_begins_where_it_was(tmp_path: Path) -> None:
    def training(seen: Seen) -> Tensor:
        model = small_net()
        schedule = Schedule(2, 0.01, batch=32)
        checkpoint = Checkpoint(tmp_path / "training.safetensors", every_s=0, say=seen.say)
        DataTrainer(stripes_data(), small_net(1), threads=1).fine_tune(model, schedule, 0, seen, checkpoint)
        return weights(model)

    with pytest.raises(KeyboardInterrupt):
        training(Seen(live_for=5))
    seen = Seen()
    resumed = training(seen)
    assert seen.bars == [("fine-tuning", 8)]
    assert seen.units == [6, 1, 1]
    assert seen.said == ["the training goes on after step 5 of 8"]
    (tmp_path / "training.safetensors").unlink()
    assert torch.equal(training(Seen()), resumed)


def test_a_pace_is_known_of_data_and_not_of_functions() -> None:
    found = DataTrainer(stripes_data(), small_net(1), threads=1).pace(small_net(), Schedule(1, 0.01, varied=True))
    assert found.seconds_per_epoch > 0
    assert found.unknown_views == 8
    functions = CallableTrainer(lambda model: 0.9, None)
    functions.fine_tune(small_net(), Schedule(1, 0.01), 0, Seen(), Checkpoint(Path("nowhere")))
    assert functions.pace(small_net(), Schedule(1, 0.01)) is None
    assert not Path("nowhere").exists()


def test_samples_are_training_images_drawn_with_the_seed_and_functions_show_none() -> None:
    trainer = DataTrainer(stripes_data(), small_net(1), threads=1)
    few, again, others = (trainer.samples(40, seed) for seed in (3, 3, 4))
    assert len(few) == 40
    assert torch.equal(few.images, again.images)
    assert not torch.equal(few.images, others.images)
    assert len(trainer.samples(1000, 0)) == 128  # all there are
    assert CallableTrainer(lambda model: 0.9, None).samples(40, 0) is None


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's setting")
def test_freed_memory_is_kept_for_the_next_step() -> None:
    keep_freed_memory()

    def faults_of(steps: int) -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(steps):
            activations = [torch.ones(2**21) for _ in range(8)]  # 8 MiB each, 2,048 pages
            del activations
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    faults_of(2)
    assert faults_of(10) < 10 * 8 * 2048 / 4
