"""utils/data/protocols.py, index_files.py, blurry.py and splits.py: which training images a protocol takes, and when they come."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tests.utils.data.test_data_manager import config, manager, synthetic
from utils.data.blurry import plan_blurry
from utils.data.data_manager import DataManager
from utils.data.protocols import tail_sizes
from utils.errors import UserError
from utils.protocol_settings import Blurry

FEW = {"few_shot": {"shots": 2}}
LONG = {"long_tail": {"ratio": 4}}
BLURRY = {"blurry": {"tasks": 3, "disjoint": 50, "blurry": 40}, "init_cls": None, "increment": None}


def taken(data) -> dict[int, list[int]]:
    """The training images of each own label."""
    labels, found = data.stream.class_order, data.task_indices("train", range(data.stream.num_tasks))
    return {labels[c]: found[data.labels_of("train", found) == c].tolist() for c in range(data.stream.num_classes)}


# Few-shot ----------------------------------------------------------------------------------------------------

def test_the_first_tasks_classes_give_all_their_images_and_later_ones_a_few():
    data = manager(**FEW)
    assert [data.count("train", task) for task in range(3)] == [10, 4, 4]
    assert [data.count("test", task) for task in range(3)] == [4, 4, 4], "all test images are tested on"


def test_another_seed_draws_other_images_and_the_same_seed_the_same():
    first, again, other = (taken(manager(seed=seed, shuffle=False, **FEW)) for seed in (1, 1, 2))
    assert first == again != other
    assert first[0] == other[0] == list(range(5)), "of the first task's classes there is nothing to draw"


def test_validation_images_are_taken_out_of_the_few():
    data = manager(val_fraction=0.5, **FEW)
    assert [data.count("train", task) + data.count("val", task) for task in range(3)] == [10, 4, 4]
    assert [data.count("val", task) for task in range(1, 3)] == [2, 2]


def test_listed_images_are_the_ones_that_are_taken(tmp_path):
    (tmp_path / "session_2.txt").write_text("10\n12\n\n19\n18\n")
    (tmp_path / "session_3.txt").write_text("20\n21\n25\n29\n")
    files = [str(tmp_path / f"session_{i}.txt") for i in (2, 3)]
    data = manager(shuffle=False, few_shot={"shots": 2, "images": files})
    assert {c: images for c, images in taken(data).items() if c > 1} == {2: [10, 12], 3: [18, 19], 4: [20, 21], 5: [25, 29]}
    other = manager(shuffle=False, **FEW)
    assert data.stream != other.stream, "a resumed run must notice another choice"


def test_images_in_files_are_listed_by_folder_and_name(tmp_path):
    for split, count in (("train", 3), ("val", 1)):
        for name in ("ant", "bee", "cat"):
            (tmp_path / "d" / split / name).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / "d" / split / name / f"{i}.png")
    (tmp_path / "list.txt").write_text("ANYTHING/images/bee/2.png\ncat/0.png\n")
    spec = {"name": "d", "root": str(tmp_path / "d"), "image_size": 8}
    few = {"shots": 1, "images": str(tmp_path / "list.txt")}
    data = manager(spec, shuffle=False, init_cls=1, increment=1, few_shot=few, cache="none")
    assert taken(data) == {0: [0, 1, 2], 1: [5], 2: [6]}


@pytest.mark.parametrize("lines, words", [
    ("10\n11\n18\n99\n", "lists image 99, allowed: 0 to 29"),
    ("10\n10\n18\n19\n", "lists 10 twice"),
    ("3\n10\n11\n", "1 of the listed images are of classes of the first task, such as 'pattern 0'"),
    ("10\n11\n18\n", "2 images \\(shots\\) of every class after the first task; these have others: 'pattern 3' 1"),
    ("bee/0.png\n", "in one array and have no paths"),
    ("", "lists no image"),
    ("\x00\xff", "cannot be read as text"),
])
def test_an_index_file_that_does_not_fit_is_one_clear_message(tmp_path, lines, words):
    (tmp_path / "list.txt").write_bytes(lines.encode("latin-1"))
    with pytest.raises(UserError, match=words):
        manager(synthetic(), shuffle=False, task_sizes=[2, 4], few_shot={"shots": 2, "images": str(tmp_path / "list.txt")})


# Long tail ---------------------------------------------------------------------------------------------------

def test_tail_sizes_are_cifar_100_lts():
    """As in the loop of LDAM-DRW's and Long-Tailed-CIL's imbalance_cifar: int(img_max * imb_factor ** (c / (C - 1)))."""
    loop = [int(500 * 0.01 ** (c / 99.0)) for c in range(100)]
    sizes = tail_sizes(500, 100.0, 100).tolist()
    assert sizes[:99] == loop[:99] and sizes[-1] == 5 and sum(sizes) == 10_847
    assert tail_sizes(3, 1e6, 4).tolist() == [3, 1, 1, 1], "every class has an image"
    assert tail_sizes(7, 10.0, 1).tolist() == [7]


def test_ordered_a_later_class_has_fewer_images_and_shuffled_the_sizes_are_the_same_ones():
    sizes = tail_sizes(5, 4.0, 6).tolist()
    counts = {order: [len(taken(data)[c]) for c in data.stream.class_order]
              for order in ("ordered", "shuffled") for data in [manager(seed=3, long_tail={"ratio": 4, "order": order})]}
    assert counts["ordered"] == sizes == sorted(sizes, reverse=True)
    assert counts["shuffled"] != sizes and sorted(counts["shuffled"]) == sorted(sizes)


# Blurry ------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module", params=[True, False])
def plan(request):
    settings = Blurry(tasks=5, disjoint=50, blurry=20, stochastic=request.param)
    labels = np.repeat(np.arange(20), 30)
    return settings, labels, plan_blurry(settings, labels, list(range(20)), seed=7)


def test_a_disjoint_classs_images_come_in_one_task_and_a_class_is_new_where_its_first_image_comes(plan):
    _, labels, dealt = plan
    tasks = [set(dealt.task_of_image[labels == c]) for c in range(20)]
    assert all(len(found) == 1 for found in tasks[:10]) and any(len(found) > 1 for found in tasks[10:])
    assert sorted(dealt.class_order) == list(range(20)) and len(dealt.task_sizes) == 5 and min(dealt.task_sizes) >= 1
    new_in = np.repeat(np.arange(5), dealt.task_sizes)
    assert [min(tasks[c]) for c in dealt.class_order] == new_in.tolist()


def test_each_blurry_class_spreads_its_share(plan):
    settings, labels, dealt = plan
    for c in range(10, 20):
        counts = np.bincount(dealt.task_of_image[labels == c])
        assert counts.max() >= 24, "80 percent of 30 images stay at home"
    if not settings.stochastic:
        assert np.bincount(dealt.task_of_image).tolist() == [120] * 5, "four classes' images each, the pool of 60 dealt evenly"


def test_every_image_of_a_blurry_stream_comes_once():
    data = manager(synthetic(train_per_class=10), **BLURRY)
    pieces = [data.task_indices(split, task) for split in ("train", "again") for task in range(3)]
    assert np.sort(np.concatenate(pieces)).tolist() == list(range(60))
    for task in range(3):
        assert set(data.labels("train", task)) == set(data.stream.classes_of(task))
        assert all(label < data.stream.classes_before(task) for label in data.labels("again", task))
    assert data.count("again", range(3)) > 0


# What makes no sense -----------------------------------------------------------------------------------------

@pytest.mark.parametrize("settings, words", [
    ({**FEW, **LONG}, "few_shot and long_tail exclude each other"),
    ({**LONG, **BLURRY}, "long_tail and blurry exclude each other"),
    ({**FEW, "scenario": "domain"}, "few_shot and scenario 'domain' exclude each other"),
    ({**LONG, "scenario": "domain"}, "long_tail and scenario 'domain' exclude each other"),
    ({**FEW, "all_at_once": True}, "few_shot and all_at_once exclude each other"),
    ({**FEW, "init_cls": 6}, "few_shot: there is one task"),
    ({"few_shot": {"shots": 6}}, "few_shot.shots: got 6, allowed: 1 to 5"),
    ({**BLURRY, "task_sizes": [3, 3]}, "task_sizes and blurry exclude each other"),
    ({**BLURRY, "val_fraction": 0.1}, "val_fraction: got 0.1 with blurry, allowed: 0"),
    ({**BLURRY, "epochs": 2}, "epochs: got 2 with blurry, allowed: 1"),
    ({**BLURRY, "class_order": [0, 1, 2, 3, 4, 5]}, "class_order and blurry exclude each other"),
    ({**BLURRY, "blurry": {"tasks": 4, "disjoint": 50}}, "blurry.disjoint: got 50, percent of 6 classes, that is 3; allowed: at least one"),
    ({"domains_per_task": 2}, "domains_per_task: belongs to scenario 'domain'"),
    ({"class_order": [0, 1, 2, 3, 4, 5], "scenario": "domain"}, "class_order and scenario 'domain' exclude each other"),
    ({"class_order": [0, 1, 2, 3, 4, 5], "tasks": [[0, 1, 2], [3, 4, 5]]}, "class_order and tasks exclude each other"),
    ({"class_order": [0, 1, 2, 3, 4, 4]}, "class_order: twice 4; missing 5"),
])
def test_settings_that_mean_nothing_together_are_told(settings, words):
    with pytest.raises(UserError, match=words):
        manager(**settings)


def test_an_order_that_is_given_goes_with_one_seed_unless_images_are_drawn():
    order = {"class_order": [5, 4, 3, 2, 1, 0], "seed": [1, 2], "init_cls": 2, "increment": 2}
    with pytest.raises(UserError, match=r"seed: got \[1, 2\] with class_order, allowed: one seed"):
        DataManager(config(synthetic(), **order), 1)
    assert DataManager(config(synthetic(), **order, **FEW), 1).stream.class_order == [5, 4, 3, 2, 1, 0]


# Orders and domains ------------------------------------------------------------------------------------------

@pytest.mark.parametrize("content", ['[5, 4, 3, 2, 1, 0]', '{"class_order": ["pattern 5", 4, 3, 2, 1, "pattern 0"], "by": "hand"}'])
def test_an_order_of_classes_may_be_a_file(tmp_path, content):
    (tmp_path / "order.json").write_text(content)
    assert manager(class_order=str(tmp_path / "order.json")).stream.class_order == [5, 4, 3, 2, 1, 0]


@pytest.mark.parametrize("content, words", [
    (None, "does not exist; tried .*; allowed: a JSON file with a list of all classes"),
    ("[0, 1,]", "not valid JSON at line 1"),
    ("[]", "holds an empty list, allowed"),
    ("[0, 1.5]", "holds a list of other things"),
    ('{"order": [0]}', "its keys: order"),
    ("[0, 1]", "class_order: missing 2, 3, 4, 5"),
])
def test_a_file_without_an_order_is_one_clear_message(tmp_path, content, words):
    if content is not None:
        (tmp_path / "order.json").write_text(content)
    with pytest.raises(UserError, match=words):
        manager(class_order=str(tmp_path / "order.json"))


def test_a_task_may_mix_domains():
    data = manager(synthetic(num_domains=3, num_classes=2), scenario="domain", domains_per_task=2, shuffle=False)
    assert data.stream.task_sizes == [2, 2] and data.stream.domains_of(0) == [0, 1] and data.stream.domains_of(1) == [2]
    assert [data.count("train", task) for task in range(2)] == [20, 10]
    assert data.stream.class_names == [f"{task}/pattern {c}" for task in ("domain 0+domain 1", "domain 2") for c in (0, 1)]
    with pytest.raises(UserError, match="domains_per_task: got 4, allowed: 1 to 3"):
        manager(synthetic(num_domains=3), scenario="domain", domains_per_task=4)
