"""Data: what is read, how it is split, and the message for every way in which it can be damaged."""

from __future__ import annotations

import hashlib
import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image

from cprune.targets.errors import UserError
from cprune.training.data import TEST_SHARES, VALIDATION_SHARES, Data, dealt, load_data


def sizes(data: Data) -> list[int]:
    """Return how many images are in train, decide, certify and report."""
    return [len(part) for part in (data.train, data.decide, data.certify, data.report)]


def arrays(**changed: Any) -> dict[str, Any]:
    """Ten training and four test images of 3x4x4, classes 0 and 1."""
    content = {
        "x_train": np.arange(10 * 48, dtype=np.float32).reshape(10, 3, 4, 4),
        "y_train": np.array([0, 1] * 5),
        "x_test": np.ones((4, 3, 4, 4), np.float32),
        "y_test": np.array([0, 1, 1, 0]),
    }
    content.update(changed)
    return {name: value for name, value in content.items() if value is not None}


def bytes_arrays(**changed: Any) -> dict[str, Any]:
    return arrays(x_train=np.full((10, 4, 4, 3), 51, np.uint8), x_test=np.full((4, 4, 4, 3), 255, np.uint8), **changed)


def npz(tmp_path: Path, content: dict[str, Any]) -> str:
    path = tmp_path / "data.npz"
    np.savez(path, **content)
    return f"npz:{path}"


def message(spec: str, **arguments: Any) -> str:
    with pytest.raises(UserError) as caught:
        load_data(spec, seed=0, **arguments)
    return str(caught.value)


# ----------------------------------------------------------------------------------------------------
# The built-in data


@pytest.fixture(scope="module")
def fashion() -> Data:
    return load_data("Fashion_MNIST", seed=0)


def test_the_built_in_data_share_out_the_12000_images_that_the_model_was_not_trained_on(fashion: Data) -> None:
    assert sizes(fashion) == [8000, 5400, 2400, 4200]  # 45, 20 and 35 %
    assert fashion.input_shape == (1, 28, 28)
    assert (fashion.classes, fashion.augment) == (10, True)


def test_every_class_of_the_built_in_data_has_800_540_240_and_420_images(fashion: Data) -> None:
    for part, count in ((fashion.train, 800), (fashion.decide, 540), (fashion.certify, 240), (fashion.report, 420)):
        assert torch.bincount(part.labels).tolist() == [count] * 10


def test_no_image_is_in_two_parts(fashion: Data) -> None:
    digests = [
        hashlib.sha256(image.numpy().tobytes()).hexdigest()
        for part in (fashion.train, fashion.decide, fashion.certify, fashion.report)
        for image in part.images
    ]
    assert len(digests) == 20_000
    assert len(digests) - len(set(digests)) < 10  # the data set itself has a few images twice


def test_built_in_images_stay_bytes_until_the_model_wants_them(fashion: Data) -> None:
    assert fashion.train.images.dtype == torch.uint8
    ready = fashion.train.model_input(fashion.train.images[:500])
    assert ready.dtype == torch.float32
    assert abs(float(ready.mean())) < 0.1
    assert abs(float(ready.std()) - 1) < 0.1


# ----------------------------------------------------------------------------------------------------
# Splits


def test_every_class_is_dealt_in_the_same_shares() -> None:
    labels = torch.tensor([0, 1] * 10 + [2] * 10)
    parts = dealt(labels, (3, 3, 4), seed=3)
    assert [torch.bincount(labels[part]).tolist() for part in parts] == [[3, 3, 3], [3, 3, 3], [4, 4, 4]]


def test_the_only_images_of_rare_classes_fall_to_all_parts() -> None:
    assert [len(part) for part in dealt(torch.arange(10), (3, 3, 4), seed=0)] == [3, 3, 4]


@hypothesis_settings(max_examples=50, deadline=None)
@given(
    labels=st.lists(st.integers(0, 4), max_size=60),
    shares=st.sampled_from([(3, 3, 4), TEST_SHARES, VALIDATION_SHARES]),
    seed=st.integers(0, 9),
)
def test_dealing_leaves_no_image_out_and_gives_every_part_its_share_of_every_class(
    labels: list[int], shares: tuple[int, ...], seed: int
) -> None:
    parts = dealt(torch.tensor(labels, dtype=torch.int64), shares, seed)
    assert sorted(index for part in parts for index in part.tolist()) == list(range(len(labels)))
    for share, part in zip(shares, parts, strict=True):
        assert part.tolist() == sorted(part.tolist())
        assert len(part) or len(labels) < len(shares)
        for label in range(5):
            due = share / sum(shares) * labels.count(label)
            assert abs(sum(labels[index] == label for index in part.tolist()) - due) < 2


def test_the_seed_decides_which() -> None:
    labels = torch.zeros(100, dtype=torch.int64)
    assert torch.equal(dealt(labels, (1, 1), 1)[1], dealt(labels, (1, 1), 1)[1])
    assert not torch.equal(dealt(labels, (1, 1), 1)[1], dealt(labels, (1, 1), 2)[1])


# ----------------------------------------------------------------------------------------------------
# npz


def test_float_images_are_taken_as_they_are(tmp_path: Path) -> None:
    data = load_data(npz(tmp_path, arrays()), seed=0)
    assert sizes(data) == [10, 2, 1, 1]  # of four test images: shares of 1.8, 0.8 and 1.4
    assert data.train.images.flatten().sort().values.tolist() == list(range(480))
    assert data.classes == 2
    assert not data.augment


def test_bytes_are_scaled_to_one_and_normalised(tmp_path: Path) -> None:
    spec = npz(tmp_path, bytes_arrays(mean=np.array([0.2, 0.1, 0.0]), std=np.array([1.0, 0.5, 2.0])))
    train = load_data(spec, seed=0).train
    ready = train.model_input(train.images)
    assert ready.shape == (10, 3, 4, 4)
    # 51 / 255 = 0.2: (0.2 - 0.2) / 1, (0.2 - 0.1) / 0.5, 0.2 / 2
    assert ready[0, :, 0, 0].tolist() == pytest.approx([0.0, 0.2, 0.1], abs=1e-7)


def test_bytes_without_mean_and_std_stay_in_zero_to_one(tmp_path: Path) -> None:
    report = load_data(npz(tmp_path, bytes_arrays()), seed=0).report
    assert report.model_input(report.images).unique().tolist() == [1.0]


def test_without_x_val_no_training_image_is_decided_on(tmp_path: Path) -> None:
    """The held-out images were in the model's training set: 96 % there, 88 % on the test images."""
    content = arrays(x_test=np.full((10, 3, 4, 4), -1, np.float32), y_test=np.array([0, 1] * 5))
    data = load_data(npz(tmp_path, content), seed=0)
    assert sizes(data) == [10, 5, 2, 3]  # shares of 4.5, 2 and 3.5
    for part in (data.decide, data.certify, data.report):
        assert part.images.unique().tolist() == [-1]


def test_images_given_to_decide_on_are_used_for_that_and_to_certify(tmp_path: Path) -> None:
    content = arrays(x_val=np.full((6, 3, 4, 4), 7, np.float32), y_val=np.array([1, 0, 1, 0, 1, 1]))
    data = load_data(npz(tmp_path, content), seed=0)
    assert sizes(data) == [10, 4, 2, 4]  # two of three for decisions
    # dealt in the order 0 0 1 1 1 1, to decide, certify and decide, and so again
    assert data.decide.labels.sort().values.tolist() == [0, 1, 1, 1]
    assert data.certify.labels.sort().values.tolist() == [0, 1]
    for part in (data.decide, data.certify):
        assert part.images.unique().tolist() == [7]
    assert data.report.labels.tolist() == [0, 1, 1, 0]


def test_the_file_may_say_how_many_classes_there_are_and_that_flips_are_harmless(tmp_path: Path) -> None:
    data = load_data(npz(tmp_path, arrays(classes=5, augment=1)), seed=0)
    assert (data.classes, data.augment) == (5, True)


def test_grey_images_need_no_channel_axis(tmp_path: Path) -> None:
    content = arrays(x_train=np.zeros((10, 4, 6), np.uint8), x_test=np.zeros((4, 4, 6), np.uint8))
    assert load_data(npz(tmp_path, content), seed=0).input_shape == (1, 4, 6)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert "there is no file" in message(f"npz:{tmp_path}/none.npz")


def test_a_path_has_to_be_given() -> None:
    assert "name no place" in message("npz:")


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 cut"])
def test_a_file_that_is_no_npz_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "data.npz").write_bytes(content)
    assert "data.npz" in message(f"npz:{tmp_path}/data.npz")


@pytest.mark.parametrize("share", [0.3, 0.7, 0.99])
def test_a_truncated_npz_is_refused(tmp_path: Path, share: float) -> None:
    npz(tmp_path, arrays())
    path = tmp_path / "data.npz"
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert "cut short" in message(f"npz:{path}")


def test_an_npz_damaged_inside_is_refused(tmp_path: Path) -> None:
    npz(tmp_path, arrays())
    path = tmp_path / "data.npz"
    raw = bytearray(path.read_bytes())
    raw[1000] ^= 255  # inside x_train: the checksum of the archive's member no longer holds
    path.write_bytes(raw)
    assert "data.npz" in message(f"npz:{path}")


def test_a_single_array_is_no_npz(tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", np.zeros(3))
    assert "single array" in message(f"npz:{tmp_path}/one.npy")


class Bomb:
    """Unpickled by Python itself it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_python_objects_in_an_npz_are_never_unpickled(tmp_path: Path) -> None:
    content = arrays(y_train=np.array([Bomb(tmp_path / "boom")] * 10, dtype=object))
    assert "never unpickles" in message(npz(tmp_path, content))
    assert not (tmp_path / "boom").exists()


def test_a_missing_array_is_named_and_what_is_there_is_listed(tmp_path: Path) -> None:
    text = message(npz(tmp_path, arrays(y_test=None)))
    assert "lacks y_test; it holds x_test, x_train, y_train" in text


def test_x_val_needs_y_val(tmp_path: Path) -> None:
    assert "lacks y_val" in message(npz(tmp_path, arrays(x_val=np.zeros((1, 3, 4, 4), np.float32))))


def test_an_empty_array_is_refused(tmp_path: Path) -> None:
    content = arrays(x_test=np.zeros((0, 3, 4, 4), np.float32), y_test=np.zeros(0, np.int64))
    assert "x_test is empty" in message(npz(tmp_path, content))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_the_first_image_that_is_not_a_number_is_named(tmp_path: Path, bad: float) -> None:
    content = arrays()
    content["x_train"][7, 1, 2, 3] = bad
    assert "x_train[7] holds NaN or infinity" in message(npz(tmp_path, content))


def test_images_and_labels_must_be_as_many(tmp_path: Path) -> None:
    content = arrays(y_train=np.zeros(9, np.int64))
    assert "y_train has 9 labels, x_train has 10 images" in message(npz(tmp_path, content))


def test_a_label_beyond_the_model_is_named_with_the_range(tmp_path: Path) -> None:
    content = arrays(y_test=np.array([0, 1, 1, 12]))
    text = message(npz(tmp_path, content), classes=10)
    assert "label 12 of y_test is out of range: there are 10 classes, labels run from 0 to 9" in text


def test_a_test_label_that_training_never_saw_is_out_of_range(tmp_path: Path) -> None:
    text = message(npz(tmp_path, arrays(y_test=np.array([0, 1, 1, 2]))))
    assert "label 2 of y_test is out of range: there are 2 classes, labels run from 0 to 1" in text


def test_a_negative_label_is_refused(tmp_path: Path) -> None:
    content = arrays(y_train=np.array([-1, 1] * 5))
    assert "label -1 of y_train is out of range" in message(npz(tmp_path, content))


def test_one_hot_labels_get_a_hint(tmp_path: Path) -> None:
    assert "argmax" in message(npz(tmp_path, arrays(y_train=np.eye(10))))


def test_labels_are_integers(tmp_path: Path) -> None:
    assert "y_train holds float64" in message(npz(tmp_path, arrays(y_train=np.zeros(10))))


def test_classes_and_outputs_must_agree_where_the_data_say_how_many_they_are(tmp_path: Path) -> None:
    text = message(npz(tmp_path, arrays(classes=5)), classes=10)
    assert "have 5 classes, the model has 10 outputs" in text


def test_data_that_lack_the_last_class_fit_a_model_that_has_it(tmp_path: Path) -> None:
    assert load_data(npz(tmp_path, arrays()), seed=0, classes=10).classes == 10


def test_images_of_another_size_than_the_model_takes_are_refused(tmp_path: Path) -> None:
    text = message(npz(tmp_path, arrays()), model_input=(1, 28, 28))
    assert "are 3x4x4 (channels x height x width), the model takes 1x28x28" in text


def test_training_and_test_images_have_one_size(tmp_path: Path) -> None:
    text = message(npz(tmp_path, arrays(x_test=np.zeros((4, 3, 5, 5), np.float32))))
    assert "x_test are 3x5x5 (channels x height x width), the training images are 3x4x4" in text


def test_bytes_with_channels_first_get_a_hint(tmp_path: Path) -> None:
    content = arrays(x_train=np.zeros((10, 3, 8, 8), np.uint8))
    assert "transpose(0, 2, 3, 1)" in message(npz(tmp_path, content))


def test_other_numbers_than_floats_and_bytes_are_refused(tmp_path: Path) -> None:
    assert "x_train holds int64" in message(npz(tmp_path, arrays(x_train=np.zeros((10, 3, 4, 4), np.int64))))


def test_flat_images_are_refused(tmp_path: Path) -> None:
    text = message(npz(tmp_path, arrays(x_train=np.zeros((10, 48), np.float32))))
    assert "four axes" in text


def test_training_images_in_bytes_and_test_images_in_floats_are_refused(tmp_path: Path) -> None:
    text = message(npz(tmp_path, bytes_arrays() | {"x_test": np.zeros((4, 3, 4, 4), np.float32)}))
    assert "x_test is float32, the training images are uint8" in text


@pytest.mark.parametrize(
    "wrong",
    [
        {"mean": np.zeros(3)},
        {"mean": np.zeros(3), "std": np.zeros(3)},
        {"mean": np.zeros(2), "std": np.ones(2)},
        {"mean": np.zeros((3, 3)), "std": np.ones(3)},
        {"classes": np.array(0)},
        {"classes": np.array([1, 2])},
    ],
)
def test_mean_std_and_classes_are_checked(tmp_path: Path, wrong: dict[str, Any]) -> None:
    assert next(iter(wrong)) in message(npz(tmp_path, bytes_arrays(**wrong)))


def test_mean_and_std_are_for_bytes(tmp_path: Path) -> None:
    assert "for uint8" in message(npz(tmp_path, arrays(mean=np.zeros(3), std=np.ones(3))))


def test_a_training_set_of_one_image_a_class_is_enough_for_cprune(tmp_path: Path) -> None:
    content = arrays(x_train=np.zeros((2, 3, 4, 4), np.float32), y_train=np.array([0, 1]))
    assert sizes(load_data(npz(tmp_path, content), seed=0)) == [2, 2, 1, 1]


def test_two_test_images_cannot_be_shared_out_for_three_uses(tmp_path: Path) -> None:
    content = arrays(x_test=np.zeros((2, 3, 4, 4), np.float32), y_test=np.array([0, 1]))
    text = message(npz(tmp_path, content))
    assert "x_test is too small to be shared out for decisions, certifying and the report (images: 2)" in text
    assert "Give more of them" in text
    content.update(x_val=np.zeros((1, 3, 4, 4), np.float32), y_val=np.array([0]))
    text = message(npz(tmp_path, content))
    assert "x_val is too small to be shared out for decisions and certifying (images: 1)" in text


# ----------------------------------------------------------------------------------------------------
# Names


def test_unknown_data_get_the_nearest_name() -> None:
    assert "Did you mean 'fashion-mnist'?" in message("fashion-mnits")


def test_a_path_without_its_kind_is_told_which(tmp_path: Path) -> None:
    assert f"type folder:{tmp_path}" in message(str(tmp_path))
    assert "type npz:some.npz" in message("some.npz")


# ----------------------------------------------------------------------------------------------------
# A folder of images


def image(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (8, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


@pytest.fixture
def animals(tmp_path: Path) -> Path:
    """Ten red cats and five blue dogs."""
    for number in range(10):
        image(tmp_path / "cat" / f"{number}.png", (255, 0, 0))
    for number in range(5):
        image(tmp_path / "dog" / f"{number}.png", (0, 0, 255))
    return tmp_path


def test_the_classes_are_the_folders_in_order(animals: Path) -> None:
    data = load_data(f"folder:{animals}", seed=0, model_input=(3, 8, 8))
    assert data.classes == 2
    # Red fills channel 0 of class 0.
    for picture, label in zip(data.train.images, data.train.labels, strict=True):
        assert picture[:, 0, 0].tolist() == ([255, 0, 0] if label == 0 else [0, 0, 255])


def test_a_fifth_of_a_folder_is_test_and_that_is_shared_out(animals: Path) -> None:
    data = load_data(f"folder:{animals}", seed=0)
    assert torch.bincount(data.train.labels).tolist() == [8, 4]
    # 10 cats, 5 dogs: 2 and 1 are test, one for each use
    assert sizes(data) == [12, 1, 1, 1]
    assert sum(int(part.labels.sum()) for part in (data.decide, data.certify, data.report)) == 1


def test_train_and_test_folders_are_used_if_there_are_any(tmp_path: Path) -> None:
    for part, count in (("train", 5), ("test", 2)):
        for number in range(count):
            image(tmp_path / part / "cat" / f"{number}.jpg", (9, 9, 9))
            image(tmp_path / part / "dog" / f"{number}.jpg", (99, 9, 9))
    assert sizes(load_data(f"folder:{tmp_path}", seed=0)) == [10, 2, 1, 1]


def test_a_val_folder_is_decided_on_and_certified_with(tmp_path: Path) -> None:
    for part, count in (("train", 5), ("val", 3), ("test", 2)):
        for number in range(count):
            image(tmp_path / part / "cat" / f"{number}.jpg", (9, 9, 9))
            image(tmp_path / part / "dog" / f"{number}.jpg", (99, 9, 9))
    assert sizes(load_data(f"folder:{tmp_path}", seed=0)) == [10, 4, 2, 4]


def test_images_are_cropped_and_resized_to_the_model(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        for number in range(8):
            image(tmp_path / name / f"{number}.png", (10, 20, 30), size=(40, 20))
    assert load_data(f"folder:{tmp_path}", seed=0, model_input=(3, 16, 16)).input_shape == (3, 16, 16)


def test_a_model_for_grey_images_gets_grey_ones(animals: Path) -> None:
    data = load_data(f"folder:{animals}", seed=0, model_input=(1, 8, 8))
    # Luma of pure red: 0.299 * 255 = 76.
    assert data.train.images[data.train.labels == 0].unique().tolist() == [76]


def test_images_of_different_sizes_need_a_model_that_says_which(animals: Path) -> None:
    image(animals / "cat" / "big.png", (1, 1, 1), size=(9, 9))
    assert "2 different sizes (most often 8x8)" in message(f"folder:{animals}")


def test_three_channels_are_normalised_as_published_models_want(animals: Path) -> None:
    assert load_data(f"folder:{animals}", seed=0).train.mean == (0.485, 0.456, 0.406)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert "there is no folder" in message(f"folder:{tmp_path}/none")


def test_a_folder_without_classes_is_refused(tmp_path: Path) -> None:
    assert "has no folders" in message(f"folder:{tmp_path}")


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    assert "has no images" in message(f"folder:{tmp_path}")


@pytest.mark.parametrize("cut", [0, 20, 50])
def test_a_corrupt_image_is_named(animals: Path, cut: int) -> None:
    path = animals / "dog" / "3.png"
    path.write_bytes(path.read_bytes()[:cut])
    assert f"{path} cannot be read" in message(f"folder:{animals}", model_input=(3, 8, 8))


def test_a_test_class_that_training_lacks_is_named(tmp_path: Path) -> None:
    for number in range(5):
        image(tmp_path / "train" / "cat" / f"{number}.png", (1, 1, 1))
    image(tmp_path / "test" / "cow" / "0.png", (1, 1, 1))
    assert "has the class 'cow', which the training images lack: cat" in message(f"folder:{tmp_path}")


def test_a_folder_of_two_classes_does_not_fit_a_model_of_ten(animals: Path) -> None:
    assert "2 classes, the model has 10 outputs" in message(f"folder:{animals}", classes=10)


def test_the_batches_of_cifar_10_are_no_data_since_they_are_pickles(tmp_path: Path) -> None:
    text = message(f"cifar10:{tmp_path}")
    assert "pickles, which cprune does not open" in text
    assert "numpy.savez" in text
    assert "npz:FILE" in text


# ----------------------------------------------------------------------------------------------------
# A function of the user

_CODE = """
import numpy as np, torch
from cprune.training.data import Data, Split
x = np.zeros((10, 1, 4, 4), np.float32); y = np.array([0, 1] * 5)
def a_dict():
    return {"x_train": x, "y_train": y, "x_test": torch.from_numpy(x), "y_test": torch.from_numpy(y)}
def a_tuple(): return x, y, x, y
def a_data():
    part = Split(torch.from_numpy(x), torch.from_numpy(y))
    return Data("own", part, part, part, part, 2, False)
def nothing(): return None
def fails():
    return 1 / 0
number = 3
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "my_data.py").write_text(_CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_data", raising=False)
    return tmp_path


@pytest.mark.parametrize("name", ["a_dict", "a_tuple", "a_data"])
def test_a_function_may_return_a_dict_a_tuple_or_data(mine: Path, name: str) -> None:
    data = load_data(f"my_data:{name}", seed=0)
    assert len(data.train) == 10
    assert data.classes == 2


def test_the_users_data_are_checked_too(mine: Path) -> None:
    assert "the model takes 3x32x32" in message("my_data:a_data", model_input=(3, 32, 32))


def test_a_function_that_returns_something_else_is_told(mine: Path) -> None:
    assert "my_data:nothing returned a NoneType" in message("my_data:nothing")


def test_a_function_that_fails_is_named_with_its_line(mine: Path) -> None:
    assert "my_data.py:13: ZeroDivisionError" in message("my_data:fails")


def test_an_unknown_function_gets_the_nearest(mine: Path) -> None:
    assert "Did you mean 'a_tuple'?" in message("my_data:a_tupel")


def test_an_unknown_module_gets_the_nearest(mine: Path) -> None:
    assert "Did you mean 'my_data'?" in message("my_dat:a_tuple")


def test_a_number_is_no_function(mine: Path) -> None:
    assert "my_data:number is a int, not a function" in message("my_data:number")


def test_a_path_is_no_module(mine: Path) -> None:
    assert "type my_data:a_tuple" in message("./my_data.py:a_tuple")


def test_a_module_that_cannot_be_imported_says_where(mine: Path) -> None:
    (mine / "broken.py").write_text("import os\nimport no_such_thing\n")
    assert "broken.py:2: ModuleNotFoundError" in message("broken:f")
    (mine / "wrong.py").write_text("def f(:\n")
    assert "wrong.py:1: SyntaxError" in message("wrong:f")


def test_the_module_path_is_as_before(mine: Path) -> None:
    before = list(sys.path)
    load_data("my_data:a_tuple", seed=0)
    assert sys.path == before


def test_an_npz_of_lzma_members_is_read_like_any_other(tmp_path: Path) -> None:
    import zipfile

    path = tmp_path / "data.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        for name, values in arrays().items():
            member = io.BytesIO()
            np.save(member, values)
            archive.writestr(f"{name}.npy", member.getvalue())
    assert len(load_data(f"npz:{path}", seed=0).report) == 1
