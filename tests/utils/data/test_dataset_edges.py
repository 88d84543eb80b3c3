"""Folders as users really have them: odd names, odd sizes, missing pieces."""

import json

import numpy as np
import pytest
from PIL import Image

from main import main
from tests.test_main import TINY

NAMES = ["Hund 🐕", "猫", "Ёж", "class with spaces", "<script>alert(1)</script>".replace("/", "_")]


def make_folder(root, names, train=4, test=2, size=(20, 20)):
    generator = np.random.default_rng(0)
    for split, count in (("train", train), ("test", test)):
        for name in names:
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = generator.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")


def run(tmp_path, capsys, dataset, **settings):
    config = {**TINY, "seed": 1, "dataset": {"image_size": 16, **dataset}, "num_workers": 0, **settings}
    (tmp_path / "c.json").write_text(json.dumps(config))
    code = main(["--config", str(tmp_path / "c.json"), "--out", str(tmp_path / "logs")])
    return code, capsys.readouterr()


def test_class_names_in_any_language_come_out_in_the_report_as_text(tmp_path, capsys):
    make_folder(tmp_path / "data", NAMES)
    code, _ = run(tmp_path, capsys, {"name": "odd names", "root": str(tmp_path / "data")})
    assert code == 0
    results = json.loads(next(tmp_path.glob("logs/c/*/results.json")).read_text())
    assert sorted(results["class_names"]) == sorted(NAMES)
    page = next(tmp_path.glob("logs/c/*/report.html")).read_text()
    assert "<script>alert" not in page


def test_one_image_per_class_is_enough(tmp_path, capsys):
    make_folder(tmp_path / "data", ["a", "b", "c", "d"], train=1, test=1)
    assert run(tmp_path, capsys, {"name": "thin", "root": str(tmp_path / "data")})[0] == 0


@pytest.mark.parametrize("size", [(1, 1), (10_000, 3), (3, 10_000)])
def test_images_of_any_size_are_brought_to_one(tmp_path, capsys, size):
    make_folder(tmp_path / "data", ["a", "b"], train=1, test=1, size=size)
    assert run(tmp_path, capsys, {"name": "sizes", "root": str(tmp_path / "data")})[0] == 0


def test_one_class_is_one_task(tmp_path, capsys):
    make_folder(tmp_path / "data", ["a"])
    assert run(tmp_path, capsys, {"name": "one", "root": str(tmp_path / "data")}, init_cls=1, increment=0)[0] == 0


def test_no_image_at_all_is_one_message(tmp_path, capsys):
    (tmp_path / "data" / "train").mkdir(parents=True)
    (tmp_path / "data" / "test").mkdir()
    code, printed = run(tmp_path, capsys, {"name": "none", "root": str(tmp_path / "data")})
    assert code == 2 and printed.err.startswith("error: ") and len(printed.err.strip().splitlines()) == 1
    assert not list(tmp_path.glob("logs/c/*/seed1"))


def test_labels_with_gaps_are_one_message(tmp_path, capsys):
    images = np.zeros((6, 16, 16, 3), dtype=np.uint8)
    labels = np.array([0, 0, 2, 2, 5, 5])
    np.savez(tmp_path / "gaps.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    code, printed = run(tmp_path, capsys, {"name": "gaps", "layout": "npz", "root": str(tmp_path / "gaps.npz")})
    assert code == 2 and "no training image" in printed.err


def test_a_corrupt_header_names_the_file(tmp_path, capsys):
    make_folder(tmp_path / "data", ["a", "b"])
    broken = tmp_path / "data" / "train" / "a" / "0.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n" + b"\x00" * 50)
    code, printed = run(tmp_path, capsys, {"name": "broken", "root": str(tmp_path / "data")})
    assert code == 2 and "0.png" in printed.err and "Traceback" not in printed.err
