"""Pack a part of Fashion-MNIST into `cprune/assets/fashion_mnist.npz`, the data that `cprune run` uses by
itself.

    python experiments/pack_fashion_mnist.py --source DIR

DIR holds the four `*-ubyte.gz` files (Debian package `dataset-fashion-mnist`, MIT licence, or the project's
own site).  Packed are 10,000 of the 60,000 training images (1,000 a class) and all 10,000 test images.  2,000
of the 10,000 training images (200 a class) are marked as held out: the built-in model was trained on the other
58,000 of the 60,000, so they are shared out like the test images to decide, to certify and to report.
"""

from __future__ import annotations

import argparse
import gzip
import io
import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SEED = 20170828  # the day Fashion-MNIST appeared; any fixed number would do
PER_CLASS = 1000
HELD_OUT_PER_CLASS = 200
ASSETS = Path(__file__).resolve().parent.parent / "cprune" / "assets"


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Return the array in a gzipped IDX file of bytes (magic number, big-endian sizes, the bytes)."""
    raw = gzip.decompress(path.read_bytes())
    if raw[:3] != b"\x00\x00\x08":
        raise SystemExit(f"{path} is not an IDX file of unsigned bytes")
    rank = raw[3]
    shape = tuple(np.frombuffer(raw, ">i4", rank, 4))
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(shape)


def chosen(labels: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the indices into the 60,000 training images of (8,000 to train on, 2,000 held out), ascending.

    Of each class 1,000 images are drawn without replacement; the first 200 drawn are held out.
    """
    random = np.random.default_rng(SEED)
    train, held_out = [], []
    for label in range(10):
        drawn = random.permutation(np.flatnonzero(labels == label))[:PER_CLASS]
        held_out.append(drawn[:HELD_OUT_PER_CLASS])
        train.append(drawn[HELD_OUT_PER_CLASS:])
    return np.sort(np.concatenate(train)), np.sort(np.concatenate(held_out))


def fashion_mnist(source: Path) -> dict[str, NDArray[np.uint8]]:
    """Return x_train [60000, 28, 28], y_train [60000], x_test [10000, 28, 28] and y_test [10000]."""
    return {
        name: read_idx(source / f"{stem}-ubyte.gz")
        for name, stem in {
            "x_train": "train-images-idx3",
            "y_train": "train-labels-idx1",
            "x_test": "t10k-images-idx3",
            "y_test": "t10k-labels-idx1",
        }.items()
    }


def pack(arrays: dict[str, NDArray[np.generic]], path: Path) -> None:
    """Write an .npz file whose members are compressed by LZMA, which numpy reads like any other.

    numpy itself writes deflate only, which is 15 % larger here.  The dates are fixed: same arrays, same
    bytes.
    """
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        for name, values in arrays.items():
            member = io.BytesIO()
            np.save(member, values, allow_pickle=False)
            info = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            archive.writestr(info, member.getvalue(), zipfile.ZIP_LZMA)


def main() -> None:
    """Read the command line, pack, and print the sizes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="folder with the *-ubyte.gz files")
    parser.add_argument("--out", type=Path, default=ASSETS / "fashion_mnist.npz")
    arguments = parser.parse_args()
    full = fashion_mnist(arguments.source)
    train, held_out = chosen(full["y_train"])
    arrays: dict[str, NDArray[np.generic]] = {
        "x_train": full["x_train"][train][..., None],
        "y_train": full["y_train"][train],
        "x_val": full["x_train"][held_out][..., None],
        "y_val": full["y_train"][held_out],
        "x_test": full["x_test"][..., None],
        "y_test": full["y_test"],
        "mean": np.array([0.2860], np.float32),
        "std": np.array([0.3530], np.float32),
        "classes": np.array(10),
        "augment": np.array(1),
    }
    pack(arrays, arguments.out)
    raw = sum(values.nbytes for values in arrays.values())
    for name, values in arrays.items():
        print(f"{name:8} {values.dtype!s:8} {values.shape}")
    print(f"{arguments.out.name}: {arguments.out.stat().st_size:,} bytes ({raw:,} unpacked)")


if __name__ == "__main__":
    main()
