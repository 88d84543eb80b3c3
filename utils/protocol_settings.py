"""The settings of the protocols beside plain tasks of new classes: few images, long tails, blurry boundaries (docs/protocols.md)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from utils.strict import Strict


class FewShot(Strict):
    """Few-shot class-incremental learning: all images of the first task's classes, a few of each later one (Tao et al., CVPR 2020)."""

    shots: int = Field(5, ge=1, le=100_000, description="training images of each class after the first task")
    images: str | list[str] | None = Field(None, description="text file, or files, with the images of the classes after the first task, "
        "one a line: a file's path, or the number of a training image (from 0) in the data set's own order; default: drawn by the seed")


class LongTail(Strict):
    """Long-tailed class-incremental learning: n_max * ratio^(-c / (C - 1)) images of class c (Liu et al., ECCV 2022)."""

    ratio: float = Field(100.0, gt=1.0, le=1e6, description="rho, the images of the largest class over those of the smallest")
    order: Literal["ordered", "shuffled"] = Field("ordered",
        description="ordered: a class has fewer images the later it comes; shuffled: the sizes are drawn by the seed")
    most: int | None = Field(None, ge=1, description="n_max, images of the largest class; default: of the data set's largest class")


class Blurry(Strict):
    """Blurry boundaries: some classes come in one task alone, some images of the others in any (Moon et al., ICCV 2023)."""

    tasks: int = Field(5, ge=2, le=100_000, description="number of tasks")
    disjoint: int = Field(50, ge=1, le=100, description="N, percent of the classes that come in one task alone")
    blurry: int = Field(10, ge=0, le=100, description="M, percent of the other classes' images that are spread over all tasks")
    stochastic: bool = Field(True, description="draw how many classes and spread images each task gets (Si-Blurry); false: equal parts")
    measure_every: int = Field(1000, ge=1, description="training images between two measurements of accuracy, for A_AUC")
