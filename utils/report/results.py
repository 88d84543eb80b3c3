"""What a run leaves behind as numbers: `results.json`, `results.csv` and `results_tidy.csv`.

results.json is the one that counts: a seed that is in it is not computed again. It is written after the tables that are made
from it, and what is shown of it (page, pictures) is made anew when a run is resumed.

Percentages are in [0, 100] and unrounded; only tables and pictures round. Tasks are counted from 1 wherever a
person reads them (tables, pictures, csv); lists in `results.json` are simply in the order of the tasks.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from utils.errors import UserError
from utils.files import bytes_of_file, encodable, write_atomic
from utils.formulas import metrics
from utils.report.describe import backbone_words, protocol_words
from utils.report.result_rows import tidy_rows, wide_rows
from utils.terminal import visible

Statistic = dict[str, "float | None"]       # {"mean": ..., "std": ...}, std with ddof 1 and None for one seed

HEADLINES = {                               # key of the summary and attribute of SeedResult -> words for people
    "last": "Last accuracy",
    "average_incremental": "Average incremental accuracy",
    "forgetting": "Forgetting",
    "backward_transfer": "Backward transfer",
    "last_top5": "Last top-5 accuracy",
    "last_task_il": "Last task-incremental accuracy",
    "last_all_domains": "Last accuracy on all domains",
    "last_validation": "Last validation accuracy",
    "last_harmonic": "Last harmonic accuracy",
    "average_harmonic": "Average harmonic accuracy",
    "anytime_accuracy": "A_AUC, accuracy at any time",
}
# Shown only for runs that have them.
WHERE_DEFINED = ("last_all_domains", "last_validation", "last_harmonic", "average_harmonic", "anytime_accuracy")
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "＝", "＋", "－", "＠")   # full-width forms too (OWASP, CSV injection)
OPTIONAL_CURVES = ("validation_curve", "all_domains_curve", "memory_curve", "class_accuracies", "old_as_new_curve", "new_as_old_curve",
                   "calibration_curve", "uncalibrated_curve", "unknown_curve", "harmonic_curve", "task_seconds",
                   "task_images")     # empty in the files of older versions
ENTRIES = {"timeline": {"task": int, "stage": str, "begin": float, "end": float},
           "anytime": {"task": int, "images": int, "accuracy": float}}  # what each entry of these lists holds
LARGEST = 1e15                              # number in them: seconds, images, percent
NOT_PUBLISHED = "not a published split"     # in the name of a split (utils/data/cards.py)
NEEDS_TWO_TASKS = ("average_incremental", "forgetting", "backward_transfer")


@dataclass
class SeedResult:
    """One seed's figures; percentages, None where not defined. T tasks, K classes."""

    seed: int
    class_order: list[int]                          # (K,) the data set's own labels in the order of learning
    task_sizes: list[int]                           # (T,) classes per task
    top1_curve: list[float]                         # (T,) over all classes seen, after each task
    top5_curve: list[float]                         # (T,)
    accuracy_matrix: list[list[float | None]]       # (T, T) R[t][i], None above the diagonal
    task_il_curve: list[float]                      # (T,) the image's own task is known (logits masked to it)
    last: float | None
    average_incremental: float | None
    forgetting: float | None
    backward_transfer: float | None
    grouped: list[dict[str, float | None]]          # (T,) {"00-09": ..., ..., "old": ..., "new": ...}
    validation_curve: list[float | None] = field(default_factory=list)  # (T,) with val_fraction: on held-out training images
    all_domains_curve: list[float | None] = field(default_factory=list)  # (T,) domain-incremental: unseen domains too
    stage_seconds: dict[str, float] = field(default_factory=dict)   # "train", "statistics", "alignment", "evaluation"
    peak_memory_mb: float | None = None
    parameters: dict[str, int] = field(default_factory=dict)        # "all", "trained_backbone", "trained_heads"
    diagnostics: list[dict[str, float]] = field(default_factory=list)  # (T,) what the method measured of itself, see its docs
    memory_curve: list[dict[str, int]] = field(default_factory=list)  # (T,) bytes kept after each task: "images", "features", ..
    class_accuracies: list[list[float | None]] = field(default_factory=list)  # (T,) rows: classes seen, in the order of learning
    confusion: dict[str, list[list[int]]] = field(default_factory=dict)  # after the last task, (T, T) images by own task (row) and by
    #   the predicted class's (column): "after" alignment, and "before" it where a method aligns
    old_as_new_curve: list[float | None] = field(default_factory=list)  # (T,) of earlier tasks' images, taken for new classes
    new_as_old_curve: list[float | None] = field(default_factory=list)  # (T,) of the new task's images, taken for old classes
    calibration_curve: list[float | None] = field(default_factory=list)  # (T,) expected calibration error of the probabilities
    uncalibrated_curve: list[float | None] = field(default_factory=list)  # (T,) the same without the temperature, where one was fitted
    unknown_curve: list[dict[str, float | None]] = field(default_factory=list)  # (T,) images of classes still to come against those of
    #   the classes seen: "auroc_distance", "fpr95_distance", "auroc_energy", "fpr95_energy"
    harmonic_curve: list[float | None] = field(default_factory=list)  # (T,) few-shot: of the first task's classes and all later ones
    anytime: list[dict[str, Any]] = field(default_factory=list)  # blurry: "task" from 1, training "images" seen, "accuracy" then
    task_seconds: list[dict[str, float]] = field(default_factory=list)  # (T,) by stage
    task_images: list[int] = field(default_factory=list)    # (T,) that training went through, over its epochs
    timeline: list[dict[str, Any]] = field(default_factory=list)  # "task" from 1, "stage", "begin", "end" in seconds
    torch_seed: int | None = None                   # only where runs of several are compared as one (compare --pool)

    @property
    def last_top5(self) -> float | None:
        return self.top5_curve[-1] if self.top5_curve else None

    @property
    def last_task_il(self) -> float | None:
        return self.task_il_curve[-1] if self.task_il_curve else None

    @property
    def last_all_domains(self) -> float | None:
        return self.all_domains_curve[-1] if self.all_domains_curve else None

    @property
    def last_validation(self) -> float | None:
        return self.validation_curve[-1] if self.validation_curve else None

    @property
    def last_harmonic(self) -> float | None:
        return self.harmonic_curve[-1] if self.harmonic_curve else None

    @property
    def average_harmonic(self) -> float | None:
        """Mean over the tasks after the first."""
        return metrics.average_incremental(self.harmonic_curve[1:])

    @property
    def anytime_accuracy(self) -> float | None:
        return metrics.accuracy_at_any_time([point["accuracy"] for point in self.anytime])

    @property
    def memory_bytes(self) -> dict[str, int]:
        """Bytes kept after the last task, by kind."""
        return self.memory_curve[-1] if self.memory_curve else {}

    @property
    def images_per_second(self) -> list[float | None]:
        """(T,) of training; None where nothing trained."""
        return [images / seconds["train"] if images and seconds.get("train") else None
                for images, seconds in zip(self.task_images, self.task_seconds, strict=True)]

    @property
    def classes_seen(self) -> list[int]:
        """(T,) classes seen after each task."""
        return list(accumulate(self.task_sizes))


@dataclass
class RunResult:
    """One config's figures over its seeds."""

    config: dict[str, Any]
    environment: dict[str, Any]
    seeds: list[SeedResult]
    summary: dict[str, Statistic] = field(default_factory=dict)         # default: computed from the seeds
    method: str = ""                                # the resolved learner's name, "slca"
    title: str = ""                                 # its name for people, "SLCA"
    rehearsal_free: bool = True                     # keeps no old image
    class_names: list[str] = field(default_factory=list)                # (K,) by the data set's own label
    protocol: str = ""                              # in words, where the stream is not plain tasks of new classes

    def __post_init__(self) -> None:
        self.summary = self.summary or summarise(self.seeds)
        self.protocol = self.protocol or protocol_words(self.config)

    @property
    def name(self) -> str:
        return self.title or self.method or str(self.config.get("model_name", "run"))

    @property
    def dataset(self) -> str:
        dataset = self.config.get("dataset", "")
        return str(dataset.get("name", "") if isinstance(dataset, dict) else dataset)

    @property
    def split(self) -> str:
        """Which images trained and which tested, in words: "official, 5,994 / 5,794"; "" where nothing is recorded."""
        images = self.environment.get("images")
        return str(images.get("split", "")) if isinstance(images, dict) else ""

    @property
    def on_published_split(self) -> bool:
        """Whether a published figure may stand beside the run's: not where its images are known to be divided otherwise."""
        return NOT_PUBLISHED not in self.split

    @property
    def dataset_words(self) -> str:
        """"cub200_224 (split: official, 5,994 / 5,794)"."""
        return f"{self.dataset} (split: {self.split})" if self.split else self.dataset

    @property
    def backbone(self) -> str:
        return backbone_words(self.config)

    @property
    def num_tasks(self) -> int:
        return len(self.seeds[0].task_sizes) if self.seeds else 0

    @property
    def num_classes(self) -> int:
        """Classes to tell apart at the end; in a domain-incremental run every task has the same ones."""
        sizes = self.seeds[0].task_sizes if self.seeds else []
        return sizes[0] if sizes and self.config.get("scenario") == "domain" else sum(sizes)

    def shown(self, key: str) -> Statistic:
        """The summary's `key` as tables show it: with one task an "average over tasks" says nothing."""
        if self.num_tasks < 2 and key in NEEDS_TWO_TASKS:
            return {"mean": None, "std": None}
        return self.summary.get(key, {"mean": None, "std": None})


def statistic(values: Iterable[float | None]) -> Statistic:
    """Mean and standard deviation (ddof 1) of the values that are defined; std is None for fewer than two."""
    defined = [value for value in values if value is not None]
    return {
        "mean": float(np.mean(defined)) if defined else None,
        "std": float(np.std(defined, ddof=1)) if len(defined) > 1 else None,
    }


def summarise(seeds: Sequence[SeedResult]) -> dict[str, Statistic]:
    """Mean and standard deviation over the seeds of every headline figure."""
    return {key: statistic(getattr(seed, key) for seed in seeds) for key in HEADLINES}


# Files ---------------------------------------------------------------------------------------------------------


def write_results(result: RunResult, folder: Path | str) -> None:
    """Write `results.csv`, `results_tidy.csv` and then `results.json` into `folder`, each in one atomic step."""
    folder = Path(folder)
    write_tables(result, folder)
    write_atomic(folder / "results.json", TypeAdapter(RunResult).dump_json(_encodable(result), indent=2) + b"\n")


def write_tables(result: RunResult, folder: Path) -> None:
    """Write the CSV files into `folder`."""
    for name, text in _tables(result).items():
        write_atomic(folder / name, text)


def tables_are_current(result: RunResult, folder: Path | str) -> bool:
    """Whether the CSV files in `folder` are those of `result`."""
    try:
        return all(bytes_of_file(Path(folder) / name) == encodable(text).encode() for name, text in _tables(result).items())
    except (OSError, ValueError):
        return False


def _tables(result: RunResult) -> dict[str, str]:
    return {"results.csv": csv_text(wide_rows(result)), "results_tidy.csv": csv_text(tidy_rows(result))}


def _encodable(result: RunResult) -> RunResult:
    """The result with bytes of names that are not UTF-8 written out; JSON has no place for them."""
    def clean(value: Any) -> Any:
        if isinstance(value, str):
            return encodable(value)
        if isinstance(value, dict):
            return {clean(key): clean(inner) for key, inner in value.items()}
        return [clean(inner) for inner in value] if isinstance(value, list) else value

    names = {name: clean(getattr(result, name)) for name in ("config", "environment", "method", "title", "class_names")}
    return replace(result, **names)


def read_results(path: Path | str) -> RunResult:
    """Read a `results.json`.

    Raises:
        UserError: the file is missing, or is not one that `write_results` wrote.
    """
    path = Path(path)
    try:
        result = TypeAdapter(RunResult).validate_json(bytes_of_file(path))
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"cannot read {path}: {reason}. Give a run that has finished at least one seed.") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise _damaged(path, f"{'.'.join(map(str, first['loc'])) or 'the file'}: {first['msg']}") from None
    except RecursionError:
        raise _damaged(path, "it is nested too deeply") from None
    for number, seed in enumerate(result.seeds):
        tasks = len(result.seeds[0].task_sizes)
        other = f"task_sizes: got {len(seed.task_sizes)} tasks, the first seed has {tasks}" if len(seed.task_sizes) != tasks else ""
        problem = other or _length_problem(seed) or _entry_problem(seed)
        if problem:
            raise _damaged(path, f"seeds.{number}.{problem}")
    for key, figure in result.summary.items():
        if not {"mean", "std"} <= figure.keys():
            raise _damaged(path, f"summary.{key}: got {', '.join(figure) or 'nothing'}, allowed: mean and std")
    return result


def _damaged(path: Path, problem: str) -> UserError:
    return UserError(f"{path} is not a run's results.json: {problem}. Run the experiment again.")


def _length_problem(seed: SeedResult) -> str:
    """Which curve does not have one entry per task; "" when all have."""
    tasks = len(seed.task_sizes)
    if not sum(seed.task_sizes) or min(seed.task_sizes) < 0:  # a task whose classes were forgotten has none
        return f"task_sizes: {seed.task_sizes} is no number of classes for each of one or more tasks"
    curves = {"top1_curve": seed.top1_curve, "top5_curve": seed.top5_curve, "task_il_curve": seed.task_il_curve, "grouped": seed.grouped,
              "accuracy_matrix": seed.accuracy_matrix}
    curves |= {f"accuracy_matrix.{t}": row for t, row in enumerate(seed.accuracy_matrix)}
    curves |= {f"confusion.{name}": table for name, table in seed.confusion.items()}
    curves |= {f"confusion.{name}.{t}": row for name, table in seed.confusion.items() for t, row in enumerate(table)}
    curves |= {name: getattr(seed, name) for name in OPTIONAL_CURVES if getattr(seed, name)}
    return next((f"{name}: got {len(curve)} entries for {tasks} tasks" for name, curve in curves.items() if len(curve) != tasks), "")


def _entry_problem(seed: SeedResult) -> str:
    """Which entry of a list is not as it is drawn; "" when all are."""
    for name, kinds in ENTRIES.items():
        for place, entry in enumerate(getattr(seed, name)):
            for key, kind in kinds.items():
                value = entry.get(key)
                if not (isinstance(value, str) if kind is str else isinstance(value, (int, kind)) and abs(value) < LARGEST):
                    return f"{name}.{place}.{key}: got {value!r:.40}, allowed: {'a text' if kind is str else 'a number'}"
    return ""


def csv_text(rows: Sequence[dict[str, Any]]) -> str:
    """Rows with equal keys as comma-separated text with a header; None is an empty cell.

    A spreadsheet runs a text that begins with = + - @ or a tab as a formula; such a text gets a ' in front, which it shows as text.
    Control characters are written out (\\x1b).
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _no_formula(value) for key, value in row.items()} for row in rows)
    return text.getvalue()


def _no_formula(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    # control characters are written out, for whoever prints the file; a bare \r would also end the line for readers
    value = visible(value.replace("\x1b", r"\x1b"))
    return "'" + value if value.lstrip(" \n").startswith(FORMULA_STARTS) else value
