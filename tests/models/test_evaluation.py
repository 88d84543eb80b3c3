"""models/evaluation.py: accuracies where images are missing, and what many small tasks cost."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import trainer
from models import evaluation
from models.tools.predict import load_learner
from tests.run_files import only_run, tiny_config
from tests.support import SMALL, learn, synthetic_learner, that_it_has
from trainer import train
from utils.data.registry import load_dataset
from utils.formulas.diagnosis import calibration_error


def test_small_tasks_share_batches_and_give_the_features_that_each_gives_alone(monkeypatch):
    learner = synthetic_learner("ncm", init_cls=1, increment=1)
    learn(learner, range(6))
    alone = [evaluation.extract_pass(learner, "test", tasks=task) for task in range(6)]
    learner.feature_cache.clear()
    passes = []
    real = evaluation.extract_pass
    monkeypatch.setattr(evaluation, "extract_pass", lambda *args, **kwargs: passes.append(kwargs) or real(*args, **kwargs))
    features, labels = evaluation.extract_tasks(learner, "test", range(6))
    assert len(passes) == 2  # two images a class, batches of 8
    torch.testing.assert_close(features, torch.cat([f for f, _ in alone]))
    assert torch.equal(labels, torch.cat([y for _, y in alone]))


def test_scores_are_kept_of_a_part_of_the_images_at_a_time_and_the_figures_stay(monkeypatch):
    learner = synthetic_learner("finetune", epochs=1)
    learn(learner, [0, 1, 2])
    expected, real, rows = learner.evaluate(2), learner.scores, []
    monkeypatch.setattr(evaluation, "SCORED_AT_ONCE", 5)
    monkeypatch.setattr(learner, "scores", lambda features: rows.append(len(features)) or real(features))
    assert learner.evaluate(2) == expected and rows == [5, 5, 2]


@pytest.mark.parametrize("method", ["lae", "ease", "tuna", "mos"])
def test_features_of_more_passes_take_the_place_of_the_old_ones_where_nothing_trains(method):
    settings = {**SMALL[method], "lae_blocks": 1, "freeze_blocks": 2}
    learner = synthetic_learner(method, **that_it_has(method, settings), epochs=1)
    for task in range(2):
        learn(learner, [task])
        evaluation.evaluate(learner, task)
    assert not learner.backbone_trains
    assert {features.shape[1] for features, _ in learner.feature_cache.values()} == {learner.feature_dim}


def test_many_heads_classify_in_one_product_as_one_by_one():
    learner = synthetic_learner("finetune")
    for t in range(40):
        learner.net.add_head(3)
        learner.net.head_scales[-1] = 1 + t / 10
    features = torch.randn(5, learner.net.backbone.dim)
    one_by_one = learner.net.classify(features)
    with torch.no_grad():
        torch.testing.assert_close(learner.net.classify(features), one_by_one)


@pytest.mark.parametrize("missing", [[0, 1], [2, 3]])
def test_tasks_without_a_test_image_have_null_accuracies_and_the_run_ends(missing, tmp_path):
    rng = np.random.default_rng(0)
    y_train, y_test = np.repeat(np.arange(4), 8), np.array([c for c in range(4) if c not in missing] * 3)
    np.savez(tmp_path / "mine.npz", x_train=rng.integers(0, 255, (32, 16, 16, 3), dtype=np.uint8), y_train=y_train,
             x_test=rng.integers(0, 255, (len(y_test), 16, 16, 3), dtype=np.uint8), y_test=y_test.astype(np.int64))
    dataset = {"name": "mine", "layout": "npz", "root": str(tmp_path / "mine.npz")}
    train(tiny_config(model_name="ncm", epochs=1, shuffle=False, dataset=dataset), tmp_path / "out", name="run")
    assert (only_run(tmp_path / "out" / "run") / "report.html").is_file()
    seed = json.loads((only_run(tmp_path / "out" / "run") / "results.json").read_text())["seeds"][0]
    gone = [set(task) <= set(missing) for task in ([0, 1], [2, 3])]
    assert [accuracy is None for accuracy in seed["top1_curve"]] == [gone[0], all(gone)]
    assert [accuracy is None for accuracy in seed["accuracy_matrix"][1]] == gone


def test_what_the_reader_passes_over_is_told_once_in_terminal_log_and_report(tmp_path, capfd):
    for split, count in (("train", 4), ("val", 2)):
        for name in "ab":
            (tmp_path / "d" / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = np.random.default_rng([ord(name), i, count]).integers(0, 255, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "d" / split / name / f"{i}.png")
    (tmp_path / "d/train/a/lost.heic").write_bytes(b"x")
    dataset = {"name": "mine", "root": str(tmp_path / "d"), "image_size": 16, "train_transform": "none"}
    train(tiny_config(model_name="ncm", dataset=dataset, init_cls=2, increment=0), tmp_path / "out", name="run")
    folder = only_run(tmp_path / "out" / "run")
    told = capfd.readouterr()
    for place in (told.out + told.err, next(folder.glob("seed*/log.txt")).read_text(), (folder / "report.html").read_text()):
        assert place.count("lost.heic") == 1


def test_with_held_out_images_every_method_has_a_temperature_which_a_loaded_run_has_too(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "write_report", lambda result, folder: None)
    result = train(tiny_config(model_name="ncm", val_fraction=0.25), tmp_path, name="run")
    loaded = load_learner(only_run(tmp_path / "run"))
    learner = loaded.learner
    assert learner.temperature != 1, "cosines are far from logits"
    _, test, _ = load_dataset(tiny_config().dataset, "data")
    features = loaded._features(loaded.inputs(test.images))
    with torch.inference_mode():
        scores = learner.scores(features)
    correct = [learner.stream.class_order[label] for label in scores.argmax(dim=1)] == test.labels
    for curve, temperature in ((result.seeds[0].calibration_curve, learner.temperature), (result.seeds[0].uncalibrated_curve, 1.0)):
        confidences = (scores / temperature).softmax(dim=1).amax(dim=1).numpy().astype(np.float64)
        assert curve[-1] == pytest.approx(calibration_error(confidences, correct), abs=1e-3)
    assert loaded.predict(test.images, 1).probabilities[:, 0].numpy() == pytest.approx((scores / learner.temperature).softmax(1).amax(1))
