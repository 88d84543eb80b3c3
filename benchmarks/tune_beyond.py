"""Choose what docs/beyond.md uses on validation images; the test images are never looked at.

    python benchmarks/tune_beyond.py --config exps/slca_demo.json --set val_fraction=0.2 bcb_lrscale=0.1

One training per seed serves every read-out, since none of them changes the network: after each task the Gaussians of every
kind of features and every kind of drift are kept side by side. At the end each is read with every (a, g) and scored on the
validation images of all classes. Printed: mean over the seeds, in percent.
"""

from __future__ import annotations

import argparse
import sys
from itertools import product
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from convs.network import IncrementalNet
from models import learner_class, resolve_config
from models.slca.discriminants import discriminant, nearest_mean
from models.slca.drift import DriftSums, with_anchors
from models.slca.gaussians import ClassGaussians
from models.tools.build import make_backbone
from utils.config import load_config, parse_overrides
from utils.data.data_manager import DataManager
from utils.machine.device import make_fabric
from utils.rng import torch_generator
from utils.run.monitor import Monitor

SHARES = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)  # a
IDENTITIES = (1e-4, 1e-3, 1e-2, 3e-2, 0.1)  # g
RHOS = (1e-3, 1e-2, 3e-2, 0.1, 0.3)
DRIFTS = [("none", 0.0), *product(("plain", "anchors"), RHOS)]
FEATURES = ("cls", "cls+mean")


def explorer(config, seed: int):
    """A learner of the config's method that keeps Gaussians of every kind, and its tasks."""
    method = learner_class(config.model_name)

    class Explorer(method):
        def __init__(self, *args) -> None:
            super().__init__(*args)
            self.kept = {key: ClassGaussians(self.config.ca_ridge) for key in product(FEATURES, DRIFTS)}

        def end_task(self, task: int, monitor: Monitor) -> None:
            for features in FEATURES:
                sums = self.measured(task, features) if self.backbone_before is not None else {}
                found, labels = self.extract("train", task)
                found = self.of_kind(found, features)
                for drift, rho in DRIFTS:
                    gaussians = self.kept[features, (drift, rho)]
                    if drift in sums:
                        gaussians.transport(sums[drift].operator(rho))
                    gaussians.fit(found, labels, self.data.stream.classes_of(task))
            self.backbone_before = None

        def of_kind(self, both: torch.Tensor, features: str) -> torch.Tensor:
            return both[:, : self.net.backbone.dim] if features == "cls" else both

        @torch.no_grad()
        def measured(self, task: int, features: str) -> dict[str, DriftSums]:
            dim = self.net.backbone.dim * (1 if features == "cls" else 2)
            sums = {"plain": DriftSums(dim), "anchors": DriftSums(dim)}
            generator = torch_generator(self.config.torch_seed, "anchors", task, 0)
            for images, _ in self.data.batches("train", task, batch_size=500, augment=False):
                for number, view in enumerate(with_anchors(images, generator)):
                    pair = [self.of_kind(self.features_of(b, view), features) for b in (self.backbone_before, self.net.backbone)]
                    sums["anchors"].add(*pair)
                    if number == 0:
                        sums["plain"].add(*pair)
            return sums

    fabric = make_fabric(config.device, config.precision)
    data = DataManager(config, seed, channels=make_backbone(config).channels)
    return Explorer(config, data, IncrementalNet(make_backbone(config)), fabric)


def validation_accuracies(learner) -> dict[tuple, float]:
    """Accuracy in percent on the validation images of all classes, by (features, drift, read-out)."""
    parts = [learner.extract("val", task) for task in range(learner.stream.num_tasks)]
    both, labels = (torch.cat(column) for column in zip(*parts, strict=True))
    accuracies = {}
    for (features, drift), gaussians in learner.kept.items():
        x = learner.of_kind(both, features)
        read_outs = {("ncm",): nearest_mean(gaussians.classes)}
        for a, g in product(SHARES, IDENTITIES):
            read_outs[a, g] = discriminant(gaussians.classes, a=a, g=g, ridge=gaussians.ridge)
        for name, read_out in read_outs.items():
            accuracies[features, drift, name] = 100 * (read_out(x).argmax(dim=1) == labels).float().mean().item()
    return accuracies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--set", nargs="+", default=["val_fraction=0.2"])
    arguments = parser.parse_args()
    overrides = {**parse_overrides(arguments.set), "readout": "rgda", "features": "cls+mean", "drift": "linear"}
    config = resolve_config(load_config(arguments.config, overrides))
    assert config.val_fraction > 0, "tuning needs validation images: --set val_fraction=0.2"
    found = []
    for seed in config.seeds:
        learner = explorer(config, seed)
        for task in range(learner.stream.num_tasks):
            learner.learn_task(task, Monitor())
        found.append(validation_accuracies(learner))
        print(f"seed {seed} done", flush=True)
    mean = {key: sum(each[key] for each in found) / len(found) for key in found[0]}
    for features, drift in product(FEATURES, DRIFTS):
        rows = {name: value for (f, d, name), value in mean.items() if (f, d) == (features, drift)}
        best = sorted(rows, key=lambda name: -rows[name])[:4]
        shown = [*best, (0.75, 1e-3), (1.0, 1e-3), (0.0, 1e-3), ("ncm",)]  # best four, then the table's
        figures = (f"{'/'.join(map(str, name))} {rows[name]:.2f}" for name in shown)
        print(f"{features:9}{drift[0]:8}{drift[1]:<7g}", "  ".join(figures), flush=True)


if __name__ == "__main__":
    main()
