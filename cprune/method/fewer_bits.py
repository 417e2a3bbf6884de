"""A run's models in fewer bits, and the training images that the ranges of their values come from."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from cprune.network.halving import HALVES, halved
from cprune.network.network import Network
from cprune.network.quantizing import quantized
from cprune.targets.errors import UserError
from cprune.training.trainer import Trainer

CALIBRATION_IMAGES, LEAST_IMAGES, CALIBRATION_BATCH = 256, 32, 64
CALIBRATION_PIXELS = CALIBRATION_IMAGES * 64 * 64  # of large images fewer are enough, and as many would take minutes


class FewerBits:
    """Rounds the networks of one run, all with the same images; they are drawn when they are first needed.

    `floats` are the layers of a network in bf16 or fp16 that stay in fp32.
    """

    def __init__(self, example: tuple[Tensor, ...], trainer: Trainer, seed: int, floats: tuple[str, ...] = ()) -> None:
        self.example, self.trainer, self.seed, self.floats = example, trainer, seed, floats
        self._shown: Sequence[Sequence[Tensor]] | None = None

    def rounded(self, network: Network, precision: str) -> Network:
        """Return a copy of the network in bf16, fp16 or int8.  Raises UserError where int8 has no images to see."""
        if precision in HALVES:
            return halved(network, self.example, self.floats, precision).eval()
        return quantized(network, self.shown()).eval()

    def shown(self) -> Sequence[Sequence[Tensor]]:
        """Return the images, in batches, that ranges come from.  Raises UserError where none can be seen."""
        if self._shown is None:
            pixels = self.example[0].shape[2:].numel()
            images = max(LEAST_IMAGES, min(CALIBRATION_IMAGES, CALIBRATION_PIXELS // max(1, pixels)))
            split = self.trainer.samples(images, 7 * self.seed)
            if split is None:
                raise UserError("int8 needs training images that cprune can see", "Give --data, or --precision fp32.")
            self._shown = split.inputs(CALIBRATION_BATCH)
        return self._shown
