"""Joint training: one task that holds every class, whatever stream the config describes."""

from models import resolve_config
from tests.support import make_config
from trainer import train
from utils.data.data_manager import DataManager

TINY = {"name": "tiny", "layout": "synthetic", "num_classes": 5, "image_size": 16, "train_per_class": 6, "test_per_class": 2,
        "train_transform": "none"}


def test_joint_learns_all_classes_in_one_task(tmp_path):
    seed = train(make_config(model_name="joint", dataset=TINY, batch_size=8), tmp_path).seeds[0]
    assert seed.task_sizes == [5]
    assert len(seed.top1_curve) == 1
    assert seed.memory_bytes["images"] == 5 * 6 * 16 * 16 * 3  # uint8 pixels of all training images


def test_one_task_keeps_the_class_order_of_the_seed_and_wins_over_listed_tasks():
    several = make_config(dataset=TINY)
    single = make_config(dataset=TINY, all_at_once=True)
    assert DataManager(several, 1993).stream.class_order == DataManager(single, 1993).stream.class_order
    listed = make_config(dataset=TINY, all_at_once=True, tasks=[[0, 1], [2, 3, 4]], init_cls=None, increment=None)
    assert DataManager(listed, 1993).stream.task_sizes == [5]


def test_joint_over_domains_learns_each_class_from_all_domains():
    domains = {**TINY, "num_domains": 3}
    config = make_config(model_name="joint", dataset=domains, scenario="domain", init_cls=None, increment=None)
    data = DataManager(config, 1993)
    assert data.stream.task_sizes == [5]
    assert data.stream.label_period is None
    assert data.count("train", 0) == 3 * 5 * 6
    assert sorted(set(data.labels("test", 0).tolist())) == list(range(5))


def test_only_joint_is_all_at_once_by_default():
    assert resolve_config(make_config(model_name="joint")).all_at_once is True
    assert not resolve_config(make_config(model_name="finetune")).all_at_once
