"""Domain-incremental runs, end to end on three synthetic domains."""

import json

import pytest

from tests.support import make_config, that_it_has
from trainer import train

DOMAINS = {"name": "tiny-domains", "layout": "synthetic", "num_classes": 3, "num_domains": 3, "image_size": 16, "train_per_class": 12,
           "test_per_class": 4, "train_transform": "none"}


@pytest.mark.parametrize("method", ["slca", "slca_pp", "finetune", "joint"])
def test_learner_runs_domain_after_domain(method, tmp_path):
    config = make_config(dataset=DOMAINS, scenario="domain", init_cls=None, increment=None, shuffle=False, batch_size=8,
                         **that_it_has(method, {"model_name": method, "ca_epochs": 1, "ca_samples": 16}))
    seed = train(config, tmp_path).seeds[0]
    tasks = 1 if method == "joint" else 3  # joint learns all domains as one task
    assert len(seed.top1_curve) == len(seed.all_domains_curve) == tasks
    if tasks > 1:
        assert seed.all_domains_curve[-1] == pytest.approx(seed.top1_curve[-1])  # after the last domain both are over all of them
    assert [sum(a is not None for a in row) for row in seed.accuracy_matrix] == list(range(1, tasks + 1))


def test_prediction_is_the_best_head_of_any_domain_modulo_the_classes(tmp_path):
    config = make_config(dataset=DOMAINS, scenario="domain", init_cls=None, increment=None, shuffle=False, batch_size=8, ca_epochs=1,
                         ca_samples=16, epochs=6, lr=0.1, bcb_lrscale=0.1)
    train(config, tmp_path)
    results = json.loads(next((tmp_path / "slca").glob("*/results.json")).read_text())
    assert results["seeds"][0]["last"] > 60  # chance is a third; a head per domain without the modulo would be near a ninth
