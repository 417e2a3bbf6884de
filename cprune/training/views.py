"""Views of the training images: as they are, or each flipped and moved by what a seed drew; and a teacher's answers.

Beyer et al., "Knowledge distillation: a good teacher is patient and consistent" (CVPR 2022): the teacher must see
an image as the student sees it.  To ask it about every batch again makes a student of half its size train 1.7 times as
long.  So there are a few fixed views of all images instead of a new one every epoch, and the teacher is asked about
each view once; its answers serve every later epoch and every later training.  Ours alone, no paper's: fixed views.
"""

from __future__ import annotations

import hashlib
import statistics
import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cprune.training.computing import faster_in_bfloat16, fastest_layout, in_mode
from cprune.training.data import Split

VIEWS = 8
ANSWERS_BYTES = 512 * 2**20  # what the answers about all views may take of the memory
_BATCH = 128


def affordable_views(images: int, classes: int, limit_bytes: int = ANSWERS_BYTES) -> int:
    """Return how many views, 1 to VIEWS, a teacher's float32 logits [images, classes] fit into memory for."""
    return max(1, min(VIEWS, limit_bytes // max(1, 4 * images * classes)))


def seed_from(*key: int | str) -> int:
    """Return a seed that follows from `key` alone."""
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8], "little") >> 1


def drawn_from(*key: int | str) -> torch.Generator:
    """Return a generator whose numbers follow from `key` alone."""
    return torch.Generator().manual_seed(seed_from(*key))


@dataclass(frozen=True, eq=False)
class _Moves:
    """Whether each of N images is flipped, bool [N], and where its window begins, int64 [N] down and [N] across."""

    flipped: Tensor
    down: Tensor
    across: Tensor

    @classmethod
    def drawn(cls, count: int, shift: int, generator: torch.Generator) -> _Moves:
        flipped = torch.rand(count, generator=generator) < 0.5
        down, across = torch.randint(0, 2 * shift + 1, (2, count), generator=generator)
        return cls(flipped, down, across)

    def of(self, index: Tensor) -> _Moves:
        return _Moves(self.flipped[index], self.down[index], self.across[index])


class Views:
    """The images of `split` in `count` views, and what `teacher` says about each.

    View 0 is the images as they are.  In every other one each image is flipped left to right or not and moved by up to
    a tenth of its width, as `seed` drew it: the same for every training that shares these views.  Where there is no
    teacher to ask and more than one view, every epoch has a new one.
    """

    def __init__(self, split: Split, teacher: nn.Module | None = None, seed: int = 0, count: int = 1) -> None:
        self.split, self.teacher, self.seed, self.count = split, teacher, seed, count
        self._shift = split.images.shape[3] // 10
        self._answers: dict[int, Tensor] = {}
        self._moves: tuple[int, _Moves] | None = None

    def of_epoch(self, epoch: int, varied: bool, most: int = VIEWS) -> int:
        """Return which view an epoch (from 0) sees: always view 0 unless `varied`, and one of the first `most`."""
        if not varied or self.count == 1:
            return 0
        return epoch if self.teacher is None else epoch % min(self.count, most)

    def images(self, view: int, index: Tensor, layout: torch.memory_format = torch.contiguous_format) -> Tensor:
        """Return some images (int64 [n]) of a view as float32 [n, C, H, W] for the model."""
        raw = self.split.images[index]
        if view > 0:
            if self._moves is None or self._moves[0] != view:
                generator = drawn_from("view", self.seed, view)
                self._moves = view, _Moves.drawn(len(self.split), self._shift, generator)
            raw = _moved(raw, self._moves[1].of(index), self._shift)
        return self.split.model_input(raw).contiguous(memory_format=layout)

    def answers(self, view: int) -> Tensor | None:
        """Return the teacher's logits, float32 [N, classes], about all images of a view; None without a teacher.

        The first time the teacher is asked, always in the same batches, so that who asks does not matter; then they
        are kept.
        """
        if self.teacher is None:
            return None
        if view not in self._answers:
            self._answers[view] = torch.cat(list(self._asked(self.teacher, view)))
        return self._answers[view]

    def unknown(self, varied: bool, most: int = VIEWS) -> int:
        """Return about how many views, of those that a training may see, the teacher has yet to be asked."""
        if self.teacher is None:
            return 0
        return sum(view not in self._answers for view in range(min(self.count, most) if varied else 1))

    def seconds_to_ask(self, batches: int = 6) -> float:
        """Return how long the teacher needs for one view, 0 without one: the median of a few batches; none is kept."""
        if self.teacher is None:
            return 0.0
        took_s = []
        with closing(self._asked(self.teacher, self.of_epoch(1, True))) as parts:
            began = time.perf_counter()
            for _ in islice(parts, batches + 1):
                took_s.append(time.perf_counter() - began)
                began = time.perf_counter()
        # The first one waits for what the teacher can be computed in to be tried out.
        return statistics.median(took_s[1:] or took_s) * len(self.split) / min(_BATCH, len(self.split))

    def _asked(self, teacher: nn.Module, view: int) -> Generator[Tensor, None, None]:
        """Yield the logits batch by batch."""
        sample = self.images(0, torch.arange(min(2, len(self.split))))
        with (
            in_mode(teacher, training=False),
            torch.no_grad(),
            fastest_layout(teacher, sample, False) as layout,
            torch.autocast("cpu", torch.bfloat16, enabled=faster_in_bfloat16(teacher, sample, False)),
        ):
            for part in torch.split(torch.arange(len(self.split)), _BATCH):
                yield teacher(self.images(view, part, layout)).float()


def augmented(images: Tensor, generator: torch.Generator, shift: int) -> Tensor:
    """Return the batch [N, C, H, W] with every image flipped left to right or not, and moved by up to `shift`
    pixels.

    What moves in from outside is zero, so this belongs before normalisation, where zero is black.  The result
    is one gather, in channels-last memory, of the dtype it was given.
    """
    return _moved(images, _Moves.drawn(len(images), shift, generator), shift)


def _moved(images: Tensor, moves: _Moves, shift: int) -> Tensor:
    count, _, height, width = images.shape
    padded = F.pad(images, (shift, shift, shift, shift))
    across = torch.arange(width).expand(count, width)
    across = torch.where(moves.flipped[:, None], width - 1 - across, across)
    columns = (across + moves.across[:, None])[:, None, :]
    rows = (torch.arange(height) + moves.down[:, None])[:, :, None]
    return padded[torch.arange(count)[:, None, None], :, rows, columns].permute(0, 3, 1, 2)
