"""utils/data/fingerprint.py, and what a resumed run says about changed data."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

import trainer
from tests.run_files import only_run, tiny_config
from tests.utils.run.test_resume import Stopped, stop_after_saves
from trainer import train
from utils.data.fingerprint import changes, digest, fingerprint
from utils.data.folders import read_class_folders
from utils.data.types import ImageSet
from utils.errors import UserError


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setattr(trainer, "write_report", lambda result, folder: None)


@pytest.fixture
def stopped(tmp_path, monkeypatch):
    """A run on a folder of images, four classes in two tasks, stopped after its first task; the config and the folder."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 2)):
        for name in "bcde":
            folder = tmp_path / "photos" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    photos = {"name": "photos", "root": str(tmp_path / "photos"), "image_size": 16, "train_transform": "none"}
    config = tiny_config(epochs=1, dataset=photos)
    with monkeypatch.context() as patch:
        stop_after_saves(patch, 1)
        with pytest.raises(Stopped):
            train(config, tmp_path / "out", name="run")
    return config, tmp_path / "photos", tmp_path / "out"


CHANGES = {
    "class 'e' is gone": lambda photos: [shutil.rmtree(photos / split / "e") for split in ("train", "val")],
    "class 'a' is new": lambda photos: [shutil.copytree(photos / split / "b", photos / split / "a") for split in ("train", "val")],
    "class 'b' is gone; class 'z' is new": lambda photos: [(photos / s / "b").rename(photos / s / "z") for s in ("train", "val")],
    "class 'c' had 6 images in train, has 5": lambda photos: (photos / "train" / "c" / "0.png").unlink(),
    "class 'd' has other images in test": lambda photos: (photos / "val" / "d" / "0.png").write_bytes(
        (photos / "val" / "d" / "1.png").read_bytes() + b"\0"),
}


@pytest.mark.parametrize("told", CHANGES)
def test_data_that_changed_between_stop_and_resume_are_refused_with_what_differs(stopped, told):
    config, photos, out = stopped
    CHANGES[told](photos)
    with pytest.raises(UserError, match=told):
        train(config, out, name="run", resume=True)
    with pytest.raises(UserError, match=told):
        trainer.test(config, out, name="run")


def test_data_that_moved_as_they_are_resume(stopped, tmp_path):
    config, photos, out = stopped
    photos.rename(tmp_path / "elsewhere")
    (tmp_path / "photos").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert len(train(config, out, name="run", resume=True).seeds[0].top1_curve) == 2


def test_checkpoints_of_another_seed_are_refused(stopped):
    config, _, out = stopped
    run = only_run(out / "run")
    status = json.loads((run / "run.json").read_text())
    status["config"]["seed"] = 7
    (run / "run.json").write_text(json.dumps(status))
    (run / "seed1993").rename(run / "seed7")
    with pytest.raises(UserError, match=r"written by seed 1993.*seed 7"):
        train(config.model_copy(update={"seed": 7}), out, name="run", resume=True)


FILES_CHANGED = {
    "another image of the same size": lambda a: (a / "3.bmp").write_bytes((a / "3.bmp").read_bytes()[:-1] + b"\7"),
    "a file that is not sampled is longer": lambda a: (a / "2.bmp").write_bytes((a / "2.bmp").read_bytes() + b"\0"),
    "classes whose files have equal names and sizes change places": lambda a: [
        a.rename(a.with_name("c")), a.with_name("b").rename(a), a.with_name("c").rename(a.with_name("b"))],
}


@pytest.mark.parametrize("how", FILES_CHANGED)
def test_files_with_the_same_names_and_other_content_are_noticed(how, tmp_path, monkeypatch):
    def now():
        images, names = read_class_folders(tmp_path)
        return fingerprint(images, images, names)

    for label, name in enumerate("ab"):
        (tmp_path / name).mkdir()
        for i in range(6):
            Image.new("L", (4, 4), 9 * i + label).save(tmp_path / name / f"{i}.bmp")
    before, digest_before = now(), digest(now())
    older = {split: {name: entry.rpartition(", ")[0] for name, entry in entries.items()} for split, entries in before.items()}
    FILES_CHANGED[how](tmp_path / "a")
    assert any("class 'a' has other images in train" in told for told in changes(before, now()))
    assert not changes(older, now()) and digest(now()) == digest_before == digest(older)  # which older versions could not notice
    monkeypatch.setattr("utils.data.fingerprint.MANY", 11)
    assert not changes(before, now())


def test_arrays_are_told_apart_by_counts_and_pixels():
    images, labels = np.arange(4 * 2 * 2, dtype=np.uint8).reshape(4, 2, 2, 1), np.array([0, 0, 1, 1])
    before = fingerprint(ImageSet(images, labels), ImageSet(images, labels), ["a", "b"])
    assert not changes(before, fingerprint(ImageSet(images.copy(), labels), ImageSet(images, labels), ["a", "b"]))
    other = images.copy()
    other[3] += 1
    found = changes(before, fingerprint(ImageSet(other, labels), ImageSet(images, labels), ["a", "b"]))
    assert found == ["class 'b' has other images in train"]
