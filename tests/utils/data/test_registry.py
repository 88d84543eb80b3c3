"""utils/data/registry.py and its readers: registered sets, folders, arrays, and their error messages."""

from __future__ import annotations

import io
import logging
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from utils.config import DatasetSpec
from utils.data.folders import split_set
from utils.data.registry import REGISTRY, dataset_info, list_datasets, load_dataset
from utils.data.types import ImageSet
from utils.errors import UserError
from utils.images.store import read_image
from utils.images.transforms import RECIPES


def save_image(path: Path, seed: int = 0, size: tuple[int, int] = (12, 10)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def make_folders(root: Path, classes: tuple[str, ...] = ("ant", "bee", "cat"), train: int = 3, test: int = 2) -> Path:
    for c, name in enumerate(classes):
        for i in range(train):
            save_image(root / "train" / name / f"{i}.png", 100 * c + i)
        for i in range(test):
            save_image(root / "val" / name / f"t{i}.png", 1000 + 100 * c + i)
    return root


def save_npz(path: Path, **changes: object) -> Path:
    rng = np.random.default_rng(0)
    arrays: dict = {"x_train": rng.integers(0, 256, (12, 8, 8, 3), dtype=np.uint8), "y_train": np.arange(12) % 3,
                    "x_test": rng.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8), "y_test": np.arange(6) % 3}
    arrays.update(changes)
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    return path


def message(function, *args) -> str:
    with pytest.raises(UserError) as error:
        function(*args)
    return str(error.value)


# Registered sets ---------------------------------------------------------------------------------------------

def test_every_registered_set_names_known_transforms_and_one_statistic_per_channel():
    for info in list_datasets():
        assert info.train_transform in RECIPES and info.test_transform in RECIPES, info.name
        assert len(info.mean) == len(info.std) == info.channels, info.name
        assert dataset_info(info.name) == info and info.num_classes


def test_constants_are_those_of_the_release():
    cifar, cifar224 = dataset_info("cifar100"), dataset_info("cifar100_224")
    assert cifar.mean == cifar224.mean == (.5071, .4867, .4408) and cifar.std == (.2675, .2565, .2761)
    assert (cifar.train_transform, cifar.test_transform, cifar.image_size) == ("crop32_jitter", "none", 32)
    assert (cifar224.train_transform, cifar224.test_transform, cifar224.image_size) == ("crop224_jitter", "resize256_crop224", 224)
    assert dataset_info("cifar10").mean == (.4914, .4822, .4465) and dataset_info("cifar10").std == (.2023, .1994, .2010)
    assert (cifar.train_count, cifar.test_count) == (50_000, 10_000)


def test_an_unknown_name_is_answered_with_the_nearest_and_all_that_exist():
    text = message(dataset_info, "cifar1000")
    assert "'cifar1000'" in text and "did you mean 'cifar100" in text and "synthetic" in text


@pytest.mark.parametrize("name", ["digits", "synthetic"])
def test_sets_in_memory_have_the_counts_they_announce(name):
    info = dataset_info(name)
    train, test, names = load_dataset(name)
    assert (len(train), len(test), len(names)) == (info.train_count, info.test_count, info.num_classes)
    assert train.images.shape[1:] == (info.image_size, info.image_size, info.channels) and train.images.dtype == np.uint8
    pixels = train.images / 255
    assert abs(pixels.mean() - info.mean[0]) < 0.06 and set(train.labels) == set(test.labels) == set(range(len(names)))


def test_digits_are_split_the_same_each_time_and_share_no_image():
    (train, test, _), (again, _, _) = load_dataset("digits"), load_dataset("digits")
    assert np.array_equal(train.images, again.images)
    assert np.bincount(test.labels).min() >= 34


def test_cifar_without_network_says_what_to_place_where(tmp_path, monkeypatch):
    import torchvision.datasets.utils as downloads

    def no_network(*args, **kwargs):
        raise OSError("no network")
    monkeypatch.setattr(downloads, "download_url", no_network)
    text = message(load_dataset, "cifar100_224", str(tmp_path))
    assert "cifar-100-python.tar.gz" in text and str(tmp_path) in text and "no network" in text
    assert "train-images-idx3-ubyte" in message(load_dataset, "fashion_mnist", str(tmp_path))


def test_a_cifar_pickle_that_is_not_the_original_is_never_opened(tmp_path, monkeypatch):
    import torchvision.datasets.utils as downloads
    witness = tmp_path / "opened"

    class Evil:
        def __reduce__(self):
            return (Path.touch, (witness,))
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    for name in ("train", "test", "meta"):
        (folder / name).write_bytes(pickle.dumps(Evil()))
    monkeypatch.setattr(downloads, "download_url", lambda *a, **k: (_ for _ in ()).throw(OSError("no network")))
    assert "not complete" in message(load_dataset, "cifar100", str(tmp_path))
    assert not witness.exists()


def test_synthetic_classes_do_not_depend_on_how_many_there_are():
    few, many = (load_dataset(DatasetSpec(name="s", layout="synthetic", num_classes=n, image_size=16)) for n in (3, 7))
    assert np.array_equal(few[0].images, many[0].images[:60]) and len(many[1]) == 70


def test_synthetic_domains_hold_every_class_in_a_light_of_their_own():
    spec = DatasetSpec(name="s", layout="synthetic", num_classes=4, num_domains=3, image_size=16, channels=1)
    train, _test, _names = load_dataset(spec)
    assert dataset_info(spec).domains == ("domain 0", "domain 1", "domain 2") and dataset_info(spec).channels == 1
    assert train.images.shape == (240, 16, 16, 1) and np.bincount(train.domains * 4 + train.labels).tolist() == [20] * 12
    assert len({round(float(train.images[train.domains == d].mean())) for d in range(3)}) == 3


# Folders -----------------------------------------------------------------------------------------------------

def test_folders_give_sorted_classes_and_sorted_files(tmp_path):
    root = make_folders(tmp_path, ("bee", "ant", "Zoo"))
    (root / "train" / "ant" / ".DS_Store").write_bytes(b"x")
    (root / "train" / "ant" / "._0.png").write_bytes(b"x")
    train, test, names = load_dataset(DatasetSpec(name="f", root=str(root)))
    assert names == ["Zoo", "ant", "bee"] and train.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3 and len(test) == 6
    assert [p.name for p in train.images[3:6]] == ["0.png", "1.png", "2.png"]
    info = dataset_info(DatasetSpec(name="f", root=str(root)))
    assert (info.num_classes, info.image_size, info.train_transform, info.test_transform) == (3, 224, "crop224", "resize256_crop224")


def test_folders_may_be_named_one_by_one_and_called_test(tmp_path):
    root = make_folders(tmp_path / "x")
    (root / "val").rename(root / "test")
    assert len(load_dataset(DatasetSpec(name="f", root=str(root)))[1]) == 6
    spec = DatasetSpec(name="f", train=str(root / "train"), test=str(root / "test"))
    assert len(load_dataset(spec)[0]) == 9 and dataset_info(spec).num_classes == 3


def test_one_folder_is_split_per_class_and_repeatably(tmp_path):
    root = make_folders(tmp_path, train=10) / "train"
    spec = DatasetSpec(name="f", root=str(root), split={"test_fraction": 0.3, "seed": 1})
    train, test, _ = load_dataset(spec)
    assert np.bincount(train.labels).tolist() == [7] * 3 and np.bincount(test.labels).tolist() == [3] * 3
    assert not set(train.images) & set(test.images) and load_dataset(spec)[1].images == test.images
    other = DatasetSpec(name="f", root=str(root), split={"test_fraction": 0.3, "seed": 2})
    assert load_dataset(other)[1].images != test.images
    assert dataset_info(spec).num_classes == 3


def test_a_class_of_one_image_is_for_training_and_warned_about(tmp_path, caplog):
    root = make_folders(tmp_path, train=4) / "train"
    save_image(root / "dog" / "only.png")
    with caplog.at_level(logging.WARNING):
        train, test, names = load_dataset(DatasetSpec(name="f", root=str(root), split={}))
    assert names[3] == "dog" and (train.labels == 3).sum() == 1 and 3 not in test.labels
    assert "class 'dog' has no test image" in caplog.text


def test_split_set_never_empties_a_class():
    images = ImageSet(np.zeros((7, 2, 2, 1), np.uint8), np.array([0, 0, 1, 1, 1, 1, 1]))
    for fraction in (0.01, 0.5, 0.99):
        train, test = split_set(images, fraction, 0, ["a", "b"])
        assert set(train.labels) == set(test.labels) == {0, 1} and len(train) + len(test) == 7


def test_mistakes_in_folders_are_one_clear_message_each(tmp_path):
    def load(**spec):
        return message(load_dataset, DatasetSpec(name="mine", **spec))
    assert 'key "root" is missing' in load()
    assert "nowhere/train" in load(root=str(tmp_path / "nowhere"))
    flat = make_folders(tmp_path / "flat") / "train"
    assert '"split": {"test_fraction": 0.2}' in load(root=str(flat))
    (tmp_path / "empty").mkdir()
    assert "has no sub-folders" in load(root=str(tmp_path / "empty"), split={})
    (tmp_path / "hole" / "ant").mkdir(parents=True)
    assert "class folder" in load(root=str(tmp_path / "hole"), split={}) and "has no images" in load(root=str(tmp_path / "hole"), split={})
    root = make_folders(tmp_path / "extra")
    save_image(root / "val" / "yak" / "0.png")
    assert "yak has no counterpart" in load(root=str(root))
    assert "are the same folder" in load(train=str(flat), test=str(flat))


def test_classes_are_selected_by_number_or_name_and_numbered_anew(tmp_path):
    root = make_folders(tmp_path)
    spec = DatasetSpec(name="f", root=str(root), classes=["cat", 0])
    train, _, names = load_dataset(spec)
    assert names == ["cat", "ant"] and train.images[0].parent.name == "ant" and train.labels.tolist() == [1] * 3 + [0] * 3
    assert dataset_info(spec).num_classes == 2
    assert "did you mean 'cat'" in message(load_dataset, DatasetSpec(name="f", root=str(root), classes=["catt"]))
    assert "once" in message(load_dataset, DatasetSpec(name="f", root=str(root), classes=[0, "ant"]))


# Arrays ------------------------------------------------------------------------------------------------------

def test_an_npz_gives_its_own_size_channels_and_no_augmentation(tmp_path):
    spec = DatasetSpec(name="a", layout="npz", root=str(save_npz(tmp_path / "a.npz", classes=np.array(["x", "y", "z"]))))
    train, test, names = load_dataset(spec)
    info = dataset_info(spec)
    assert (info.image_size, info.channels, info.num_classes, info.train_transform) == (8, 3, 3, "none")
    assert names == ["x", "y", "z"] and train.images.shape == (12, 8, 8, 3) and len(test) == 6


def test_grey_arrays_without_a_channel_axis_get_one(tmp_path):
    grey = np.zeros((12, 8, 8), np.uint8)
    path = save_npz(tmp_path / "a.npz", x_train=grey, x_test=grey[:6], y_train=np.arange(12)[:, None] % 3)
    spec = DatasetSpec(name="a", layout="npz", root=str(path))
    assert load_dataset(spec)[0].images.shape == (12, 8, 8, 1)
    assert dataset_info(spec).channels == 1 and len(dataset_info(spec).mean) == 1
    assert "mean: got 3 values, allowed: 1" in message(dataset_info, spec.model_copy(update={"mean": [0.5] * 3}))


def test_a_dry_run_knows_an_npz_that_is_not_there_from_its_config():
    spec = DatasetSpec(name="a", layout="npz", root="not/there.npz", num_classes=7, image_size=28)
    assert dataset_info(spec).num_classes == 7


@pytest.mark.parametrize("changes, words", [
    ({"y_test": None}, "key 'y_test' is missing"),
    ({"x_train": np.zeros((12, 8, 8, 3), np.float32)}, "x_train is float32, allowed: uint8"),
    ({"x_train": np.zeros((12, 3, 8, 8), np.uint8)}, "move the channels last"),
    ({"x_train": np.zeros((12, 8), np.uint8)}, "x_train has shape (12, 8)"),
    ({"x_train": np.zeros((11, 8, 8, 3), np.uint8)}, "x_train has 11 images, y_train has 12 labels"),
    ({"x_test": np.zeros((6, 9, 9, 3), np.uint8)}, "must agree"),
    ({"y_train": np.arange(12) / 2}, "y_train is float64"),
    ({"y_train": np.arange(12) - 1}, "the label -1"),
    ({"y_train": np.array(["a"] * 12)}, "allowed: (N,) whole numbers"),
    ({"y_train": np.arange(12) % 2 * 2}, "class '1' has no training image"),
    ({"classes": np.array(["x"])}, "classes has 1 names"),
])
def test_a_wrong_npz_is_one_clear_message(tmp_path, changes, words):
    path = save_npz(tmp_path / "a.npz", **changes)
    text = message(load_dataset, DatasetSpec(name="a", layout="npz", root=str(path)))
    assert (words in text and "a.npz" in text) or "data set a" in text, text


def test_pickles_text_and_torn_files_are_refused_as_npz(tmp_path):
    np.savez(tmp_path / "o.npz", x_train=np.array([{}], dtype=object), y_train=[0], x_test=[0], y_test=[0])
    (tmp_path / "t.npz").write_text("hello")
    whole = save_npz(tmp_path / "w.npz").read_bytes()
    (tmp_path / "torn.npz").write_bytes(whole[:len(whole) // 2])
    np.save(tmp_path / "single.npz", np.zeros(3))
    (tmp_path / "single.npz.npy").rename(tmp_path / "single.npz")
    for name in ("o", "t", "torn", "single", "missing"):
        assert f"{name}.npz" in message(load_dataset, DatasetSpec(name="a", layout="npz", root=str(tmp_path / f"{name}.npz")))


# Image files -------------------------------------------------------------------------------------------------

def test_images_of_every_mode_become_rgb(tmp_path):
    rgb = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8))
    for mode in ("RGB", "RGBA", "P", "L", "LA", "1", "CMYK", "YCbCr"):
        path = tmp_path / f"{mode}.{'jpg' if mode in ('CMYK', 'YCbCr') else 'png'}"
        rgb.convert(mode).save(path)
        pixels = read_image(path)
        assert pixels.shape == (9, 7, 3) and pixels.dtype == np.uint8 and pixels.flags.writeable, mode
    assert np.array_equal(read_image(tmp_path / "RGBA.png"), np.asarray(rgb))
    frames = [rgb, rgb.rotate(180)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert read_image(tmp_path / "a.gif").shape == (9, 7, 3)


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path):
    values = np.array([[0, 257, 32768, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    assert read_image(tmp_path / "deep.png")[0, :, 0].tolist() == [0, 1, 128, 255]


def test_broken_images_are_named(tmp_path):
    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(whole, "JPEG")
    (tmp_path / "cut.jpg").write_bytes(whole.getvalue()[:1500])
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty.png").touch()
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "float.tiff")
    for name in ("cut.jpg", "text.png", "empty.png", "float.tiff", "gone.png"):
        assert name in message(read_image, tmp_path / name)


def test_registered_names_are_keys():
    assert all(name == entry.info.name for name, entry in REGISTRY.items())
