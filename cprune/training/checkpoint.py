"""What a training leaves on disk now and then, so that a killed one goes on where it was: one safetensors file.

Nothing is unpickled when it is read.  A file that is damaged, or of another training, is as good as none.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor

from cprune.files import atomic_write, disk_errors

FORMAT = "cprune training 1"


class Checkpoint:
    """The file `path` of one training: written when `every_s` seconds have passed since the last time.

    It outlives its training, for a kill may come before the trained model is kept anywhere: `discard` it then.  A
    training that does not match it begins anew, and writes over it.  `say` gets a sentence about a damaged file and
    about a training that goes on.
    """

    def __init__(
        self,
        path: Path,
        every_s: float = 60.0,
        say: Callable[[str], None] = lambda text: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path, self.every_s, self.say = path, every_s, say
        self._clock = clock
        self._written_at = clock()
        self._parts: list[Checkpoint] = []

    def beside(self, name: str) -> Checkpoint:
        """Return one for the next part of the same training; it is discarded with this one."""
        self._parts.append(Checkpoint(self.path.with_suffix(f".{name}"), self.every_s, self.say, self._clock))
        return self._parts[-1]

    @property
    def due(self) -> bool:
        """Tell whether it is time to write."""
        return self._clock() - self._written_at >= self.every_s

    def begin(self, training: str) -> Mapping[str, Tensor] | None:
        """Return what the training of that fingerprint last wrote; None if that is nothing, damaged or another's.

        From now on the seconds count.
        """
        self._written_at = self._clock()
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            self.say(f"cannot read {self.path} ({error.strerror}): the training begins anew")
            return None
        try:
            about = _header(data)
            if (about["format"], about["training"]) != (FORMAT, training):
                return None
            tensors = tensors_from_bytes(data)
            if about["sha256"] != digest(tensors):
                raise ValueError("its numbers are not those that were written")
        except (ValueError, KeyError, TypeError, SafetensorError) as error:
            self.say(f"{self.path} is damaged ({error}): the training begins anew")
            return None
        return tensors

    def write(self, training: str, tensors: Mapping[str, Tensor]) -> None:
        """Replace the file, atomically; its folder is made if missing.  Raises BrokenWorld if the disk is full."""
        own = {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
        about = {"format": FORMAT, "training": training, "sha256": digest(own)}
        with disk_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(self.path, tensors_to_bytes(own, metadata=about))
        self._written_at = self._clock()

    def discard(self) -> None:
        """Take the file away, if there is one, and those beside it: the trained model is kept elsewhere."""
        for each in (self, *self._parts):
            each.path.unlink(missing_ok=True)


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of names, types, shapes and numbers, whatever the memory format."""
    total = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def _header(data: bytes) -> Mapping[str, str]:
    """Return the texts in the head of a safetensors file: its length in 8 bytes, then JSON."""
    about = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    if not isinstance(about, dict):
        raise TypeError("its head holds no texts")
    return about
