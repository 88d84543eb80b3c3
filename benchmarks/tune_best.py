"""Choose what `slca_best` reads and how, on validation images of three development streams; no test image is looked at.

    python benchmarks/tune_best.py [--streams demo near far] [--fraction 0.2]

The backbone stays frozen here, so that one pass over each stream's training images serves all answers: which tokens are joined, over
how many shifted views, and the discriminant's a and g. A fifth of each class's training images is held out and never fitted. One
setting is chosen for all streams: the best mean of the streams' accuracies. Writes benchmarks/TUNING.md.
"""

from __future__ import annotations

import argparse
from itertools import product

import torch
from common import PROJECT
from methods import STREAMS, settings
from report import table
from torch import Tensor

from models import resolve_config
from models.slca.discriminants import discriminant
from models.slca.gaussians import ClassGaussians
from models.tools.build import make_learner
from utils.config import parse_config
from utils.machine.device import make_fabric

PARTS = {"cls": ["cls"], "cls, mean": ["cls", "mean"], "cls, mean, std": ["cls", "mean", "std"],
         "five: + mean@-2, std@-2": ["cls", "mean", "std", "mean@-2", "std@-2"],
         "all inner blocks": ["cls", "mean", "std", *(f"{kind}@-{block}" for block in (2, 3, 4, 5) for kind in ("mean", "std"))]}
VIEWS = (1, 5, 9)
SHARES = (0.5, 0.75, 0.9, 0.95, 1.0)  # a
IDENTITIES = (1e-4, 1e-3, 1e-2, 0.1)  # g
Answer = tuple[str, int, float, float]  # parts, views, a, g


def features_of(stream: str, views: int, fraction: float) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, slice]]:
    """split -> all parts' features (N, D) and labels (N,) of every class; and the columns of each part."""
    replaced = {"features": PARTS["all inner blocks"], "views": views, "val_fraction": fraction}
    config = resolve_config(parse_config(settings("frozen_rgda", stream, [0]) | replaced))
    learner = make_learner(config, 0, make_fabric(config.device, config.precision))
    found = {}
    for split in ("train", "val"):
        tasks = [learner.extract(split, task) for task in range(learner.stream.num_tasks)]
        found[split] = torch.cat([features for features, _ in tasks]), torch.cat([labels for _, labels in tasks])
    return found, learner.net.backbone.read.slices


def accuracies(stream: str, views: int, fraction: float) -> dict[Answer, float]:
    """Percent of the held-out images right, of every answer with so many views."""
    found, slices = features_of(stream, views, fraction)
    right = {}
    for name, parts in PARTS.items():
        columns = torch.cat([torch.arange(slices[part].start, slices[part].stop) for part in parts])
        (fitted, labels), (held_out, expected) = ((features[:, columns], y) for features, y in (found["train"], found["val"]))
        gaussians = ClassGaussians(1e-4)
        gaussians.fit(fitted, labels, range(int(labels.max()) + 1))
        pooled = gaussians.pooled_covariance()
        for a, g in product(SHARES, IDENTITIES):
            read_out = discriminant(gaussians.classes, a=a, g=g, ridge=gaussians.ridge, pooled=pooled)
            right[name, views, a, g] = 100 * (read_out(held_out).argmax(dim=1) == expected).float().mean().item()
    return right


def page(found: dict[str, dict[Answer, float]], fraction: float) -> str:
    """The best answer, and what each choice gives at its best a and g."""
    mean = {answer: sum(each[answer] for each in found.values()) / len(found) for answer in next(iter(found.values()))}
    best = max(mean, key=lambda answer: mean[answer])
    rows = []
    for name, views in product(PARTS, VIEWS):
        a, g = max(product(SHARES, IDENTITIES), key=lambda pair: mean[(name, views, *pair)])
        of_it = [f"{each[name, views, a, g]:.2f}" for each in found.values()]
        rows.append([name, str(views), f"{a:g}, {g:g}", *of_it, f"{mean[name, views, a, g]:.2f}"])
    name, views, a, g = best
    return (f"# What `slca_best` reads\n\n{__doc__.strip().splitlines()[0]}\nMade by `python benchmarks/tune_best.py`; percent of held-out "
            f"images ({100 * fraction:.0f} % of each class's training images) over all classes, frozen backbone, each row with the a and g "
            "that are best for the mean of the streams.\n\n"
            + table(["Parts", "Views", "a, g", *(STREAMS[stream][0] for stream in found), "Mean"], rows)
            + f"\n\nBest mean: {name}; {views} views; a {a:g}, g {g:g}: {mean[best]:.2f}. "
              f"Held-out images come from the designers of the training images, so these figures are higher than test figures.\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", nargs="+", choices=[name for name in STREAMS if "styles" not in name], default=["demo", "near", "far"])
    parser.add_argument("--fraction", type=float, default=0.2)
    arguments = parser.parse_args()
    found: dict[str, dict[Answer, float]] = {stream: {} for stream in arguments.streams}
    for stream, views in product(arguments.streams, VIEWS):
        found[stream] |= accuracies(stream, views, arguments.fraction)
        print(f"{stream}, {views} views: done", flush=True)
    target = PROJECT / "benchmarks" / "TUNING.md"
    target.write_text(page(found, arguments.fraction), encoding="utf-8")
    print(target)


if __name__ == "__main__":
    main()
