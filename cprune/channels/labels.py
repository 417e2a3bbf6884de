"""Labels: which positions of which tensors are one and the same channel.

Every position of every value carries a label; labels that must be removed together are united into one class.
A class that must stay is frozen, with the reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Spread:
    """The labels of one value: they change along `axis` only, whatever the index on the other axes.

    `labels` has `shape[axis]` entries, or one if the whole value has one label (`axis` is 0 then).  Removing
    channels from such a value is always a plain slice along one axis; `Labels.spread` sees to it that there
    is no other kind.
    """

    shape: tuple[int, ...]
    axis: int
    labels: Array

    @property
    def constant(self) -> bool:
        """Tell whether the whole value has one label."""
        return len(self.labels) == 1

    def varies(self, axis: int) -> bool:
        """Tell whether the labels change along `axis`."""
        return self.axis == axis and not self.constant

    def tensor(self) -> Tensor:
        """Return the label of every position, in a view that takes no memory beyond `labels`."""
        shape = [1] * len(self.shape)
        if shape:
            shape[self.axis] = len(self.labels)
        return torch.from_numpy(self.labels).view(shape).expand(self.shape)


class Labels:
    """Union-find over labels, with the reason why a class is frozen."""

    def __init__(self) -> None:
        self._parent = np.zeros(0, dtype=np.int64)
        self._scratch = self._parent
        self._count = 0
        self._reasons: dict[int, str] = {}

    def fresh(self, count: int) -> Array:
        """Return `count` new labels, each a class of its own."""
        first, self._count = self._count, self._count + count
        if self._count > len(self._parent):
            more = np.arange(len(self._parent), max(2 * self._count, 1024), dtype=np.int64)
            self._parent = np.concatenate([self._parent, more])
            self._scratch = np.zeros_like(self._parent)
        return np.arange(first, self._count, dtype=np.int64)

    def roots(self, labels: Array) -> Array:
        """Return the class of every label: its smallest member at the time, equal for labels of one class."""
        above = self._parent[labels]
        while True:
            further = self._parent[above]
            if np.array_equal(further, above):
                return above
            above = further

    def unite(self, a: Array, b: Array) -> None:
        """Unite the labels of `a` and `b` position by position; the shapes broadcast."""
        a, b = np.broadcast_arrays(self.roots(a), self.roots(b))
        differ = a != b
        if not differ.any():
            return
        parent = self._parent
        low, high = np.minimum(a[differ], b[differ]), np.maximum(a[differ], b[differ])
        if self._distinct(np.concatenate([low, high])):  # all at once
            parent[high] = low
            for y in self._reasons.keys() & set(high.tolist()):
                self._reasons.setdefault(int(parent[y]), self._reasons.pop(y))
            return
        for pair in np.unique(low * self._count + high).tolist():
            x, y = divmod(pair, self._count)
            x, y = sorted((_root(parent, x), _root(parent, y)))
            if x == y:
                continue
            parent[y] = x
            if y in self._reasons:
                reason = self._reasons.pop(y)
                self._reasons.setdefault(x, reason)

    def _distinct(self, labels: Array) -> bool:
        """Tell whether no label is there twice: each finds its own number where it wrote it."""
        numbers = np.arange(len(labels))
        self._scratch[labels] = numbers
        return bool((self._scratch[labels] == numbers).all())

    def unite_all(self, labels: Array) -> None:
        """Make one class of all these labels."""
        if labels.size:
            self.unite(labels, labels.flat[:1])

    def freeze(self, labels: Array, reason: str) -> None:
        """Mark the classes of these labels as ones that stay; a class keeps its first reason."""
        for root in np.unique(self.roots(labels)).tolist():
            self._reasons.setdefault(root, reason)

    def reason(self, root: int) -> str | None:
        """Return why the class `root` is frozen, None if it is not."""
        return self._reasons.get(root)

    def spread(self, labels: Tensor, fixed: Iterable[int] = (), prefer: int | None = None) -> Spread:
        """Return the labels of a value as a Spread, uniting what removal has to treat as one.

        Where labels change along several axes, removing one of them would leave a ragged tensor; those are
        united until only one axis is left: `prefer` if channels may go along it, or else the one that leaves
        most of them.  No label may change along the axes in `fixed`.
        """
        shape = tuple(labels.shape)
        grid = _tight(labels, shape)
        if sum(size > 1 for size in grid.shape) > 1 or any(grid.shape[d] > 1 for d in fixed):
            grid = _tight(torch.from_numpy(self.roots(grid.numpy())), shape)
        for d in fixed:
            if grid.shape[d] > 1:
                first = grid.narrow(d, 0, 1)
                self.unite(grid.numpy(), first.numpy())
                grid = _tight(torch.from_numpy(self.roots(first.numpy())), shape)
        axes = [d for d, size in enumerate(grid.shape) if size > 1]
        if len(axes) > 1:
            if prefer is not None and prefer in axes and self._left(grid, prefer) > 1:
                axis = prefer
            else:
                axis = max(axes, key=lambda d: self._left(grid, d))
            lines = _lines(grid, axis)
            self.unite(lines, lines[:, :1])
            return Spread(shape, axis, np.ascontiguousarray(self.roots(lines[:, 0])))
        return Spread(shape, axes[0] if axes else 0, grid.numpy().reshape(-1).copy())

    def _left(self, grid: Tensor, axis: int) -> int:
        """Return how many classes that may go would be left if labels were to change along `axis` only."""
        names, local = np.unique(_lines(grid, axis), return_inverse=True)
        trial = Labels()
        trial.fresh(len(names))
        local = local.reshape(grid.shape[axis], -1)
        trial.unite(local, local[:, :1])
        roots = trial.roots(np.arange(len(names)))
        frozen = [root for name, root in zip(names.tolist(), roots.tolist(), strict=True) if self.reason(name)]
        return len(set(roots.tolist()) - set(frozen))


def _root(parent: Array, label: int) -> int:
    while (above := int(parent[label])) != label:
        parent[label] = parent[above]  # halve the path for the next one
        label = above
    return label


def _lines(grid: Tensor, axis: int) -> Array:
    """Return the labels as a matrix: one row for every index along `axis`."""
    rows: Array = grid.movedim(axis, 0).reshape(grid.shape[axis], -1).numpy()
    return rows


def _tight(labels: Tensor, shape: Sequence[int]) -> Tensor:
    """Return `labels` with every axis cut to one entry along which they do not change."""
    for d, (size, stride) in enumerate(zip(labels.shape, labels.stride(), strict=True)):
        if size > 1 and stride == 0:
            labels = labels.narrow(d, 0, 1)
    for d in range(len(shape)):
        if labels.shape[d] > 1 and bool((labels == labels.narrow(d, 0, 1)).all()):
            labels = labels.narrow(d, 0, 1)
    return labels.contiguous()
