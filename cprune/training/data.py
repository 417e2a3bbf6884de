"""The images that a run trains on, decides on, certifies with and reports on.

A run needs four parts: it fine-tunes on `train`, looks at `decide` as often as it likes, walks along its finished
models once with `certify`, and looks at `report` once before and once after.  A model that somebody brings was trained
on all of the training images, and is nearly perfect on them; so no part but `train` is ever taken from them.  `decide`
and `certify` are two thirds and one third of the validation images where there are some; otherwise all three come out
of the test images, 45, 20 and 35 % of them, drawn with the run's seed, every class in the same shares.  Most images
decide, since those are looked at most.  (The original CPrune decides on the test set.)

Images stay as they came, in bytes where they are bytes, and become numbers for the model batch by batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cprune import user_code
from cprune.targets.errors import UserError, unknown
from cprune.training.readers import Arrays, Part, folder, function, npz

FASHION_MNIST = Path(__file__).parents[1] / "assets" / "fashion_mnist.npz"
TEST_SHARES = (9, 4, 7)
"""How test images are shared out to decide, certify and report where nothing else was given for decisions."""
VALIDATION_SHARES = (2, 1)
"""How validation images are shared out to decide and certify."""


@dataclass(frozen=True, eq=False)
class Split:
    """Images [N, C, H, W] and labels int64 [N].

    Images are float32 as the model wants them, or uint8, which `model_input` divides by 255 and normalises by
    `mean` and `std` (one number a channel; empty: left in 0 to 1).
    """

    images: Tensor
    labels: Tensor
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: Tensor | slice) -> Split:
        """Return the part with these images (int64 indices, or a slice)."""
        return replace(self, images=self.images[index], labels=self.labels[index])

    def inputs(self, size: int) -> list[tuple[Tensor]]:
        """Return all images as a model's inputs, in batches of `size`."""
        return [(batch,) for batch in torch.split(self.model_input(self.images), size)]

    def model_input(self, images: Tensor) -> Tensor:
        """Return some of this split's images, perhaps augmented, as float32 for the model."""
        if images.dtype != torch.uint8:
            return images
        scaled = images.float().div_(255)
        if self.mean:
            scaled.sub_(torch.tensor(self.mean)[:, None, None]).div_(torch.tensor(self.std)[:, None, None])
        return scaled


@dataclass(frozen=True, eq=False)
class Data:
    """What a run trains on, decides on, certifies with and reports on; no image is in two of the parts.

    Labels are 0 to `classes` - 1.  `augment` says whether flipping left to right and moving by some pixels
    leaves the class what it is.
    """

    name: str
    train: Split
    decide: Split
    certify: Split
    report: Split
    classes: int
    augment: bool

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Return (C, H, W) of one image."""
        _, channels, height, width = self.train.images.shape
        return channels, height, width


@dataclass(frozen=True)
class _ModelFacts:
    """What is known of the model: (C, H, W) of its input and the number of classes it tells apart."""

    input_shape: tuple[int, int, int] | None
    classes: int | None


def load_data(
    spec: str, seed: int, model_input: tuple[int, int, int] | None = None, classes: int | None = None
) -> Data:
    """Return the data that `spec` names.

    "fashion-mnist" (in the package), npz:FILE, folder:DIR or MODULE:FUNCTION; see `cprune.training.readers` for what
    each may hold.  `model_input` is (C, H, W) and `classes` the number of outputs of the model, if known: a folder's
    images are resized to the first, all data are checked against both.  `seed` draws the parts, and the test images of
    a folder that has none.

    UserError for anything that is missing, damaged, empty, not a number, mislabelled or of another shape.
    """
    model = _ModelFacts(model_input, classes)
    kind, separator, rest = spec.partition(":")
    readers: Mapping[str, Callable[[], Arrays]] = {
        "npz": lambda: npz.read(Path(rest)),
        "folder": lambda: folder.read(Path(rest), seed, model.input_shape),
    }
    if separator and kind in readers:
        if not rest:
            raise UserError(f"the data {spec!r} name no place", f"Type {kind}: and a path right behind it.")
        return _assembled(spec, readers[kind](), seed, model)
    if separator and kind == "cifar10":
        raise UserError(
            "the batches of CIFAR-10 are pickles, which cprune does not open",
            "Save them once with numpy.savez as x_train, y_train, x_test, y_test (uint8 [N, 32, 32, 3]); type npz:FILE",
        )
    if separator:
        returned = user_code.call(spec, user_code.function(spec))
        if isinstance(returned, Data):
            return _checked(returned, model)
        return _assembled(spec, function.arrays(returned, spec), seed, model)
    if user_code.plain(spec) == "fashionmnist":
        return _assembled("fashion-mnist", _fashion_mnist(), seed, model)
    raise _unknown(spec)


def dealt(labels: Tensor, shares: Sequence[int], seed: int) -> tuple[Tensor, ...]:
    """Return ascending indices for each of `shares` (whole numbers): every image is in one of the parts.

    The images are put in an order by class, within a class by `seed`, and dealt one by one, each to the part that is
    furthest behind its share.  So a part has its share of every class, give or take an image or two; single images of
    rare classes do not all fall to one part; and no part is empty if there are as many images as parts.
    """
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(len(labels), generator=generator)
    order = shuffled[torch.argsort(labels[shuffled], stable=True)]
    counts = [0] * len(shares)
    parts = []
    for place in range(1, len(labels) + 1):
        behind = [share * place - sum(shares) * count for share, count in zip(shares, counts, strict=True)]
        part = behind.index(max(behind))
        counts[part] += 1
        parts.append(part)
    part_of = torch.empty(len(labels), dtype=torch.int64)
    part_of[order] = torch.tensor(parts, dtype=torch.int64)
    return tuple(torch.nonzero(part_of == part)[:, 0] for part in range(len(shares)))


def _unknown(spec: str) -> UserError:
    path = Path(spec)
    if path.is_dir():
        return UserError(f"unknown data {spec!r}", f"For a folder with one folder a class type folder:{spec}")
    if path.suffix == ".npz":
        return UserError(f"unknown data {spec!r}", f"For an npz file type npz:{spec}")
    return unknown("data", spec, ("fashion-mnist", "npz:FILE", "folder:DIR", "MODULE:FUNCTION"))


# ----------------------------------------------------------------------------------------------------
# From arrays to data


def _fashion_mnist() -> Arrays:
    """Return the arrays in the package, its validation and test images together: it was trained on neither."""
    arrays = npz.read(FASHION_MNIST)
    assert arrays.val is not None
    images = np.concatenate([arrays.val.images, arrays.test.images])
    labels = np.concatenate([arrays.val.labels, arrays.test.labels])
    return replace(arrays, val=None, test=replace(arrays.test, images=images, labels=labels))


def _assembled(name: str, arrays: Arrays, seed: int, model: _ModelFacts) -> Data:
    mean, std = arrays.mean, arrays.std
    train, test = _split(arrays.train, mean, std), _split(arrays.test, mean, std)
    if arrays.val is None:
        decide, certify, report = _shared_out(test, arrays.test, TEST_SHARES, seed)
    else:
        val = _split(arrays.val, mean, std)
        decide, certify = _shared_out(val, arrays.val, VALIDATION_SHARES, seed)
        report = test
    classes = arrays.classes if arrays.classes is not None else model.classes
    if classes is None:
        classes = int(train.labels.max()) + 1
    data = Data(name, train, decide, certify, report, classes, arrays.augment)
    deciding = arrays.val or arrays.test
    parts = (arrays.train, deciding, deciding, arrays.test)
    return _checked(data, model, tuple((part.name, part.labels_name) for part in parts))


def _shared_out(split: Split, part: Part, shares: tuple[int, ...], seed: int) -> tuple[Split, ...]:
    """Return the parts that are dealt from `split`.  Raises UserError for fewer images than parts."""
    if len(split) < len(shares):
        what = "decisions, certifying and the report" if len(shares) > 2 else "decisions and certifying"
        raise UserError(
            f"{part.name} is too small to be shared out for {what} (images: {len(split)})",
            "Give more of them; hundreds are needed for an accuracy that says something, thousands for one point.",
        )
    return tuple(split.take(index) for index in dealt(split.labels, shares, seed))


def _split(part: Part, mean: tuple[float, ...], std: tuple[float, ...]) -> Split:
    """Check one part's arrays by themselves and return them as a Split."""
    images, labels, name = part.images, part.labels, part.name
    if images.ndim == 3:  # no channel axis: one channel
        images = images[..., None] if images.dtype == np.uint8 else images[:, None]
    if images.ndim != 4:
        raise UserError(
            f"{name} has the shape {list(images.shape)}, four axes are needed",
            "Give float32 [N, C, H, W] or uint8 [N, H, W, C].",
        )
    if len(images) == 0:
        raise UserError(f"{name} is empty: it holds no image")
    if images.dtype == np.uint8:
        if images.shape[3] not in (1, 3, 4) and images.shape[1] in (1, 3, 4):
            raise UserError(
                f"{name} is uint8 of the shape {list(images.shape)}: bytes are taken as [N, H, W, C]",
                "Move the channels to the last axis, x.transpose(0, 2, 3, 1), or give float32 [N, C, H, W].",
            )
        channels_first = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)
    elif images.dtype.kind == "f":
        channels_first = torch.from_numpy(np.ascontiguousarray(images, dtype=np.float32))
        _finite(name, channels_first)
    else:
        raise UserError(
            f"{name} holds {images.dtype}",
            "Give float32 [N, C, H, W] as the model wants them, or uint8 [N, H, W, C] from 0 to 255.",
        )
    if channels_first.dtype != torch.uint8 and mean:
        raise UserError(
            f"{name} is {images.dtype} and comes with mean and std, which are for uint8 images",
            "Float images are taken as they are: normalise them yourself and leave mean and std out.",
        )
    if mean and len(mean) != channels_first.shape[1]:
        raise UserError(
            f"mean and std have {len(mean)} numbers, the images of {name} {channels_first.shape[1]} channels"
        )
    return Split(channels_first, _labels(part.labels_name, labels, name, len(images)), mean, std)


def _labels(name: str, labels: np.ndarray[tuple[int, ...], np.dtype[np.generic]], images: str, count: int) -> Tensor:
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise UserError(
            f"{name} has the shape {list(labels.shape)}, one label an image is needed",
            "For one-hot labels give y.argmax(axis=1).",
        )
    if len(labels) != count:
        raise UserError(f"{name} has {len(labels)} labels, {images} has {count} images")
    if labels.dtype.kind not in "iu":
        raise UserError(f"{name} holds {labels.dtype}; labels are integers from 0 to classes - 1")
    return torch.from_numpy(labels.astype(np.int64))


def _finite(name: str, images: Tensor) -> None:
    for start in range(0, len(images), 1024):  # in pieces: the answer needs as much memory as the question
        good = torch.isfinite(images[start : start + 1024]).flatten(1).all(1)
        if not bool(good.all()):
            first = start + int(torch.nonzero(~good)[0])
            raise UserError(f"{name}[{first}] holds NaN or infinity", "Take the damaged images out.")


_OWN_NAMES = (
    ("train.images", "train.labels"),
    ("decide.images", "decide.labels"),
    ("certify.images", "certify.labels"),
    ("report.images", "report.labels"),
)


def _checked(data: Data, model: _ModelFacts, names: tuple[tuple[str, str], ...] = _OWN_NAMES) -> Data:
    """Return `data` if its parts agree with each other and with the model; `names` are for messages."""
    parts = (data.train, data.decide, data.certify, data.report)
    for (name, labels_name), split in zip(names, parts, strict=True):
        if len(split) == 0:
            raise UserError(f"{name} of the data {data.name!r} is empty: it holds no image")
        if split.images.ndim != 4 or split.images.dtype not in (torch.float32, torch.uint8):
            raise UserError(
                f"{name} is {str(split.images.dtype).removeprefix('torch.')} {list(split.images.shape)}",
                "Give float32 or uint8 [N, C, H, W].",
            )
        if split.images.dtype != data.train.images.dtype:
            raise UserError(
                f"{name} is {str(split.images.dtype).removeprefix('torch.')}, the training images are "
                f"{str(data.train.images.dtype).removeprefix('torch.')}",
                "Give both in one form.",
            )
        shape = tuple(split.images.shape[1:])
        expected = (("the model takes", model.input_shape), ("the training images are", data.input_shape))
        for whose, other in expected:
            if other is not None and shape != other:
                raise UserError(
                    f"the images of {name} are {_times(shape)} (channels x height x width), {whose} {_times(other)}",
                    "Give images of that size, or choose another --model.",
                )
        for index in torch.nonzero((split.labels < 0) | (split.labels >= data.classes))[:1, 0].tolist():
            raise UserError(
                f"label {int(split.labels[index])} of {labels_name} is out of range: "
                f"there are {data.classes} classes, labels run from 0 to {data.classes - 1}",
                "Number the classes from 0, and choose a model with as many outputs.",
            )
    if model.classes is not None and model.classes != data.classes:
        raise UserError(
            f"the data {data.name!r} have {data.classes} classes, the model has {model.classes} outputs",
            "Choose data and a model that belong together.",
        )
    return data


def _times(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
