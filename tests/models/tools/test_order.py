"""models/tools/order.py: orders of classes by the backbone's class means."""

import json

import numpy as np
import pytest

from main import main
from models.tools import order
from tests.run_files import tiny_config
from tests.utils.data.test_data_manager import manager
from utils.errors import UserError


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("orders")
    config = tiny_config(init_cls=3, increment=2)
    for by in ("similar", "dissimilar"):
        order.write_order(config, by, folder / f"{by}.json", 100, "cpu")
    return {by: json.loads((folder / f"{by}.json").read_text()) for by in ("similar", "dissimilar")}, folder


def test_the_orders_hold_every_class_once_and_say_how_alike_a_tasks_classes_are(written):
    found, _ = written
    assert all(sorted(content["class_order"]) == [f"pattern {c}" for c in range(5)] for content in found.values())
    assert found["similar"]["mean_cosine_within_tasks"] >= found["dissimilar"]["mean_cosine_within_tasks"]
    assert found["similar"]["task_sizes"] == [3, 2]


def test_a_run_takes_the_order_from_the_file(written):
    found, folder = written
    data = manager({"name": "tiny", "layout": "synthetic", "num_classes": 5, "image_size": 16}, class_order=str(folder / "similar.json"))
    assert data.stream.class_names == found["similar"]["class_order"]


def test_class_means_are_of_the_first_images_of_each_class(monkeypatch):
    data = manager(init_cls=3, increment=3)

    class Pixels:
        dim = 3

        def to(self, device):
            return self

        def eval(self):
            return self

        def __call__(self, images):
            return images.mean(dim=(2, 3))

    from lightning_fabric import Fabric

    means = order.class_means(data, Pixels(), Fabric(accelerator="cpu", devices=1), 2, 4)
    indices = data.task_indices("train", range(2))
    labels = data.labels_of("train", indices)
    for c in range(6):
        (images, _), = data.batches("train", indices=indices[labels == c][:2], batch_size=2, augment=False)
        np.testing.assert_allclose(means[c], images.mean(dim=(0, 2, 3)).numpy(), atol=1e-6)


@pytest.mark.parametrize("settings, words", [
    ({"scenario": "domain"}, "got a config with scenario 'domain'"),
    ({"all_at_once": True}, "got a config with all_at_once"),
])
def test_a_config_without_tasks_of_new_classes_is_refused(settings, words, tmp_path):
    with pytest.raises(UserError, match=words):
        order.write_order(tiny_config(**settings), "similar", tmp_path / "order.json", 10, "cpu")


@pytest.mark.parametrize("words, message", [
    (["--by", "size", "--out", "a.json"], "invalid choice"),
    (["--by", "similar", "--out", "a.json", "--images", "0"], "--images: got 0, allowed: 1 or more"),
    (["--by", "similar", "--out", "a.txt"], "--out: got a.txt, allowed: a name that ends in .json"),
])
def test_mistyped_options_are_told(words, message, capsys):
    try:
        code = main(["order", "--config", "exps/ncm_demo.json", *words])
    except SystemExit as stop:
        code = stop.code
    assert code == 2 and message in capsys.readouterr().err
