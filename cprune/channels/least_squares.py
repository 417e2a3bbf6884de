"""The algebra of leaving inputs of a linear map out: what takes their place, and in which order they should go.

A layer computes y = W x; of x only the second moments are known.  Plain numpy, nothing about networks.

`replacement` is ridge regression of the inputs that go on those that stay (as in LBYL, ICML 2022, and GRAIL, arXiv
2602.23795).  `Elimination` is the optimal brain surgeon (Hassibi and Stork 1993) with whole inputs in place of single
weights: what removing one costs when all others make up for it as well as they can, W after every removal being the
weights that they have then.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
Indices = NDArray[np.int64]

RIDGE = 3e-3
LEAST_RIDGE = 1e-6
"""What sums in float32 leave undetermined: with less, inputs that depend on each other are told apart by noise."""


def replacement(gram: Matrix, stays: NDArray[np.bool_], ridge: float = RIDGE) -> Matrix:
    """Return B [gone, kept] such that x_gone is close to B x_kept, for x with the second moments `gram` [c, c].

    B = G_gone,kept (G_kept,kept + ridge * mean(diag G_kept,kept) * I)^-1, so E|x_gone - B x_kept|^2 is never more than
    E|x_gone|^2.  Zeros where nothing is left that could stand in.
    """
    kept, gone = np.flatnonzero(stays), np.flatnonzero(~stays)
    among, across = gram[np.ix_(kept, kept)], gram[np.ix_(kept, gone)]
    if not len(kept) or not len(gone) or not np.trace(among) > 0:
        return np.zeros((len(gone), len(kept)))
    return np.asarray(np.linalg.solve(_ridged(among, ridge), across).T, np.float64)


def _ridged(gram: Matrix, ridge: float) -> Matrix:
    amount = max(ridge, LEAST_RIDGE) * np.trace(gram) / len(gram)
    return np.asarray(gram + amount * np.eye(len(gram)), np.float64)


@dataclass(frozen=True, eq=False)
class Reader:
    """A linear map, as far as its inputs are concerned.

    `gram` [c, c] holds the second moments of its inputs, `products` [c, c] the inner products of the columns of its
    matrix (a convolution's column has all its taps).  `columns` [channels, b] says which inputs each channel is: one
    as a rule.  Inputs that are no channel's stay, and stand in for others.
    """

    gram: Matrix
    products: Matrix
    columns: Indices

    @property
    def energy(self) -> float:
        """Return E|y|^2 (of a convolution: as if its taps were independent)."""
        return float((self.gram * self.products).sum())


def order(readers: list[Reader], ridge: float = RIDGE) -> tuple[int, ...] | None:
    """Return all channels, the first to go first: each costs the readers together least when its turn comes.

    A reader's cost is what its output loses of its energy.  None if no reader has any energy, or a finite one.
    """
    running = [Elimination(r, ridge) for r in readers if np.isfinite(r.energy) and r.energy > 0]
    if not running:
        return None
    left = np.arange(len(running[0].columns))
    gone: list[int] = []
    while len(left) > 1:
        costs = sum((one.costs(left) for one in running), np.zeros(len(left)))
        channel = int(left[np.argmin(costs)])
        gone.append(channel)
        left = left[left != channel]
        if len(left) > 1:
            for one in running:
                one.remove(channel)
    return (*gone, *left.tolist())


class Elimination:
    """Channels of one reader going one by one: O(c^2) each."""

    def __init__(self, reader: Reader, ridge: float = RIDGE) -> None:
        """Begin with all channels; `ridge` is relative to the mean of the Gram's diagonal."""
        self.columns = reader.columns.copy()
        self._energy = reader.energy
        self._inverse = np.asarray(np.linalg.inv(_ridged(reader.gram, ridge)), np.float64)
        self._products: Matrix = reader.products.copy()
        self._stays = np.ones(len(reader.gram), dtype=np.bool_)

    def costs(self, channels: Indices) -> Matrix:
        """Return what removing each of these would add to E|y - y'|^2, as a share of E|y|^2 at the start."""
        at = self.columns[channels]
        if at.shape[1] == 1:
            columns = at[:, 0]
            lost = np.asarray(self._products[columns, columns] / self._inverse[columns, columns], np.float64)
        else:
            blocks = at[:, :, None], at[:, None, :]
            inverted = np.linalg.solve(self._inverse[blocks], self._products[blocks])
            lost = np.asarray(np.trace(inverted, axis1=1, axis2=2), np.float64)
        return np.asarray(np.maximum(lost, 0) / self._energy, np.float64)  # not below zero by rounding

    def remove(self, channel: int) -> None:
        """Take a channel away and give its part to the inputs that stay."""
        for column in self.columns[channel]:
            toward = self._inverse[:, column]
            unit = toward / toward[column]
            # W becomes W - W_j u', so W'W loses m u' + u m' - m_j u u', m = (W'W)_j.
            half = self._products[:, column] - self._products[column, column] / 2 * unit
            self._products -= np.stack([half, unit], 1) @ np.stack([unit, half])
            self._inverse -= np.outer(unit, toward)
            self._stays[column] = False
        if 2 * self._stays.sum() < len(self._stays):
            self._shrink()

    def _shrink(self) -> None:
        """Forget rows and columns of what has gone; those of channels that went point anywhere then."""
        kept = np.flatnonzero(self._stays)
        self.columns = (np.cumsum(self._stays) - 1)[self.columns]
        self._inverse = self._inverse[np.ix_(kept, kept)]
        self._products = self._products[np.ix_(kept, kept)]
        self._stays = np.ones(len(kept), dtype=np.bool_)
