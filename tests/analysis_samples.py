"""A made-up analysis with the shape of a real one, for the tests of what shows it."""

from __future__ import annotations

from typing import Any

from utils.report.analysis import Analysis, Example, HeadBias, WorstClass

PIXEL = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="


def make_analysis(**facts: Any) -> Analysis:
    """Four classes in two tasks, before and after."""
    heads = {which: HeadBias([1.0, 2.0], [0.5, 0.6], [40.0, 60.0]) for which in ("before", "after")}
    points = [(0.0, 1.0), (1.0, 0.0), (2.0, 1.0), (0.5, 0.5)]
    worst = [WorstClass("a", 10.0, [("b", 90.0)], [Example(PIXEL, "b")], [("b", 0.4), ("a", 0.9)])]
    usual = {
        "run": "r", "title": "SLCA", "seed": 1, "note": "", "states": ["pre-trained", "task 2"], "tasks": [None, 2],
        "class_names": list("abcd"), "task_of_class": [1, 1, 2, 2], "probe_all": [70.0, 71.0], "nearest_mean_all": [60.0, 61.0],
        "probe_seen": [None, 71.0], "classifier_seen": [None, 65.0], "blocks": ["block 1", "features"], "cka": [[1.0, 1.0], [0.9, 0.8]],
        "mean_cosine": [[None] * 4, [0.9, 0.9, 1.0, 1.0]], "frechet": [[None] * 4, [0.5, 0.7, 0.0, 0.0]], "heads": heads, "worst": worst,
        "map": {"pre-trained": points, "task 2": points}, "map_tasks": [1, 1, 2, 2], "map_classes": [0, 1, 2, 3]}
    return Analysis(**{**usual, **facts})
