"""utils/data/data_manager.py, utils/data/tasks.py and utils/images/loader.py: order, tasks, labels, batches."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from utils.config import Config, DatasetSpec
from utils.data.data_manager import DataManager
from utils.data.tasks import class_permutation, task_sizes
from utils.errors import UserError
from utils.images.loader import BatchMaker, BatchPool

PARITY = json.loads((Path(__file__).parents[2] / "data" / "parity" / "1_class_order.json").read_text())


def config(dataset: str | dict = "synthetic", **settings) -> Config:
    values = {"model_name": "slca", "convnet_type": "none", "epochs": 1, "init_cls": 4, "increment": 3, "num_workers": 0}
    return Config(**{**values, **settings}, dataset=dataset)


def synthetic(**settings) -> dict:
    return {"name": "s", "layout": "synthetic", "num_classes": 6, "image_size": 16, "train_per_class": 5, "test_per_class": 2, **settings}


def manager(dataset: str | dict | None = None, seed: int = 1993, **settings) -> DataManager:
    parts = {key: settings.pop(key) for key in ("rank", "world_size", "mean", "std", "channels", "device") if key in settings}
    return DataManager(config(dataset or synthetic(), **{"init_cls": 2, "increment": 2, **settings}), seed, **parts)


def everything(batches) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = zip(*batches, strict=True)
    return torch.cat(images), torch.cat(labels)


# Tasks -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("key", list(PARITY["order"]))
def test_class_orders_are_the_releases(key):
    seed, count = map(int, key.split("_"))
    assert class_permutation(count, seed) == PARITY["order"][key]


@pytest.mark.parametrize("key", list(PARITY["increments"]))
def test_task_sizes_are_the_releases(key):
    count, init_cls, increment = (int(part.lstrip("nbitc")) for part in key.split("_"))
    assert task_sizes(count, init_cls, increment) == PARITY["increments"][key]


@pytest.mark.parametrize("count", list(PARITY["target_mapping_seed1993"]))
def test_label_mapping_is_the_releases(count):
    data = manager(synthetic(num_classes=int(count), train_per_class=1, test_per_class=1, image_size=4), init_cls=int(count))
    assert data.labels("train", 0).tolist() == PARITY["target_mapping_seed1993"][count]["mapped_targets_of_arange"]


def test_each_class_is_in_exactly_one_task():
    data = manager(synthetic(num_classes=11), init_cls=4, increment=3)
    assert data.stream.task_sizes == [4, 3, 3, 1] and sorted(data.stream.class_order) == list(range(11))
    assert data.stream.task_of_class.tolist() == [0] * 4 + [1] * 3 + [2] * 3 + [3]
    assert [(data.stream.classes_before(t), data.stream.classes_upto(t)) for t in range(4)] == [(0, 4), (4, 7), (7, 10), (10, 11)]
    assert sum(data.count("train", t) for t in range(4)) == data.count("train", range(4)) == 55
    assert data.stream.class_names[0] == f"pattern {data.stream.class_order[0]}"


def test_without_shuffling_the_order_is_the_sets_own():
    assert manager(shuffle=False).stream.class_order == list(range(6))
    assert manager(synthetic(class_order=[5, 4, 3, 2, 1, 0])).stream.class_order == [5, 4, 3, 2, 1, 0]


def test_tasks_may_be_listed_by_size_number_or_name():
    assert manager(task_sizes=[1, 5]).stream.task_sizes == [1, 5]
    data = manager(tasks=[[3, "pattern 0"], [1, 2], [5, 4]])
    assert data.stream.class_order == [3, 0, 1, 2, 5, 4] and data.stream.task_sizes == [2, 2, 2]


@pytest.mark.parametrize("settings, words", [
    ({"init_cls": 7}, "init_cls: got 7, allowed: 1 to 6"),
    ({"increment": 0}, "increment: got 0 with 4 of 6 classes left"),
    ({"init_cls": None}, "key 'init_cls' is missing"),
    ({"increment": None}, "key 'increment' is missing"),
    ({"task_sizes": [3, 4]}, "sum is 6"),
    ({"tasks": [[0, 1], [1, 2, 3, 4, 5]]}, "tasks: twice 1"),
    ({"tasks": [[0, 1], [2, 3, 4]]}, "tasks: missing 5"),
    ({"tasks": [[0, 1, 2, 3, 4, 5], []]}, "empty task"),
    ({"tasks": [[0, 1, "patern 2"], [3, 4, 5]]}, "'patern 2' is no class"),
    ({"scenario": "domain"}, "has no domains"),
])
def test_tasks_that_the_set_cannot_give_are_one_clear_message(settings, words):
    with pytest.raises(UserError, match=r"(?s).*") as error:
        manager(**settings)
    assert words in str(error.value)


def test_increment_0_is_fine_when_the_first_task_has_all_classes():
    assert manager(init_cls=6, increment=0).stream.task_sizes == [6]


def test_a_dry_run_plans_without_the_data():
    plan = DataManager.plan(config("cifar100_224", init_cls=50, increment=3), 1993)
    assert plan.task_sizes == [50] + [3] * 16 + [2] and plan.class_order[:3] == [68, 56, 78]
    with pytest.raises(UserError, match='add "num_classes"'):
        DataManager.plan(config({"name": "f", "root": "not/there"}), 1993)
    named = config({"name": "f", "root": "not/there", "num_classes": 3}, tasks=[["a", "b"], ["c"]])
    assert DataManager.plan(named, 1993).task_sizes == [2, 1]


# Batches -----------------------------------------------------------------------------------------------------

def test_a_plain_pass_keeps_the_order_of_labels_and_the_last_smaller_batch():
    data = manager()
    batches = data.batches("test", [0, 2], batch_size=3, augment=False)
    images, labels = everything(batches)
    assert len(batches) == 3 and images.shape == (8, 3, 16, 16) and images.dtype == torch.float32
    assert np.array_equal(labels, data.labels("test", [0, 2])) and set(labels.tolist()) == {0, 1, 4, 5}
    assert labels.dtype == torch.int64 and data.count("test", [0, 2]) == 8


def test_images_arrive_normalised_with_the_given_statistics():
    data = manager(mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 4.0))
    raw = data._images.stores["test"].get(data.task_indices("test", 1)).float() / 255
    images, _ = everything(data.batches("test", 1, batch_size=9, augment=False))
    expected = (raw - torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1)) / torch.tensor([1.0, 2.0, 4.0]).view(1, 3, 1, 1)
    assert torch.allclose(images, expected, atol=1e-6)


def test_a_network_of_one_channel_gets_one_channel():
    assert everything(manager(channels=1).batches("test", 0, batch_size=9, augment=False))[0].shape[1] == 1
    assert everything(manager("digits", channels=3).batches("test", 0, batch_size=9, augment=False))[0].shape[1] == 3


def test_same_seed_same_batches_other_seed_other_order():
    data = manager(synthetic(train_transform="crop32"))
    passes = [everything(data.batches("train", [0, 1], batch_size=8, augment=True, shuffle_seed=s)) for s in (3, 3, 4)]
    assert torch.equal(passes[0][0], passes[1][0]) and torch.equal(passes[0][1], passes[1][1])
    assert not torch.equal(passes[0][1], passes[2][1])
    assert sorted(passes[0][1].tolist()) == sorted(data.labels("train", [0, 1]).tolist())
    batches = data.batches("train", 0, batch_size=8, augment=True, shuffle_seed=3)
    assert torch.equal(everything(batches)[0], everything(batches)[0]), "a pass can be repeated"


def test_no_global_generator_is_touched():
    data = manager(synthetic(train_transform="crop32"))
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    everything(data.batches("train", 0, batch_size=4, augment=True, shuffle_seed=0))
    assert torch.equal(before, torch.get_rng_state()) and np.array_equal(numpy_before, np.random.get_state()[1])


def test_workers_give_the_same_batches_and_live_on():
    plain, pooled = (manager(synthetic(train_transform="crop32"), num_workers=n) for n in (0, 2))
    torch.manual_seed(0)
    before = torch.get_rng_state()
    processes = []
    for seed in (1, 2):
        settings = dict(batch_size=4, augment=True, shuffle_seed=seed)
        for ours, theirs in zip(plain.batches("train", 0, **settings), pooled.batches("train", 0, **settings), strict=True):
            assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1])
        processes.append({process.pid for process in pooled._pool._watch.processes})
    assert processes[0] == processes[1] and len(processes[0]) == 2
    assert torch.equal(before, torch.get_rng_state())


def test_a_pass_inside_a_pass_and_a_pass_left_early_work_with_workers():
    data = manager(num_workers=1)
    outer = []
    for _, labels in data.batches("train", 0, batch_size=4, augment=False):
        outer.append(labels)
        assert len(everything(data.batches("test", 0, batch_size=4, augment=False))[1]) == 4
    assert np.array_equal(torch.cat(outer), data.labels("train", 0))
    for _ in data.batches("train", 0, batch_size=1, augment=False):
        break
    assert np.array_equal(everything(data.batches("train", 1, batch_size=4, augment=False))[1], data.labels("train", 1))


def test_chosen_images_are_delivered_with_their_labels():
    data = manager()
    chosen = data.task_indices("train", 2)[[3, 0]]
    images, labels = everything(data.batches("train", indices=chosen, batch_size=8, augment=False))
    assert np.array_equal(labels, data.labels_of("train", chosen)) and len(images) == 2
    assert data.images_bytes(chosen) == 2 * 16 * 16 * 3 and data.images_bytes(np.array([], dtype=int)) == 0


def test_the_validation_split_is_stratified_fixed_and_never_trained_on():
    data, other = manager(val_fraction=0.4), manager(val_fraction=0.4, seed=7)
    assert np.bincount(data.labels("val", range(3))).tolist() == [2] * 6
    train, val = data.task_indices("train", range(3)), data.task_indices("val", range(3))
    assert not set(train) & set(val) and len(train) + len(val) == 30
    assert np.array_equal(val, other.task_indices("val", range(3))), "the same images whatever the class order"
    assert manager().count("val", 0) == 0


def test_processes_share_a_pass_without_repeating_an_image():
    alone = manager(synthetic(train_transform="crop32"))
    ranks = [manager(synthetic(train_transform="crop32"), rank=r, world_size=3) for r in range(3)]
    plain = dict(batch_size=4, augment=False)
    assert torch.equal(torch.cat([everything(r.batches("train", [0, 1], **plain))[0] for r in ranks]),
                       everything(alone.batches("train", [0, 1], **plain))[0])
    training = dict(batch_size=7, augment=True, shuffle_seed=5)
    passes = [data.batches("train", [0, 1], **training) for data in (alone, *ranks)]
    for whole, *parts in zip(*passes, strict=True):
        assert torch.equal(torch.cat([p[0] for p in parts]), whole[0]) and torch.equal(torch.cat([p[1] for p in parts]), whole[1])


@pytest.mark.parametrize("dataset", ["array", "files"])
def test_batches_finished_on_a_device_are_those_finished_by_the_worker(tmp_path, dataset):
    spec = synthetic(image_size=32, train_transform="crop32_jitter")
    if dataset == "files":
        for i, part in enumerate(("train/a", "train/b", "val/a", "val/b")):
            (tmp_path / part).mkdir(parents=True)
            pixels = np.random.default_rng(i).integers(0, 256, (40 + i, 50, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / part / "0.png")
        spec = {"name": "f", "root": str(tmp_path), "image_size": 32, "train_transform": "crop224_jitter"}
    here = manager(spec, init_cls=2, increment=2)
    pool = BatchPool(replaced(here._pool.maker, finish_here=False), 0, torch.device("cpu"))
    for augment in (True, False):
        batches = here.batches("train", 0, batch_size=3, augment=augment, shuffle_seed=1)
        for ours, theirs in zip(batches, pool.run(batches._items), strict=True):
            assert torch.allclose(ours[0], theirs[0], atol=1e-6) and torch.equal(ours[1], theirs[1])


def replaced(maker: BatchMaker, finish_here: bool) -> BatchMaker:
    return BatchMaker(maker.stores, maker.transforms[True], maker.transforms[False], finish_here)


def test_an_unreadable_image_in_a_worker_is_one_clear_message(tmp_path):
    for name in ("train/a", "train/b", "test/a", "test/b"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "bad.png").write_text("no image")
    data = manager({"name": "f", "root": str(tmp_path)}, init_cls=2, num_workers=1, cache="none")
    told = ""
    try:
        everything(data.batches("train", 0, batch_size=2, augment=False))
    except UserError as error:  # pytest.raises would keep the frames, and with them the worker
        told = str(error)
    assert "bad.png cannot be read" in told and "Traceback" not in told


# Domains -----------------------------------------------------------------------------------------------------

def test_domains_are_tasks_of_the_same_classes():
    data = manager(synthetic(num_domains=3), scenario="domain", shuffle=False)
    assert data.stream.task_sizes == [6, 6, 6] and data.stream.num_classes == 18 and data.stream.label_period == 6
    assert sorted(set(data.labels("train", 1))) == list(range(6, 12)) and data.count("test", [0, 1]) == 24
    assert data.stream.class_names[7] == "domain 1/pattern 1" and data.stream.task_of_class[7] == 1
    _images, labels = everything(data.batches("train", 2, batch_size=100, augment=False))
    first = manager(synthetic(num_domains=1))
    assert np.array_equal(labels % 6, np.repeat(np.arange(6), 5)) and first.stream.label_period is None


def test_the_seed_shuffles_domains_unless_they_are_listed():
    orders = {tuple(manager(synthetic(num_domains=3), seed=s, scenario="domain").stream.domain_order) for s in range(8)}
    assert len(orders) > 1
    data = manager(synthetic(num_domains=3), seed=2, scenario="domain")
    first = data.stream.domain_order[0]
    assert data.stream.class_names[0] == f"domain {first}/pattern 0"
    listed = synthetic(num_domains=3, domains=["domain 0", "domain 1", "domain 2"])
    assert manager(listed, seed=2, scenario="domain").stream.domain_order == [0, 1, 2]


def test_a_set_with_domains_can_be_learned_class_by_class():
    data = manager(synthetic(num_domains=2))
    assert data.stream.num_classes == 6 and data.count("train", 0) == 20 and data.stream.label_period is None


def test_a_dataset_spec_object_is_taken_as_it_is():
    spec = DatasetSpec(**synthetic())
    assert DataManager(config(spec, init_cls=6, increment=0), 0).stream.num_classes == 6
