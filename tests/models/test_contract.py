"""What every method keeps to (docs/add_a_method.md); with `--plugin FILE` the file's methods instead of the project's."""

import pytest
import torch

import trainer
from models import learner_class
from models.tools.dry_run import describe_run
from tests.run_files import assert_same_run, only_run, tiny_config
from tests.support import learn, make_config, synthetic_learner, that_it_has
from tests.utils.run.test_resume import run_stopping_at_every_checkpoint
from trainer import train
from utils.config import Config
from utils.methods import catalogue
from utils.run.monitor import Monitor

SYNTHETIC = {"name": "tiny", "layout": "synthetic", "num_classes": 5, "image_size": 16, "train_per_class": 12, "test_per_class": 4,
             "train_transform": "none"}


@pytest.fixture
def no_pictures(monkeypatch):
    """Pictures take most of a tiny run's time."""
    monkeypatch.setattr(trainer, "write_report", lambda result, folder: None)


def test_a_run_goes_from_config_to_results(method, tmp_path):
    config = make_config(dataset=SYNTHETIC, batch_size=8, epochs=2,
                         **that_it_has(method, {"model_name": method, "ca_epochs": 1, "ca_samples": 16, "memory_size": 20}))
    result = train(config, tmp_path)
    seed = result.seeds[0]
    tasks = len(seed.task_sizes)
    assert sum(seed.task_sizes) == 5
    assert all(0 <= accuracy <= 100 for accuracy in seed.top1_curve)
    assert [len(row) for row in seed.accuracy_matrix] == [tasks] * tasks
    run = next((tmp_path / method).iterdir())
    for name in ("results.json", "results.csv", "report.html", "curve.png", "matrix.png",
                 f"seed{seed.seed}/log.txt", f"seed{seed.seed}/metrics.jsonl"):
        assert (run / name).stat().st_size > 0, name


def test_a_run_stopped_at_every_checkpoint_ends_like_an_uninterrupted_one(method, tmp_path, monkeypatch, no_pictures):
    config = tiny_config(model_name=method, epochs=2)
    train(config, tmp_path / "whole", name="run")
    stops = run_stopping_at_every_checkpoint(config, tmp_path / "stopped", monkeypatch)
    assert stops >= 2
    assert_same_run(only_run(tmp_path / "whole" / "run"), only_run(tmp_path / "stopped" / "run"))


def test_a_dry_run_describes_it(method):
    assert f"({method})" in describe_run(tiny_config(model_name=method))


def test_whatever_moved_is_saved_and_a_loaded_learner_scores_the_same(method):
    saved, start = synthetic_learner(method), synthetic_learner(method)
    learn(saved, range(min(2, saved.stream.num_tasks)))
    state, before = saved.network_state(), start.net.state_dict()
    moved = [name for name, tensor in saved.net.state_dict().items() if name not in before or not torch.equal(tensor, before[name])]
    assert set(moved) <= set(state)
    loaded = synthetic_learner(method)
    loaded.load_network_state({name: tensor.clone() for name, tensor in state.items()}, saved.task)
    loaded.load_extra_state({name: tensor.clone() for name, tensor in saved.extra_state().items()})
    images, _ = next(iter(saved.data.batches("test", 0, batch_size=4, augment=False)))
    for learner in (saved, loaded):
        learner.net.eval()
    with torch.inference_mode():
        assert torch.equal(saved.scores(saved.features(images)), loaded.scores(loaded.features(images)))


def test_begin_task_is_deterministic(method):
    networks = []
    for _ in range(2):
        learner = synthetic_learner(method)
        learner.learn_task(0, Monitor())
        if learner.stream.num_tasks > 1:
            learner.begin_task(1)
        networks.append(learner.net.state_dict())
    assert all(torch.equal(tensor, networks[1][name]) for name, tensor in networks[0].items())


def test_the_settings_read_from_the_source_are_those_of_the_class(method):
    fields = learner_class(method).Settings.model_fields
    assert set(catalogue().methods[method].keys) - set(Config.model_fields) == set(fields) - set(Config.model_fields)
    assert all(field.description for field in fields.values())
