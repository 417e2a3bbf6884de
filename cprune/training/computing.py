"""How a model is computed on this CPU: its mode, the memory format and the number format that are fastest."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MOST = -1, -3, 32 * 2**20  # of glibc's malloc.h


def keep_freed_memory() -> None:
    """Let this process keep the memory that one step frees for the next, which takes as much again.

    glibc gives large pieces back at once, and the system hands them out anew page by page: 10,000 page faults a step of
    ResNet-20, a twelfth of its time.  Where the C library is another one nothing changes.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(_MMAP_THRESHOLD, _MMAP_MOST)
    mallopt(_TRIM_THRESHOLD, 2**31 - 1)


@contextmanager
def in_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """Put the model into training or evaluation mode, and into evaluation mode at the end."""
    model.train(training)
    try:
        yield
    finally:
        model.eval()


@contextmanager
def fastest_layout(model: nn.Module, images: Tensor, training: bool) -> Iterator[torch.memory_format]:
    """Yield the memory format for images; convolution weights are in it meanwhile.

    Channels last trains 1.2 to 1.5 times as fast on a CPU.  A model that cannot take it, because of a `view`
    of the plane perhaps, gets what it always gets.
    """
    chosen = torch.contiguous_format
    try:
        try:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            if runs(model, images.contiguous(memory_format=torch.channels_last), training):
                chosen = torch.channels_last
        except RuntimeError:  # a weight that has no such format
            pass
        model.to(memory_format=chosen)  # type: ignore[call-overload]
        yield chosen
    finally:
        model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]


def faster_in_bfloat16(model: nn.Module, images: Tensor, training: bool) -> bool:
    """Tell whether this CPU computes in bfloat16 (elsewhere it is emulated, slower than float32) and the model can."""
    return _has_bfloat16() and runs(model, images, training, bfloat16=True)


def _has_bfloat16() -> bool:
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(getattr(torch.cpu, name)()) for name in names if hasattr(torch.cpu, name))


def runs(model: nn.Module, images: Tensor, training: bool, bfloat16: bool = False) -> bool:
    """Tell whether the model can go forward (and back) on these images in this way; nothing in it changes."""
    parameters = [value for value in model.parameters() if value.requires_grad]
    with in_mode(model, training=False):
        try:
            with (
                torch.set_grad_enabled(training),
                torch.autocast("cpu", torch.bfloat16, enabled=bfloat16),
            ):
                total = model(images).float().sum()
            if training:
                torch.autograd.grad(total, parameters, allow_unused=True)
        except (RuntimeError, TypeError):
            return False
    return True


def statistics_of(model: nn.Module) -> dict[str, Tensor]:
    """Return the running statistics of every normalisation, the buffers themselves, by name."""
    ends = ("running_mean", "running_var")
    return {name: value for name, value in model.named_buffers() if name.endswith(ends)}
