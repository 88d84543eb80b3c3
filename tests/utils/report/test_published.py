"""Paper figures stand beside the paper's experiments alone."""

import json
from pathlib import Path

import pytest

from models.registry import load_experiment
from tests.result_samples import make_result
from utils.report.published import published
from utils.report.tables import results_table

EXPS = Path(__file__).parents[3] / "exps"
TEN = [[10] * 10] * 3


def resolved(file, **changed):
    """The config that a run saves, and its method."""
    config = load_experiment(EXPS / f"{file}.json", changed)
    return json.loads(config.model_dump_json()), file.split("_cifar")[0].split("_imgnetr")[0].split("_cub")[0].split("_cars")[0]


@pytest.mark.parametrize(("file", "last", "average"), [
    ("slca_cifar", 91.53, 94.09), ("slca_imgnetr", 77.00, 81.17), ("slca_cub", 84.71, 90.94), ("slca_cars", 67.73, 76.93),
    ("slcapp_cifar_lora", 91.46, 94.20), ("slcapp_cars_lora", 73.97, 79.49), ("finetune_cifar", 41.77, None), ("joint_cifar", 93.22, None),
    ("l2p_cifar", 82.76, 88.48), ("dualprompt_cifar", 85.56, 90.33), ("coda_prompt_cifar", 87.00, 90.68), ("ncm_cifar", 83.4, None),
])
def test_each_file_that_reproduces_a_row_gets_its_figures(file, last, average):
    figures = published(*resolved(file)).figures
    assert figures["last"]["mean"] == last
    assert figures.get("average_incremental", {"mean": None})["mean"] == average


def test_ranpac_without_phase_1_gets_its_own_row_and_not_the_full_methods():
    reference = published(*resolved("ranpac_cifar"), TEN)
    assert reference.figures == {"last": {"mean": 89.0, "std": None}} and "2307.02251" in reference.words and "e5e21b7" in reference.words


@pytest.mark.parametrize("changed", [
    {"readout": "rgda"}, {"readout": "rgda", "features": "cls+mean"}, {"bcb_lrscale": 0.0}, {"bcb_lrscale": 0.0, "readout": "rgda"},
    {"drift": "linear"}, {"freeze_blocks": 6}, {"lr": 0.1}, {"epochs": 1}, {"milestones": []}, {"ca_samples": 16}, {"ca_cov": "diag"},
    {"kd": 1.0}, {"val_fraction": 0.1}, {"normalize": "unit"}, {"test_transform": "resize224"}, {"layer_decay": 0.7},
    {"task_sizes": [50, 50]}, {"init_cls": 50}, {"task_sizes": [10] * 9 + [5, 5]}, {"all_at_once": True},
    {"tasks": [list(range(50)), list(range(50, 100))]}, {"batch_size": 32}, {"weight_decay": 0.0}, {"shuffle": False},
])
def test_a_run_with_another_setting_or_stream_gets_no_figure(changed):
    assert published(*resolved("slca_cifar", **changed)) is None


@pytest.mark.parametrize("changed", [
    {"device": "cpu"}, {"seed": [1, 2]}, {"precision": "bf16-mixed"}, {"num_workers": 4}, {"notes": "mine"}, {"accumulate": 2},
    {"task_sizes": [10] * 10, "init_cls": 50}, {"tasks": [list(range(10 * t, 10 * t + 10)) for t in range(10)]}, {"ca_eval": True},
])
def test_the_machine_the_seeds_and_how_the_same_stream_is_written_play_no_part(changed):
    assert published(*resolved("slca_cifar", **changed)).row == "SLCA"


@pytest.mark.parametrize("streams", [[[50, 50]], [[10] * 5], [[10] * 10, [10] * 9], [[20] * 5], []])
def test_the_tasks_as_they_were_learned_decide(streams):
    expected = None if streams else "SLCA"  # without a seed there is nothing to contradict the config's plan
    reference = published(*resolved("slca_cifar"), streams or None)
    assert (reference.row if reference else None) == expected


def test_the_table_of_a_run_over_two_tasks_of_fifty_has_no_column_of_the_paper():
    config = {"dataset": "cifar100_224", "convnet_type": "vit-b-p16"}
    assert "paper" in results_table(make_result(task_sizes=(10,) * 10, **config))
    assert "paper" not in results_table(make_result(task_sizes=(50, 50), **{**config}))


def test_on_a_data_set_without_a_file_what_is_tuned_per_data_set_plays_no_part():
    stream = {"dataset": "imagenet-r", "init_cls": 20, "increment": 20}
    config, method = resolved("l2p_cifar", **stream, epochs=10, batch_size=32, prompt_length=5)
    assert published(config, method).figures["last"]["mean"] == 66.49
    assert published({**config, "prompt_init": "pilot"}, method) is None
