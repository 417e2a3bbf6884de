"""folder:DIR — one folder of images a class."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from cprune.targets.errors import UserError
from cprune.training.readers import CIFAR_MEAN, CIFAR_STD, Arrays, Part

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
TEST_SHARE = 0.2
_HINT = "Needed: DIR/CLASS/IMAGE, or DIR/train/CLASS/IMAGE and DIR/test/CLASS/IMAGE (and DIR/val/CLASS/IMAGE)."


def read(root: Path, seed: int, size: tuple[int, int, int] | None) -> Arrays:
    """Return the images of a folder that holds one folder a class; the class names in order are the labels 0,
    1, …

    With subfolders train/ and test/ (and perhaps val/, which is then what decisions are made on) these are
    the parts; otherwise a fifth of every class, drawn with `seed`, is the test part.  Images become uint8 of
    `size` (channels, height, width): cropped in the middle to its proportions, resized, grey if it has one
    channel.  Without `size` they must all have one size.  Three channels are normalised with ImageNet's mean
    and standard deviation, as the zoo's and most published models want; one channel stays in 0 to 1.  They
    are taken as photographs: flips and small shifts keep the class.

    UserError for a missing folder, no images, an unreadable image (named), or more than half of the memory.
    """
    if not root.is_dir():
        raise UserError(f"there is no folder {root}", _HINT)
    names = _folders(root)
    divided = {"train", "test"} <= set(names)
    classes = tuple(_folders(root / "train")) if divided else tuple(names)
    if not classes:
        raise UserError(f"{root / 'train' if divided else root} has no folders, one a class is needed", _HINT)
    if divided:
        files = {str(name): _files(root / name, classes) for name in ("train", "test", "val") if name in names}
    else:
        files = _divided(_files(root, classes), seed)
    channels, height, width = size if size is not None else _common_size(files["train"] + files["test"])
    if channels not in (1, 3):
        raise UserError(f"the model takes images of {channels} channels, image files give 1 or 3", "Use npz:FILE.")
    _fits(sum(map(len, files.values())) * channels * height * width, root)
    mean, std = (CIFAR_MEAN, CIFAR_STD) if channels == 3 else ((), ())
    parts = {name: _part(root, name, some, (channels, height, width)) for name, some in files.items()}
    return Arrays(parts["train"], parts["test"], parts.get("val"), mean, std, len(classes), augment=True)


def _folders(root: Path) -> list[str]:
    return sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _files(root: Path, classes: Sequence[str]) -> list[tuple[Path, int]]:
    """Return (file, label) of every image below `root`, class by class, in the order of their names."""
    strangers = [name for name in _folders(root) if name not in classes]
    if strangers:
        raise UserError(f"{root} has the class {strangers[0]!r}, which the training images lack: {', '.join(classes)}")
    files = [
        (file, label)
        for label, name in enumerate(classes)
        for file in sorted((root / name).rglob("*"))
        if file.suffix.lower() in ENDINGS
    ]
    if not files:
        raise UserError(f"{root} has no images (files ending in {', '.join(ENDINGS)})", _HINT)
    return files


def _divided(files: list[tuple[Path, int]], seed: int) -> dict[str, list[tuple[Path, int]]]:
    random = np.random.default_rng(seed)
    labels = np.array([label for _, label in files])
    test = np.zeros(len(files), dtype=bool)
    for label in np.unique(labels):
        places = np.flatnonzero(labels == label)
        count = min(max(1, round(TEST_SHARE * len(places))), len(places) - 1)
        test[random.permutation(places)[:count]] = True
    if not test.any():
        raise UserError("every class has one image only: too few to test on", _HINT)
    return {
        "train": [file for file, taken in zip(files, test, strict=True) if not taken],
        "test": [file for file, taken in zip(files, test, strict=True) if taken],
    }


def _common_size(files: Sequence[tuple[Path, int]]) -> tuple[int, int, int]:
    sizes: Counter[tuple[int, int]] = Counter()
    colours = False
    for file, _ in files:
        with _opened(file) as image:
            sizes[image.size] += 1
            colours |= image.mode not in ("1", "L", "I", "I;16", "F")
    if len(sizes) > 1:
        (width, height), _ = sizes.most_common(1)[0]
        raise UserError(
            f"the images have {len(sizes)} different sizes (most often {width}x{height}), "
            "and the model does not say which one it takes",
            "Let the function return (model, example_input).",
        )
    ((width, height),) = sizes
    return 3 if colours else 1, height, width


def _part(root: Path, name: str, files: Sequence[tuple[Path, int]], size: tuple[int, int, int]) -> Part:
    channels, height, width = size
    images: NDArray[np.uint8] = np.empty((len(files), height, width, channels), np.uint8)
    for place, (file, _) in enumerate(files):
        with _opened(file) as image:
            image.draft("RGB" if channels == 3 else "L", (width, height))  # a JPEG is decoded small at once
            fitted = ImageOps.fit(_converted(image, channels, file), (width, height), Image.Resampling.BILINEAR)
            images[place] = np.asarray(fitted, np.uint8).reshape(height, width, channels)
    label_array = np.array([label for _, label in files], dtype=np.int64)
    where = f"{root} ({name})"
    return Part(where, images, where, label_array)


def _converted(image: Image.Image, channels: int, file: Path) -> Image.Image:
    try:
        upright = ImageOps.exif_transpose(image)
        return upright.convert("RGB" if channels == 3 else "L")
    except (OSError, ValueError, SyntaxError, EOFError) as error:  # found while the pixels are decoded
        raise _unreadable(file, error) from error


def _opened(file: Path) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return Image.open(file)
    except (
        OSError,
        ValueError,
        SyntaxError,
        UnidentifiedImageError,
        Image.DecompressionBombWarning,
        Image.DecompressionBombError,
    ) as error:
        raise _unreadable(file, error) from error


def _unreadable(file: Path, error: BaseException) -> UserError:
    return UserError(f"the image {file} cannot be read: {error}", "Replace it or take it out.")


def _fits(size_bytes: int, root: Path) -> None:
    try:
        memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return
    if size_bytes > memory_bytes / 2:
        raise UserError(
            f"the images of {root} take {size_bytes / 2**30:.1f} GiB, this machine has {memory_bytes / 2**30:.1f} GiB",
            "Use fewer images, or smaller ones.",
        )
