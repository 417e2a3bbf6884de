"""Views of images: flips and moves by hand, one seed for all trainings, and a teacher that is asked once about each."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cprune.training.data import Split
from cprune.training.train import logits
from cprune.training.views import Views, affordable_views, augmented
from tests.stripes import small_net, stripes

EVERYTHING = torch.arange(64)


class Counting(nn.Module):
    """A teacher that counts the images it is shown in batches of more than the two that are tried out."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.shown = small_net(1), 0

    def forward(self, x: Tensor) -> Tensor:
        self.shown += len(x) if len(x) > 2 else 0
        return self.net(x)  # type: ignore[no-any-return]


def test_without_a_shift_every_image_is_itself_or_its_mirror_image() -> None:
    images = torch.arange(20 * 2 * 3 * 5).reshape(20, 2, 3, 5)
    result = augmented(images, torch.Generator().manual_seed(0), shift=0)
    same = [torch.equal(a, b) for a, b in zip(result, images, strict=True)]
    mirrored = [torch.equal(a, b.flip(2)) for a, b in zip(result, images, strict=True)]
    assert all(a != b for a, b in zip(same, mirrored, strict=True))
    assert 0 < sum(same) < 20


def test_a_shift_moves_the_image_and_lets_zeros_in() -> None:
    images = torch.ones(200, 1, 6, 6)
    result = augmented(images, torch.Generator().manual_seed(0), shift=2)
    # Moved by (i, j) pixels, (6 - |i|) * (6 - |j|) ones are left: the products of 4, 5 and 6.
    assert {int(total) for total in result.sum((1, 2, 3))} == {16, 20, 24, 25, 30, 36}


def test_augmented_bytes_stay_bytes() -> None:
    assert augmented(stripes(4).images, torch.Generator(), shift=1).dtype == torch.uint8


def test_view_0_is_the_images_as_they_are_and_the_others_are_not() -> None:
    split = Split(torch.rand(64, 1, 10, 10), torch.zeros(64, dtype=torch.int64))
    views = Views(split, count=8)
    assert torch.equal(views.images(0, EVERYTHING), split.images)
    assert not torch.equal(views.images(1, EVERYTHING), split.images)
    assert not torch.equal(views.images(1, EVERYTHING), views.images(2, EVERYTHING))


def test_an_image_looks_the_same_in_a_view_whatever_batch_it_is_in() -> None:
    split = Split(torch.rand(64, 1, 10, 10), torch.zeros(64, dtype=torch.int64))
    whole = Views(split, seed=3, count=8).images(5, EVERYTHING)
    some = torch.tensor([63, 7, 8])
    other = Views(split, seed=3, count=8)
    other.images(2, some)
    assert torch.equal(other.images(5, some), whole[some])
    assert not torch.equal(Views(split, seed=4, count=8).images(5, EVERYTHING), whole)


def test_epochs_go_round_the_views_and_start_with_the_images_as_they_are() -> None:
    taught, free = Views(stripes(8), small_net(), count=3), Views(stripes(8), count=3)
    assert [taught.of_epoch(epoch, True) for epoch in range(5)] == [0, 1, 2, 0, 1]
    # Without a teacher nothing is kept of a view, so every epoch has its own.
    assert [free.of_epoch(epoch, True) for epoch in range(5)] == [0, 1, 2, 3, 4]
    assert [taught.of_epoch(epoch, False) for epoch in range(5)] == [0] * 5
    assert [Views(stripes(8)).of_epoch(epoch, True) for epoch in range(5)] == [0] * 5


def test_the_teacher_is_asked_once_about_each_view() -> None:
    teacher = Counting()
    views = Views(stripes(64), teacher, count=4)
    assert views.unknown(varied=True) == 4
    first = views.answers(2)
    assert first is not None
    assert teacher.shown == 64
    assert views.answers(2) is first
    assert teacher.shown == 64
    assert (views.unknown(varied=True), views.unknown(varied=False)) == (3, 1)


def test_the_answers_are_those_to_the_images_of_the_view() -> None:
    split, teacher = stripes(200), small_net(1)
    views = Views(split, teacher, count=4)
    for view in (0, 3):
        shown = Split(views.images(view, torch.arange(200)), split.labels)
        found = views.answers(view)
        assert found is not None
        assert found.dtype == torch.float32
        assert torch.allclose(found, logits(teacher, shown), atol=0.02)  # bfloat16 where the CPU has it


def test_who_asks_for_what_first_does_not_change_an_answer() -> None:
    first, second = (Views(stripes(200), small_net(1), count=4) for _ in range(2))
    ahead = [first.answers(view) for view in (0, 1, 2)]
    behind = [second.answers(view) for view in (2, 1, 0)][::-1]
    assert all(torch.equal(a, b) for a, b in zip(ahead, behind, strict=True) if a is not None and b is not None)


def test_without_a_teacher_there_are_no_answers() -> None:
    assert Views(stripes(8)).answers(0) is None
    assert Views(stripes(8)).unknown(varied=True) == 0
    assert Views(stripes(8)).seconds_to_ask() == 0.0


def test_asking_is_timed_and_forgotten() -> None:
    views = Views(stripes(2000), small_net(1), count=4)
    assert 0 < views.seconds_to_ask() < 60
    assert views.unknown(varied=True) == 4


def test_large_answers_leave_fewer_views() -> None:
    # 50,000 images of 10 classes are 2 MB a view: all eight.  Of 1,000 classes 200 MB, so two into 512 MiB.
    assert affordable_views(50_000, 10) == 8
    assert affordable_views(50_000, 1000) == 2
    assert affordable_views(1_300_000, 1000) == 1
    assert affordable_views(100, 10, limit_bytes=4 * 100 * 10 * 3) == 3
