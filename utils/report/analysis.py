"""What `python main.py analyze RUN` found, as `analysis.json` holds it. Percentages in [0, 100]; None where nothing is defined."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from utils.files import write_atomic


@dataclass
class HeadBias:
    """One classifier's leaning between tasks, measured on the test images of all classes seen; H heads."""

    mean_logit: list[float]         # (H,)
    weight_norm: list[float]        # (H,) mean length of the classes' weights
    share: list[float]              # (H,) of the predictions; equal tasks deserve equal shares


@dataclass
class WorstClass:
    """A class that is lost, and the classes that take its images."""

    name: str
    accuracy: float
    taken_for: list[tuple[str, float]]  # class, percent of the images; most first


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
    mean_cosine: list[list[float | None]]           # (S, K) of a class's stored mean with its mean now; None before it was learned
    heads: dict[str, HeadBias]                      # "before" and "after" alignment, of the last state; empty without heads
    worst: list[WorstClass]
    map: dict[str, list[tuple[float, float]]]       # state -> (N, 2) principal components of the test features
    map_tasks: list[int]                            # (N,) task of each point, from 1


def write_analysis(analysis: Analysis, folder: Path) -> None:
    """Write `analysis.json` into `folder`."""
    write_atomic(folder / "analysis.json", TypeAdapter(Analysis).dump_json(analysis, indent=1) + b"\n")
