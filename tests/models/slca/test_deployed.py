"""Which state of the backbone is deployed, and what is read of it again."""

import pytest
import torch
from torch import nn

from models import LEARNERS, evaluation, learner_class
from models.slca import moving_backbone
from models.slca.deployed import TrainedState, moved, put, trained_tensors
from models.slca.gaussian_learner import GaussianLearner
from models.slca.slca_best import SLCABest
from tests.support import learn, synthetic_learner
from utils.errors import UserError
from utils.run.monitor import Monitor

OPTIONS = {"val_fraction": 0.25, "views": 1, "features": ["cls", "mean"], "epochs": 1, "lr": 0.05}


def learner_before_task_two(**changes) -> SLCABest:
    learner = synthetic_learner("slca_best", **{**OPTIONS, **changes})
    learner.learn_task(0, Monitor())
    learner.evaluate(0)
    return learner


def prefer(monkeypatch, share: float) -> None:
    """Let the comparison of shares end with this one; the features of each are still taken."""
    expected = SLCABest.expected_accuracy

    def judged(self, task, candidate, held_out_before=None):
        expected(self, task, candidate, held_out_before)
        return 100.0 if candidate.share == share else 0.0

    monkeypatch.setattr(SLCABest, "expected_accuracy", judged)


def test_a_state_between_two_is_linear_but_for_the_truncated_factor():
    generator = torch.Generator().manual_seed(0)
    one, other = ({"block.lora_A": torch.randn(3, 5, generator=generator), "block.lora_B": torch.randn(5, 3, generator=generator)}
                  for _ in range(2))
    assert torch.equal(moved(one, other, 0.0, 0.9)["block.lora_A"], one["block.lora_A"])
    assert torch.equal(moved(one, other, 1.0, 0.9)["block.lora_A"], other["block.lora_A"])
    half = moved(one, other, 0.5, 0.5)
    torch.testing.assert_close(half["block.lora_B"], (one["block.lora_B"] + other["block.lora_B"]) / 2)
    assert torch.linalg.matrix_rank(half["block.lora_A"] - one["block.lora_A"]) < 3


def test_running_statistics_belong_to_a_state():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    before = {name: tensor.clone() for name, tensor in trained_tensors(model).items()}
    model(torch.randn(8, 3, generator=torch.Generator().manual_seed(0)) + 2)
    trained = TrainedState()
    trained.take_from(model)
    moved_mean = model[1].running_mean.clone()
    put(model, before)
    assert torch.equal(model[1].running_mean, torch.zeros(4))
    trained.load_into(model)
    assert torch.equal(model[1].running_mean, moved_mean)
    assert moved_mean.any()


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_deployed_state_is_the_chosen_one_and_its_features_are_kept_only_while_they_are_true(share, monkeypatch):
    learner = learner_before_task_two()
    old_test = learner.feature_cache["test", 0][0]
    prefer(monkeypatch, share)
    learner.learn_task(1, Monitor())
    assert learner.diagnostics()["share"] == share
    read = evaluation.extract_pass(learner, "test", tasks=0)[0]
    assert torch.equal(read, old_test) == (share == 0.0)
    assert (("test", 0) in learner.feature_cache) == (share == 0.0)
    learner.evaluate(1)
    assert torch.equal(learner.feature_cache["test", 0][0], read)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_first_task_too_may_keep_the_pre_trained_state_and_trains_on_from_its_own(share, monkeypatch):
    prefer(monkeypatch, share)
    learner = synthetic_learner("slca_best", **OPTIONS)
    before = evaluation.extract_pass(learner, "test", tasks=0)[0]
    learner.learn_task(0, Monitor())
    assert torch.equal(evaluation.extract_pass(learner, "test", tasks=0)[0], before) == (share == 0.0)
    trained = {name: tensor.clone() for name, tensor in learner.trained.tensors.items()}
    assert any(tensor.any() for name, tensor in trained.items() if name.endswith("lora_B"))
    learner.begin_task(1)
    now = trained_tensors(learner.net.backbone.model)
    assert all(torch.equal(now[name], tensor) for name, tensor in trained.items())


def test_a_first_session_is_not_compared():
    learner = synthetic_learner("slca", **{key: value for key, value in OPTIONS.items() if key != "views"}, move="auto",
                                first_session="adapter", readout="rgda")
    learner.learn_task(0, Monitor())
    assert "share" not in learner.diagnostics() and not learner.trained.tensors


GAUSSIAN_METHODS = [name for name in LEARNERS if issubclass(learner_class(name), GaussianLearner)]


@pytest.mark.parametrize("name", GAUSSIAN_METHODS)
@pytest.mark.parametrize("move", ["average", "auto"])
def test_every_method_with_gaussians_deploys_another_state_or_says_why_not(name, move):
    if learner_class(name).grows:
        with pytest.raises(UserError, match=rf"move: got '{move}', allowed: 'trained' for {name}, whose tasks each add parts"):
            synthetic_learner(name, move=move, val_fraction=0.2)
        return
    learner = synthetic_learner(name, move=move, val_fraction=0.2, epochs=1)
    names = set(dict(learner.net.backbone.model.named_parameters()))
    learn(learner, [0, 1])
    assert "share" in learner.diagnostics() and set(dict(learner.net.backbone.model.named_parameters())) == names


def test_the_new_classes_statistics_are_those_of_the_deployed_state(monkeypatch):
    learner = learner_before_task_two()
    prefer(monkeypatch, 0.3)
    learner.learn_task(1, Monitor())
    read = [evaluation.extract_pass(learner, split, tasks=1) for split in ("train", "val")]
    features, labels = (torch.cat(parts) for parts in zip(*read, strict=True))
    for label in learner.stream.classes_of(1):
        torch.testing.assert_close(learner.gaussians[label].mean, features[labels == label].mean(dim=0), atol=1e-5, rtol=1e-5)


def test_the_operator_of_the_comparison_is_the_one_that_the_deployed_state_shows(monkeypatch):
    learner = learner_before_task_two(lr=0.2)
    prefer(monkeypatch, 1.0)
    used = []
    follow = SLCABest.follow_backbone
    monkeypatch.setattr(SLCABest, "follow_backbone", lambda self, task, monitor, operator: (
        used.extend([operator, self.drift_operators(task)[0]]), follow(self, task, monitor, operator)))
    learner.learn_task(1, Monitor())
    assert torch.equal(*used)
    assert not torch.equal(used[0], torch.eye(len(used[0]), dtype=used[0].dtype))


def test_each_image_goes_once_through_the_backbone_before_the_task_however_many_shares_are_compared(monkeypatch):
    learner, passes = learner_before_task_two(drift_anchors=False), []
    best = SLCABest.best_candidate

    def counted(self, *args):
        forward = self.backbone_before.forward
        monkeypatch.setattr(self.backbone_before, "forward", lambda images: (passes.append(len(images)), forward(images))[1])
        return best(self, *args)

    prefer(monkeypatch, 1.0)
    monkeypatch.setattr(SLCABest, "best_candidate", counted)
    learner.learn_task(1, Monitor())
    assert sum(passes) == learner.data.count("train", 1)
    assert len(moving_backbone.CANDIDATES) > 1


@pytest.mark.parametrize(("expected", "compared"), [(100.0, 1), (97.0, 1), (60.0, len(moving_backbone.CANDIDATES))])
def test_other_shares_are_looked_at_only_where_one_of_them_could_be_taken(expected, compared, monkeypatch):
    learner, seen, judge = learner_before_task_two(), [], SLCABest.expected_accuracy
    monkeypatch.setattr(SLCABest, "expected_accuracy", lambda self, task, candidate, held_out_before=None: (
        seen.append(candidate.share), judge(self, task, candidate, held_out_before), expected)[-1])
    learner.learn_task(1, Monitor())
    assert seen == list(moving_backbone.CANDIDATES[:compared])
    assert learner.diagnostics()["share"] == 0.0
