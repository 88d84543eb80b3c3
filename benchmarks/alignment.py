"""Figures 1, 5, 7 and 10: the alignment stage and the statistics, on simulated features of ViT-B's size.

    python benchmarks/alignment.py [--rounds 3] [--classes 100 1000 10000]
"""

from __future__ import annotations

import argparse
import time
from functools import partial

import torch
from common import Comparison, PeakMemory, in_turns, save, short
from textbook import align as plain_align
from torch import Tensor, nn

from models.slca.alignment import Alignment
from models.slca.gaussians import ClassGaussians, Gaussian
from utils.formulas.schedules import cosine

DIM, TASKS, SAMPLES, EPOCHS = 768, 10, 256, 5
TAU, LR = 0.1, 0.01
FIT_ROUNDS = 15  # they take a tenth of a second each
FITTED = 100  # classes of the growth test that are fitted; the others get copies of their factors


class Simulated:
    """Classes with their own covariance: a spectrum that falls as 1/i in directions that differ from class to class."""

    def __init__(self, classes: int, seed: int = 0, apart: float = 0.3) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.spectrum = torch.arange(1, DIM + 1) ** -0.5
        self.basis = torch.linalg.qr(torch.randn(DIM, DIM, generator=self.generator)).Q
        self.means = torch.randn(classes, DIM, generator=self.generator) * self.spectrum @ self.basis * apart

    def features(self, label: int, count: int) -> Tensor:
        """(count, D); a label's directions are always the same."""
        own = torch.Generator().manual_seed(10_000 + label)
        strength = self.spectrum * torch.exp(0.5 * torch.randn(DIM, generator=own))
        shift = int(torch.randint(DIM, (1,), generator=own))
        mixed = 0.8 * self.basis + 0.6 * self.basis.roll(shift, dims=0)
        return self.means[label] + torch.randn(count, DIM, generator=self.generator) * strength @ mixed


def new_heads(classes: int) -> nn.ModuleList:
    """As stage 1 starts them: truncated normal, bias 0."""
    generator = torch.Generator().manual_seed(1)
    heads = nn.ModuleList(nn.Linear(DIM, classes // TASKS) for _ in range(TASKS))
    for head in heads:
        nn.init.trunc_normal_(head.weight, std=0.02, generator=generator)
        nn.init.zeros_(head.bias)
    return heads


def our_align(heads: nn.ModuleList, gaussians: ClassGaussians, seed: int, *, epochs: int = EPOCHS) -> None:
    """The project's stage 2 on its own classes, on the device of the heads."""
    device = heads[0].weight.device
    alignment = Alignment(heads, lr=LR, momentum=0.9, weight_decay=5e-4, tau=TAU)
    means = gaussians.means()
    for epoch in range(epochs):
        generator = torch.Generator(device).manual_seed(seed * 1000 + epoch)
        alignment.set_lr(cosine(LR, epoch, EPOCHS))
        features, labels = gaussians.sample(means, SAMPLES, generator)
        for batch in torch.randperm(len(labels), generator=generator, device=device).split(SAMPLES):
            alignment.step(features[batch], labels[batch])
    alignment.finish()
    gaussians.free_buffers()


@torch.no_grad()
def accuracy(heads: nn.ModuleList, features: Tensor, labels: Tensor) -> float:
    logits = torch.cat([head(features) for head in heads], dim=1)
    return 100 * (logits.argmax(dim=1) == labels).float().mean().item()


def fit_classes(kind: dict, features: list[Tensor]) -> ClassGaussians:
    """The project's statistics of as many classes as there are features (n, D)."""
    gaussians = ClassGaussians(**kind)
    labels = torch.cat([torch.full((len(f),), label, device=f.device) for label, f in enumerate(features)])
    gaussians.fit(torch.cat(features), labels, range(len(features)))
    return gaussians


def speed(rounds: int, classes: int = 100, images: int = 500) -> dict:
    """Figure 1: seconds of stage 2 for 100 classes, 500 images each, against the textbook's."""
    data = Simulated(classes)
    train = [data.features(label, images) for label in range(classes)]
    held_out = torch.cat([data.features(label, 100) for label in range(classes)])
    held_labels = torch.arange(classes).repeat_interleave(100)
    means = torch.stack([f.mean(dim=0) for f in train])
    covariances = torch.stack([torch.cov(f.T) + 1e-4 * torch.eye(DIM) for f in train])
    kinds = {"exact": {}, "rank 64": {"cov": "lowrank", "rank": 64}}
    fitted = {name: fit_classes(kind, train) for name, kind in kinds.items()}
    new = train[: classes // TASKS]  # the classes of one task, whose statistics are fitted before its alignment
    fitting = in_turns({"textbook": lambda: [(f.mean(dim=0), torch.cov(f.T) + 1e-4 * torch.eye(DIM)) for f in new],
                        **{name: (lambda kind=kind: fit_classes(kind, new)) for name, kind in kinds.items()}}, rounds)
    accuracies: dict[str, list[float]] = {name: [] for name in ("textbook", *kinds)}

    def textbook() -> None:
        torch.manual_seed(len(accuracies["textbook"]))
        heads = new_heads(classes)
        plain_align(heads, means, covariances, epochs=EPOCHS, samples=SAMPLES, lr=LR, tau=TAU)
        accuracies["textbook"].append(accuracy(heads, held_out, held_labels))

    def ours(name: str) -> None:
        heads = new_heads(classes)
        our_align(heads, fitted[name], seed=len(accuracies[name]))
        accuracies[name].append(accuracy(heads, held_out, held_labels))

    comparison = in_turns({"textbook": textbook, **{name: (lambda name=name: ours(name)) for name in kinds}}, rounds)
    both = Comparison(*({name: [a + b for a, b in zip(times[name], more[name], strict=True)] for name in times}
                        for times, more in ((comparison.seconds, fitting.seconds), (comparison.cpu, fitting.cpu))))
    mean = {name: sum(values) / len(values) for name, values in accuracies.items()}
    return {"seconds": comparison.medians(),
            "speedup": {name: comparison.ratio("textbook", name) for name in kinds},
            "fit_seconds_new_classes": fitting.medians(), "speedup_with_fit": {name: both.ratio("textbook", name) for name in kinds},
            "accuracy": mean,
            "accuracy_difference": {name: mean[name] - mean["textbook"] for name in kinds}}


def fitting(rounds: int, classes: int = 10) -> dict:
    """Figure 10: milliseconds per class to fit a Gaussian, beside mean, covariance + ridge and its Cholesky factor per class."""
    data, ridge, found = Simulated(classes), 1e-4 * torch.eye(DIM), {}
    for images in (120, 500, 1000):
        features = torch.cat([data.features(label, images) for label in range(classes)])
        labels = torch.arange(classes).repeat_interleave(images)

        def textbook(by_class: tuple[Tensor, ...]) -> list[tuple[Tensor, Tensor]]:
            return [(own.mean(dim=0), torch.linalg.cholesky(torch.cov(own.T) + ridge)) for own in by_class]

        def project(features: Tensor, labels: Tensor) -> ClassGaussians:
            gaussians = ClassGaussians()
            gaussians.fit(features, labels, range(classes))
            return gaussians

        ways = {"textbook": partial(textbook, features.split(images)), "project": partial(project, features, labels)}
        comparison = in_turns(ways, rounds + 1).without_first()
        found[str(images)] = {"ms_per_class": {way: {clock: 1000 * value / classes for clock, value in each.items()}
                                               for way, each in comparison.medians().items()},
                              "speedup": comparison.ratio("textbook", "project")}
    return found


def memory_of_statistics() -> dict:
    """Figure 5: bytes per class against mean and full covariance, and the peak of both ways for 100 classes of 120 images."""
    full = (DIM + DIM * DIM) * 4
    data = Simulated(1)
    per_class = {}
    for images in (30, 120, 500):
        features, labels = data.features(0, images), torch.zeros(images, dtype=torch.long)
        row = {}
        for name, kind in {"exact": {}, "exact float16": {"dtype": torch.float16}, "rank 64": {"cov": "lowrank", "rank": 64},
                           "diag": {"cov": "diag"}}.items():
            gaussians = ClassGaussians(**kind)
            gaussians.fit(features, labels, range(1))
            row[name] = {"bytes": gaussians.nbytes(), "of_full_percent": 100 * gaussians.nbytes() / full}
        per_class[str(images)] = row
    classes, images = 100, 120
    data = Simulated(classes)
    train = [data.features(label, images) for label in range(classes)]
    gaussians = fit_classes({}, train)
    with PeakMemory() as ours:
        our_align(new_heads(classes), gaussians, seed=0, epochs=1)
    with PeakMemory() as plain:
        means = torch.stack([f.mean(dim=0) for f in train])
        covariances = torch.stack([torch.cov(f.T) + 1e-4 * torch.eye(DIM) for f in train])
        plain_align(new_heads(classes), means, covariances, epochs=1)
    return {"full_bytes": full, "per_class": per_class,
            "alignment_100_classes_120_images": {"ours_peak_mb": (ours.bytes + gaussians.nbytes()) / 2**20,
                                                 "textbook_peak_mb": plain.bytes / 2**20}}


def growth(sizes: list[int], rank: int = 64, images: int = 80, budget_gb: float = 2.0, whole_upto: int = 1000,
           timed_steps: int = 50) -> dict:
    """Figure 7: ever more classes; statistics of rank 64, features drawn in rounds within a budget.

    Up to `whole_upto` classes an epoch is run whole. Above, one round is drawn whole, `timed_steps` of its steps are run, and
    the epoch's time follows by multiplication; memory is that of the whole epoch, whose rounds are all alike.
    """
    found = {}
    for classes in sizes:
        data = Simulated(classes)
        gaussians = ClassGaussians(cov="lowrank", rank=rank)
        rounds = max(1, -(-classes * SAMPLES * DIM * 4 // int(budget_gb * 2**30)))
        with PeakMemory() as memory:
            for label in range(min(classes, FITTED)):
                gaussians.fit(data.features(label, images), torch.full((images,), label), range(label, label + 1))
            for label in range(FITTED, classes):  # size and arithmetic are the same whoever fitted them
                like = gaussians[label % FITTED]
                gaussians.classes.append(Gaussian(data.means[label], like.factor.clone(), like.count, like.noise))
            alignment = Alignment(new_heads(classes), lr=LR, momentum=0.9, weight_decay=5e-4, tau=TAU)
            whole = classes <= whole_upto
            times = [_round(alignment, gaussians, SAMPLES * (r + 1) // rounds - SAMPLES * r // rounds, None if whole else timed_steps)
                     for r in range(rounds if whole else 1)]
        drawn, step = (sum(column) / len(times) for column in zip(*times, strict=True))
        found[str(classes)] = {
            "statistics_mb": gaussians.nbytes() / 2**20, "bytes_per_class": gaussians.nbytes() / classes, "peak_gb": memory.bytes / 2**30,
            "rounds": rounds, "steps_per_epoch": classes, "draw_seconds_per_round": drawn, "seconds_per_step": step,
            "seconds_per_epoch": rounds * drawn + classes * step, "epoch_is": "measured" if whole else "computed"}
        gaussians.free_buffers()
    return found


def _round(alignment: Alignment, gaussians: ClassGaussians, count: int, steps: int | None) -> tuple[float, float]:
    """Seconds to draw `count` features of every class, and seconds per step over them (over the first `steps` of them)."""
    generator = torch.Generator().manual_seed(0)
    start = time.perf_counter()
    features, labels = gaussians.sample(gaussians.means(), count, generator)
    order = torch.randperm(len(labels), generator=generator).split(SAMPLES)[:steps]
    drawn = time.perf_counter()
    for batch in order:
        alignment.step(features[batch], labels[batch])
    return drawn - start, (time.perf_counter() - drawn) / len(order)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--classes", type=int, nargs="+", default=[100, 1000, 10_000])
    parser.add_argument("--whole_upto", type=int, default=1000, help="figure 7: run whole epochs up to so many classes")
    parser.add_argument("--only", type=int, choices=[1, 5, 7, 10], help="one figure alone")
    arguments = parser.parse_args()
    if arguments.only in (None, 5):
        figures = memory_of_statistics()
        save("5_statistics", figures)
        for images, row in figures["per_class"].items():
            print(f"statistics of {images} images: " + ", ".join(f"{kind} {each['of_full_percent']:.1f} %" for kind, each in row.items()))
    if arguments.only in (None, 7):
        figures = growth(arguments.classes, whole_upto=arguments.whole_upto)
        save("7_growth", figures)
        for classes, row in figures.items():
            print(f"alignment of {classes} classes: {1000 * row['seconds_per_step']:.1f} ms per step, {row['seconds_per_epoch']:.0f} s per "
                  f"epoch ({row['epoch_is']}), peak {row['peak_gb']:.2f} GiB")
    if arguments.only in (None, 10):
        figures = fitting(FIT_ROUNDS)
        save("10_fitting", figures)
        for images, row in figures.items():
            print(f"fitting, {images} images a class: {row['ms_per_class']['project']['wall']:.1f} ms each, {short(row['speedup'])} faster")
    if arguments.only in (None, 1):
        figures = speed(arguments.rounds)
        save("1_alignment", figures)
        for name, ratio in figures["speedup"].items():
            print(f"alignment, {name}: {short(ratio)} faster; accuracy {figures['accuracy_difference'][name]:+.2f} points")


if __name__ == "__main__":
    main()
