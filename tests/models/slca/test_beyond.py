"""The switches beyond the papers, end to end: through the trainer on synthetic images."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import trainer
from convs.views import shifted
from models.slca.slca import SLCA
from models.tools.export import export
from models.tools.predict import load_learner
from tests.support import StubData, learn, make_config, make_learner, micro_backbone, synthetic_learner
from utils.data.registry import load_dataset
from utils.errors import UserError
from utils.run.monitor import Monitor

SYNTHETIC = {"name": "tiny", "layout": "synthetic", "num_classes": 5, "image_size": 16, "train_per_class": 12, "test_per_class": 6,
             "train_transform": "none"}
EVERYTHING = {"readout": "rgda", "features": "cls+mean", "drift": "linear", "kd": 1.0}


@pytest.fixture(autouse=True)
def no_report(monkeypatch):
    """Plots take longer than these runs."""
    monkeypatch.setattr(trainer, "write_report", lambda result, folder: None)


def settings(**changes):
    return make_config(**{"dataset": SYNTHETIC, "batch_size": 8, "epochs": 2, "ca_epochs": 1, "ca_samples": 16, "bcb_lrscale": 0.5,
                          **changes})


@pytest.mark.parametrize("changes", [
    {"readout": "lda"}, {"readout": "qda", "rgda_g": 0.1}, {"readout": "ncm", "ca_cov": "diag"}, EVERYTHING,
    {**EVERYTHING, "model_name": "slca_pp"}, {**EVERYTHING, "bcb_lrscale": 0.0}, {"drift": "linear", "drift_anchors": False},
    {"drift": "linear", "kd": 1.0, "ca_start": "aligned", "model_name": "slca_pp", "ca_cov": "lowrank", "ca_rank": 3},
    {**EVERYTHING, "task_sizes": [3, 1, 1], "val_fraction": 0.2, "views": 5},
    {**EVERYTHING, "scenario": "domain", "init_cls": None, "increment": None, "val_fraction": 0.2,
     "dataset": {**SYNTHETIC, "num_classes": 3, "num_domains": 3}},
], ids=str)
def test_a_run_with_the_switches_ends_with_figures_that_test_only_repeats(changes, tmp_path):
    config = settings(**changes)
    result = trainer.train(config, tmp_path)
    again = trainer.test(config, tmp_path)
    assert result.seeds[0].accuracy_matrix == again.seeds[0].accuracy_matrix
    assert len(result.seeds[0].top1_curve) == 3


@pytest.mark.parametrize("changes", [EVERYTHING, {"readout": "ncm"}], ids=str)
def test_a_run_read_from_its_gaussians_can_be_exported_and_predicts(changes, tmp_path):
    result = trainer.train(settings(**changes), tmp_path, name="run")
    trained = load_learner(next((tmp_path / "run").iterdir()))
    assert export(trained, tmp_path / "model.pt2") <= 1e-4
    _, test, _ = load_dataset(settings().dataset, "data")
    found = trained.predict(test.images, top_k=1)
    assert 100 * np.mean([row[0] for row in found.labels] == test.labels) == pytest.approx(result.seeds[0].last)


@pytest.mark.parametrize("changes", [EVERYTHING, {"drift": "linear", "ca_start": "aligned"}], ids=str)
def test_a_run_cut_off_inside_a_task_continues_to_the_same_bits(changes, tmp_path, monkeypatch):
    config = settings(**changes, val_fraction=0.2, drift_rho=1e-4)
    whole = trainer.train(config, tmp_path / "whole")
    save = trainer.Session.save_inside_task

    def cut(session, epochs, optimizer):
        save(session, epochs, optimizer)
        if (session.learner.task, epochs) == (1, 1):
            raise KeyboardInterrupt

    monkeypatch.setattr(trainer.Session, "save_inside_task", cut)
    with pytest.raises(KeyboardInterrupt):
        trainer.train(config, tmp_path / "cut")
    monkeypatch.setattr(trainer.Session, "save_inside_task", save)
    resumed = trainer.train(config, tmp_path / "cut", resume=True)
    assert resumed.seeds[0].accuracy_matrix == whole.seeds[0].accuracy_matrix
    for file in ("weights.safetensors", "state.safetensors"):
        one, other = (load_file(next((tmp_path / name).rglob(f"task_03/{file}"))) for name in ("whole", "cut"))
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def learner_with_one_task_behind(**changes) -> tuple[SLCA, StubData]:
    generator = torch.Generator().manual_seed(0)
    batches = {task: [(torch.randn(12, 3, 16, 16, generator=generator), torch.arange(12) % 2 + 2 * task)] for task in range(2)}
    data = StubData([2, 2], batches)
    learner = make_learner(settings(**changes), data, micro_backbone())
    learner.learn_task(0, Monitor())
    return learner, data


def test_drift_moves_old_statistics_by_the_measured_map():
    learner, _ = learner_with_one_task_behind(drift="linear", drift_rho=0.5, drift_anchors=False, readout="rgda")
    before = learner.gaussians.means().double()
    learner.begin_task(1)
    x, _ = learner.extract("train", 1)
    learner.train(1, Monitor())
    y, _ = learner.extract("train", 1)
    learner.end_task(1, Monitor())
    x, y = x.double(), y.double()
    a = torch.linalg.solve(x.T @ x + 0.5 * (x.T @ x).trace() / x.shape[1] * torch.eye(x.shape[1]), x.T @ (y - x))
    assert not torch.equal(x, y)
    torch.testing.assert_close(learner.gaussians.means()[:2].double(), before + before @ a, atol=1e-5, rtol=1e-5)


def test_a_frozen_backbone_has_no_drift():
    learner, _ = learner_with_one_task_behind(drift="linear", kd=1.0, bcb_lrscale=0.0, readout="rgda")
    before = learner.gaussians.means()
    learner.learn_task(1, Monitor())
    assert torch.equal(learner.gaussians.means()[:2], before)


def test_distillation_adds_the_distance_to_the_features_before_the_task():
    learner, data = learner_with_one_task_behind(kd=3.0)
    learner.begin_task(1)
    images, labels = data.batches("train", 1)[0]
    learner.net.eval()
    before = learner.net.features(images).detach()
    with torch.no_grad():
        for parameter in learner.net.backbone.parameters():
            parameter.mul_(1.1)
    loss, logits, targets = learner.training_loss(learner.training_module(1), images, labels)
    expected = torch.nn.functional.cross_entropy(logits, targets) + 3 * (learner.net.features(images) - before).square().mean()
    torch.testing.assert_close(loss, expected)


def test_distillation_keeps_the_backbone_closer():
    moved = {}
    for kd in (0.0, 1.0):
        learner, _ = learner_with_one_task_behind(kd=kd, bcb_lrscale=0.01, epochs=20)
        before = learner.extract("test", 0)[0]
        learner.learn_task(1, Monitor())
        moved[kd] = (learner.extract("test", 0)[0] - before).square().mean()
    assert moved[1.0] < 0.5 * moved[0.0], moved


def test_alignment_may_start_from_the_aligned_heads():
    heads = {}
    for start in ("local", "aligned"):
        learner, _ = learner_with_one_task_behind(ca_start=start)
        learner.learn_task(1, Monitor())
        aligned = learner.net.heads[0].weight.clone()
        learner.recall_heads()
        heads[start] = torch.equal(learner.net.heads[0].weight, aligned)
    assert heads == {"local": False, "aligned": True}


def test_a_read_out_that_cannot_tell_classes_apart_is_told():
    said = []
    monitor = Monitor()
    monitor.log = said.append
    learner = learner_with_one_task_behind(readout="rgda", ca_ridge=1e30)[0]
    learner.end_task(1, monitor)
    assert [line for line in said if "every class the same score" in line and "ca_ridge (1e+30)" in line]


@pytest.mark.parametrize("value", ["pca", "RGDA", 1])
def test_an_unknown_read_out_names_those_that_there_are(value):
    with pytest.raises(UserError, match="'rgda'"):
        settings(readout=value)


def test_probabilities_sum_to_one_and_take_the_temperature():
    learner, _ = learner_with_one_task_behind(readout="rgda")
    features, _ = learner.extract("test", 0)
    sharp = learner.probabilities(features)
    learner.temperature = 50.0
    soft = learner.probabilities(features)
    torch.testing.assert_close(soft.sum(dim=1), torch.ones(len(features)))
    assert soft.amax(dim=1).mean() < sharp.amax(dim=1).mean()


def test_without_a_held_out_image_the_state_before_the_task_stays_deployed():
    one_each = {"name": "tiny", "layout": "synthetic", "num_classes": 4, "image_size": 16, "train_per_class": 1, "test_per_class": 1}
    learner = synthetic_learner("slca_best", dataset=one_each, epochs=1)
    learn(learner, range(2))
    assert learner.data.count("val", 1) == 0 and learner.measured["share"] == 0.0


def test_views_change_what_is_read_and_nothing_that_is_trained():
    one, five = (synthetic_learner("slca", views=views, epochs=1, bcb_lrscale=0.5) for views in (1, 5))
    for learner in (one, five):
        learn(learner, [0])
    backbones = [learner.net.backbone.state_dict() for learner in (one, five)]
    assert all(torch.equal(tensor, backbones[1][name]) for name, tensor in backbones[0].items())
    features, _ = five.extract("train", 0)
    batches = five.data.batches("train", 0, batch_size=8, augment=False)
    with torch.no_grad():
        alone = [torch.cat([five.net.features(view) for view in views]) for views in zip(*(shifted(x, 5) for x, _ in batches), strict=True)]
    torch.testing.assert_close(features, torch.stack(alone).mean(dim=0))
    torch.testing.assert_close(five.gaussians.means()[0], features[:12].mean(dim=0), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(features, one.extract("train", 0)[0])


def test_the_share_of_held_out_images_that_old_classes_take_is_measured_and_told_where_it_is_large():
    learner = synthetic_learner("slca", readout="ncm", bcb_lrscale=0.0, val_fraction=0.25)
    learn(learner, [0])
    assert "taken_by_old" not in learner.diagnostics()  # there is no old class
    told = []
    monitor = Monitor()
    monitor.log = told.append
    learner.learn_task(1, monitor)
    features, labels = learner.extract("val", 1)
    expected = sum(learner.scores(features).argmax(dim=1).tolist()[i] < learner.stream.classes_before(1) for i in range(len(labels)))
    assert learner.diagnostics()["taken_by_old"] == pytest.approx(expected / len(labels))
    learner.measure_held_out(torch.tensor([[1.0, 0, 0, 0], [1.0, 0, 0, 0], [0, 0, 0, 1.0]]), 1, monitor)
    assert learner.diagnostics()["taken_by_old"] == pytest.approx(2 / 3)
    assert told[-1].startswith("warning: 66.7 % of the new task's held-out images are taken for old classes")


@pytest.mark.parametrize(("step", "stale"), [(0.3, True), (1e-6, False)])
def test_statistics_that_the_backbone_left_behind_are_told_with_the_settings_that_help(step, stale):
    learner = synthetic_learner("slca", ca_epochs=0)
    learn(learner, [0])

    def train(*_):
        with torch.no_grad():
            for p in learner.net.backbone.parameters():
                p += step * torch.randn(p.shape, generator=torch.Generator().manual_seed(0))

    learner.train = train
    told = []
    monitor = Monitor()
    monitor.log = told.append
    learner.learn_task(1, monitor)
    measured = learner.diagnostics()
    assert stale == (measured["mean_cosine"] < 0.95 or measured["operator_distance"] > 0.1)
    warned = [line for line in told if line.startswith("warning: the statistics of old classes are stale")]
    assert bool(warned) == stale and all("drift 'linear'" in line for line in warned)
