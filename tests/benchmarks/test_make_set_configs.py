"""exps/sets/ is what benchmarks/make_set_configs.py writes, and every file fits its set."""

import importlib.util
import json
import sys
from pathlib import Path

from models import resolve_config
from utils.config import parse_config
from utils.data.data_manager import DataManager
from utils.data.registry import REGISTRY, dataset_info

ROOT = Path(__file__).parents[2]


def made():
    spec = importlib.util.spec_from_file_location("make_set_configs", ROOT / "benchmarks/make_set_configs.py")
    module = sys.modules["make_set_configs"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_files_are_those_that_the_script_writes():
    files = {path.stem: json.loads(path.read_text()) for path in (ROOT / "exps/sets").glob("*.json")}
    assert files == made().configs(), "run python benchmarks/make_set_configs.py"


def test_every_file_resolves_says_whose_its_settings_are_and_learns_all_classes_of_its_set():
    learned: dict[str, set[str]] = {}
    for name, values in made().configs().items():
        config = resolve_config(parse_config(values, source=name))
        stream, info = DataManager.plan(config, 1993), dataset_info(config.dataset)
        assert stream.num_classes == info.num_classes * max(1, len(info.domains)) and stream.num_tasks > 1, name
        assert ("release for" in config.notes or "own" in config.notes or "exps/" in config.notes) and "Stream: " in config.notes, name
        learned.setdefault(config.dataset, set()).add(name)
    papers = {"cifar100_224", "imagenet-r", "cub200_224", "cars196_224", "domainnet"}
    in_files = {name for name, entry in REGISTRY.items() if entry.info.folder} - {"cifar10", "cifar10_224", "cifar100", "fashion_mnist"}
    assert set(learned) == in_files and all(len(found) >= 3 for dataset, found in learned.items() if dataset not in papers)


def test_the_small_task_of_cars_comes_last_or_first():
    files = made().configs()
    sizes = [DataManager.plan(resolve_config(parse_config(files[name])), 1993).task_sizes
             for name in ("slca_best_cars", "slca_cars_small_first")]
    assert sizes == [[20] * 9 + [16], [16] + [20] * 9]
