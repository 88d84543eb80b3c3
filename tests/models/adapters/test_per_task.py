"""What holds for every method with an adapter per task: export, prediction, domains, what trains, what a dry run counts."""

import pytest
import torch

import trainer
from models import resolve_config
from models.tools.dry_run import count_parameters, shape_learner
from models.tools.export import export
from models.tools.predict import load_learner
from tests.run_files import only_run, tiny_config
from tests.support import learn, synthetic_learner
from trainer import train
from utils.data.data_manager import DataManager
from utils.data.registry import load_dataset

METHODS = ("ease", "tuna", "mos")
DOMAINS = {"name": "tiny", "layout": "synthetic", "num_classes": 3, "num_domains": 2, "image_size": 16, "train_per_class": 8,
           "test_per_class": 4, "train_transform": "none"}


@pytest.mark.parametrize("method", METHODS)
def test_a_finished_run_predicts_what_it_reported_and_is_exported(method, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "write_report", lambda result, folder: None)
    result = train(tiny_config(model_name=method, epochs=1), tmp_path, name="run")
    trained = load_learner(only_run(tmp_path / "run"))
    _, test, _ = load_dataset(tiny_config().dataset, "data")
    found = trained.predict(test.images, top_k=2)
    right = [labels[0] == label for labels, label in zip(found.labels, test.labels.tolist(), strict=True)]
    assert 100 * sum(right) / len(right) == pytest.approx(result.seeds[0].last)
    assert (found.probabilities.sum(dim=1) <= 1 + 1e-5).all()
    if method == "mos":  # of the three the one whose program holds most: it takes a quarter of a minute
        assert export(trained, tmp_path / "model.pt2") <= 1e-4


@pytest.mark.parametrize("method", (*METHODS, "aper"))
def test_the_same_classes_in_one_domain_after_another(method, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "write_report", lambda result, folder: None)
    config = tiny_config(model_name=method, epochs=1, dataset=DOMAINS, scenario="domain", init_cls=None, increment=None)
    seed = train(config, tmp_path, name="run").seeds[0]
    assert len(seed.top1_curve) == 2 and all(0 <= accuracy <= 100 for accuracy in seed.top1_curve)


@pytest.mark.parametrize("method", METHODS)
def test_the_pretrained_weights_never_move_and_an_adapter_is_frozen_when_its_task_is_over(method):
    learner = synthetic_learner(method)
    own = {name: p.clone() for name, p in learner.net.backbone.model.named_parameters() if "adapters" not in name}
    learn(learner, [0])
    first = {name: tensor.clone() for name, tensor in learner.adapters.state(0).items()}
    learn(learner, [1, 2])
    parameters = dict(learner.net.backbone.model.named_parameters())
    assert all(torch.equal(tensor, parameters[name]) for name, tensor in own.items())
    assert all(torch.equal(tensor, learner.adapters.state(0)[name]) for name, tensor in first.items())


@pytest.mark.parametrize("method", METHODS)
def test_a_dry_run_counts_all_adapters_and_trains_one(method):
    config = resolve_config(tiny_config(model_name=method))
    learner = shape_learner(config, DataManager.plan(config, 1993))
    one = 2 * (2 * 16 * 4 + 4 + 16)  # two blocks
    assert count_parameters(learner)["trained_backbone"] == one
    adapters = sum(p.numel() for name, p in learner.net.named_parameters() if "adapters" in name)
    assert adapters == one * (3 + (method == "tuna"))


def test_statistics_leave_the_passes_of_a_prediction_as_they_were():
    learner = synthetic_learner("mos")
    learn(learner, range(2))
    assert learner.passes == [None, 0, 1]
    with learner.only([1]):
        assert learner.feature_dim == 16
    assert learner.passes == [None, 0, 1] and learner.adapters.active == "1"
