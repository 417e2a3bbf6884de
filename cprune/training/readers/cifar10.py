"""cifar10:DIR — CIFAR-10 as its authors distribute it for Python.

Those batches are pickles, and a pickle is a program.  They are read by an unpickler that knows numbers,
strings, bytes, lists, dicts and arrays of bytes or 64-bit integers, and refuses every other name: it rebuilds
the arrays itself, so that not even numpy's own reconstruction runs.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cprune.targets.errors import UserError
from cprune.training.readers import CIFAR_MEAN, CIFAR_STD, Arrays, Part

TRAIN = tuple(f"data_batch_{number}" for number in range(1, 6))
TEST = "test_batch"


def read(root: Path) -> Arrays:
    """Return the 50,000 training and 10,000 test images below `root` as uint8 [N, 32, 32, 3].

    `root` is the folder with data_batch_1 to _5 and test_batch, or the one above it.  Fewer images a batch
    are taken too.  They are normalised by the mean and standard deviation that the published checkpoints of
    the zoo's ResNets want.  UserError for a missing or damaged batch, or one that holds anything but plain
    data.
    """
    inner = root / "cifar-10-batches-py"
    folder = inner if inner.is_dir() else root
    missing = [name for name in (*TRAIN, TEST) if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"{folder} lacks {', '.join(missing)}",
            "Unpack cifar-10-python.tar.gz and type cifar10: and that folder.",
        )
    batches = [_batch(folder / name) for name in TRAIN]
    images = np.concatenate([images for images, _ in batches])
    labels = np.concatenate([labels for _, labels in batches])
    test_images, test_labels = _batch(folder / TEST)
    return Arrays(
        Part("data_batch_1 to 5", images, "the labels of data_batch_1 to 5", labels),
        Part(TEST, test_images, f"the labels of {TEST}", test_labels),
        mean=CIFAR_MEAN,
        std=CIFAR_STD,
        classes=10,
        augment=True,
    )


def _batch(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    found = load_plain(path)
    content = (
        {k.decode("latin1") if isinstance(k, bytes) else k: v for k, v in found.items()}
        if isinstance(found, dict)
        else {}
    )
    data, labels = content.get("data"), content.get("labels")
    if not isinstance(data, _Array) or not isinstance(labels, (list, _Array)):
        raise UserError(f"{path} is no batch of CIFAR-10: it lacks the arrays 'data' and 'labels'")
    pixels = data.array(path)
    if pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != 3 * 32 * 32:
        raise UserError(f"{path}: 'data' is {pixels.dtype} {list(pixels.shape)}, uint8 [N, 3072] is needed")
    listed = labels.array(path) if isinstance(labels, _Array) else labels
    try:
        numbers = np.array(listed, dtype=np.int64)
    except (ValueError, TypeError, OverflowError) as error:
        raise UserError(f"{path}: the labels are not whole numbers") from error
    planes = pixels.reshape(-1, 3, 32, 32)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), numbers


# ----------------------------------------------------------------------------------------------------
# Pickles without Python


class _Type:
    """Stands in for numpy's dtype: remembers its code ("u1") and byte order."""

    def __init__(self, code: Any = "", *_: Any) -> None:
        self.code = code.decode("latin1") if isinstance(code, bytes) else code
        self.order = "|"

    def __setstate__(self, state: Any) -> None:
        order = state[1]
        self.order = order.decode("latin1") if isinstance(order, bytes) else order


class _Array:
    """Stands in for a numpy array: remembers shape, type and bytes as the pickle gives them."""

    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def array(self, path: Path) -> NDArray[Any]:
        """Return the array; UserError unless it is uint8 or int64 with as many bytes as its shape says."""
        try:
            _, shape, kind, fortran, raw = self.state
            if not (isinstance(kind, _Type) and kind.code in ("u1", "i8") and kind.order in ("|", "<", "=")):
                raise ValueError("not an array of uint8 or int64")
            if isinstance(raw, str):
                raw = raw.encode("latin1")
            flat: NDArray[Any] = np.frombuffer(raw, np.dtype(f"<{kind.code}"))
            sizes = tuple(int(size) for size in shape)
            return flat.reshape(sizes[::-1]).T if fortran else flat.reshape(sizes)
        except (TypeError, ValueError, UnicodeError) as error:
            raise UserError(f"{path} holds a damaged array: {error}") from error


def _reconstruct(*_: Any) -> _Array:
    return _Array()


def _encode(text: str, encoding: str) -> bytes:
    # Python 3 writes bytes as latin-1 text in old protocols; any other codec is somebody's trick.
    if encoding != "latin1" or not isinstance(text, str):
        raise pickle.UnpicklingError(f"it encodes text as {encoding!r}")
    return text.encode("latin1")


def _empty_bytes() -> bytes:
    return b""


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Type,
    ("_codecs", "encode"): _encode,
    ("__builtin__", "bytes"): _empty_bytes,
    ("builtins", "bytes"): _empty_bytes,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str) -> Any:
        """Return the stand-in for an allowed name; UnpicklingError for every other."""
        try:
            return _ALLOWED[module_name, global_name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module_name}.{global_name}") from None


def load_plain(path: Path) -> Any:
    """Return what a pickle of plain data holds, arrays as `_Array`; UserError if it holds anything else."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    try:
        return _Unpickler(io.BytesIO(raw), encoding="bytes").load()
    except Exception as error:  # a damaged pickle can raise anything at all
        raise UserError(
            f"{path} is no batch of CIFAR-10: {error or type(error).__name__}",
            "Only numbers, text, lists, dicts and arrays are read from a batch; unpack the original again.",
        ) from error
