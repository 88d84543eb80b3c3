"""Images of classes still to come, after each task, against scikit-learn on the same features."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from models import evaluation, unknown
from models.unknown import features_to_come, unknown_figures
from tests.support import learn, synthetic_learner
from utils.formulas.unknown import FIGURES

NOTHING = dict.fromkeys(FIGURES)


@pytest.fixture(scope="module")
def slca():
    learner = synthetic_learner("slca", epochs=1, ca_epochs=1, ca_samples=8)
    learn(learner, [0])
    return learner


def test_the_unknown_are_the_test_images_of_all_classes_still_to_come(slca):
    found = unknown_figures(slca, 0)
    features, labels = evaluation.extract_pass(slca, "test", tasks=range(3))
    distances = slca.known_region().distances(features).numpy()
    with torch.inference_mode():
        energies = -slca.net.classify(features).exp().sum(dim=1).log().numpy()
    is_new = (labels >= 2).numpy()
    assert is_new.sum() == 8
    assert found["auroc_distance"] == pytest.approx(100 * roc_auc_score(is_new, distances))
    assert found["auroc_energy"] == pytest.approx(100 * roc_auc_score(is_new, energies))
    assert all(0 <= found[name] <= 100 for name in FIGURES)


def test_while_the_backbone_trains_only_some_of_many_images_are_looked_at_evenly_spread(slca, monkeypatch):
    everything = features_to_come(slca, 0)
    monkeypatch.setattr(unknown, "LEAST_IMAGES", 3)
    some = features_to_come(slca, 0)
    torch.testing.assert_close(some, everything[np.linspace(0, 7, 3).astype(int)])


def test_features_on_a_frozen_backbone_are_extracted_once_in_a_run(monkeypatch):
    learner, extracted = synthetic_learner("slca", bcb_lrscale=0.0, epochs=1, ca_epochs=1, ca_samples=8), []
    real = evaluation.extract_pass
    monkeypatch.setattr(evaluation, "extract_pass", lambda *whose, **which: extracted.append(which) or real(*whose, **which))
    for task in range(3):
        learn(learner, [task])
        learner.evaluate(task)
        assert (unknown_figures(learner, task) == NOTHING) == (task == 2), "after the last task nothing is still to come"
    assert sorted(which["tasks"] for which in extracted) == [0, 0, 1, 1, 2, 2], "training and test images of each task, once"


@pytest.mark.parametrize(("method", "has"), [("finetune", {"auroc_energy", "fpr95_energy"}), ("icarl", set()), ("ncm", set())])
def test_a_method_has_the_scores_that_it_keeps_something_for(method, has):
    learner = synthetic_learner(method, epochs=1)
    learn(learner, [0])
    found = unknown_figures(learner, 0)
    assert {name for name in FIGURES if found[name] is not None} == has


def test_where_no_class_is_new_there_is_nothing_to_measure():
    last = synthetic_learner("slca", init_cls=6, epochs=1)
    learn(last, [0])
    assert unknown_figures(last, 0) == NOTHING
    dataset = {"name": "tiny", "layout": "synthetic", "num_classes": 2, "num_domains": 2, "image_size": 16, "train_per_class": 4,
               "test_per_class": 2, "train_transform": "none"}
    domains = synthetic_learner("slca", dataset=dataset, scenario="domain", epochs=1)
    learn(domains, [0])
    assert unknown_figures(domains, 0) == NOTHING
