"""What `python main.py analyze RUN` found, as `analysis.json` holds it. Percentages in [0, 100]; None where nothing is defined."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from utils.errors import UserError
from utils.files import bytes_of_file, write_atomic

ANALYSIS = "analysis.json"


@dataclass
class HeadBias:
    """One classifier's leaning between tasks, measured on the test images of all classes seen; H heads."""

    mean_logit: list[float]         # (H,)
    weight_norm: list[float]        # (H,) mean length of the classes' weights
    share: list[float]              # (H,) of the predictions; equal tasks deserve equal shares


@dataclass
class Example:
    """A test image that was taken for another class."""

    image: Annotated[str, Field(pattern=r"^data:image/(png|jpeg);base64,[A-Za-z0-9+/=]*$")]  # a small picture
    taken_for: str


@dataclass
class WorstClass:
    """A class that is lost, and the classes that take its images."""

    name: str
    accuracy: float
    taken_for: list[tuple[str, float]]  # class, percent of the images; most first
    examples: list[Example] = field(default_factory=list)
    nearest: list[tuple[str, float]] = field(default_factory=list)  # class whose remembered Gaussian lies near this class's own now, and
    #   the Frechet distance in units of its spread; nearest first


@dataclass
class Analysis:
    """Measured on S states of one seed's backbone: pre-trained, then after each task that has a checkpoint; K classes, B blocks."""

    run: str
    title: str
    seed: int
    note: str                                       # which checkpoints are missing; "" when all are there
    states: list[str]                               # (S,) "pre-trained", "task 1", ...
    tasks: list[int | None]                         # (S,) from 1; None for the pre-trained state
    class_names: list[str]                          # (K,) in the order of learning
    task_of_class: list[int]                        # (K,) from 1
    probe_all: list[float]                          # (S,) linear probe on all K classes
    nearest_mean_all: list[float]                   # (S,)
    probe_seen: list[float | None]                  # (S,) linear probe on the classes seen by then
    classifier_seen: list[float | None]             # (S,) the run's own classifier on the same images
    blocks: list[str]                               # (B,)
    cka: list[list[float]]                          # (S, B) with the pre-trained state
    mean_cosine: list[list[float | None]]           # (S, K) of a class's remembered mean with its mean now; None before it was learned
    heads: dict[str, HeadBias]                      # "before" and "after" alignment, of the last state; empty without heads
    worst: list[WorstClass]
    map: dict[str, list[tuple[float, float]]]       # state -> (N, 2) test features in the plane
    map_tasks: list[int]                            # (N,) task of each point, from 1
    map_classes: list[int] = field(default_factory=list)  # (N,) class of each point, from 0; not in older files, as what follows
    map_method: str = "PCA"                         # or "UMAP"
    frechet: list[list[float | None]] = field(default_factory=list)  # (S, K) distance of a class's remembered Gaussian to its own now,
    #   in units of its spread now
    stored: bool = True                             # whether the method stores Gaussians; else those of when each class was learned count

    @property
    def kept(self) -> str:
        """What the Gaussians are that classes are known by, in a word."""
        return "stored" if self.stored else "remembered"

    @classmethod
    def empty(cls, title: str, seed: int, class_names: Sequence[str], task_of_class: Sequence[int], *, note: str,
              map_classes: Sequence[int], map_method: str) -> Analysis:
        """Before the first state was measured."""
        return cls(run="", title=title, seed=seed, note=note, states=[], tasks=[], class_names=list(class_names),
                   task_of_class=list(task_of_class), probe_all=[], nearest_mean_all=[], probe_seen=[], classifier_seen=[], blocks=[],
                   cka=[], mean_cosine=[], heads={}, worst=[], map={}, map_tasks=[task_of_class[label] for label in map_classes],
                   map_classes=list(map_classes), map_method=map_method)


def write_analysis(analysis: Analysis, folder: Path) -> None:
    """Write `analysis.json` into `folder`."""
    write_atomic(folder / ANALYSIS, TypeAdapter(Analysis).dump_json(analysis, indent=1) + b"\n")


def read_analysis(folder: Path) -> Analysis:
    """What `write_analysis` wrote into `folder`. Raises UserError."""
    path = folder / ANALYSIS
    try:
        found = TypeAdapter(Analysis).validate_json(bytes_of_file(path))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        problem = f"{'.'.join(map(str, first['loc'])) or 'the file'}: {first['msg']}"
    except RecursionError:
        problem = "it is nested too deeply"
    else:
        problem = _shape_problem(found)
    if problem:
        raise UserError(f"{path} is no analysis: {problem}. Make it again with python main.py analyze {folder}")
    return found


def _shape_problem(found: Analysis) -> str:
    """Which list has not one entry per state, class, block, head or point; "" where all have."""
    if not (found.states and found.class_names and found.map):
        return "there are no states, no class_names or no map in it"
    states, classes, points = len(found.states), len(found.class_names), len(found.map_tasks)
    lists = {name: (getattr(found, name), states) for name in ("tasks", "probe_all", "nearest_mean_all", "probe_seen", "classifier_seen")}
    tables = {"cka": (found.cka, len(found.blocks)), "mean_cosine": (found.mean_cosine, classes), "frechet": (found.frechet, classes)}
    for name, (table, width) in tables.items():
        lists |= {name: (table, states), **{f"{name}.{n}": (row, width) for n, row in enumerate(table)}}
    lists |= {"task_of_class": (found.task_of_class, classes), "map_classes": (found.map_classes, points),
              **{f"map.{state}": (places, points) for state, places in found.map.items()}}
    for which, bias in found.heads.items():
        lists |= {f"heads.{which}.{name}": (values, len(bias.share)) for name, values in vars(bias).items()}
    newer = {"frechet", "map_classes"}  # older files have none
    wrong = [f"{name}: got {len(row)} entries, not {wanted}" for name, (row, wanted) in lists.items()
             if len(row) != wanted and (row or name not in newer)]
    if any(not 0 <= label < classes for label in found.map_classes):
        wrong.append(f"map_classes: a class is below 0 or above {classes - 1}")
    return wrong[0] if wrong else ""
