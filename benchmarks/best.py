"""`slca_best` beside the frozen backbone that is read in the same way, and with each of its parts off: class orders x torch seeds.

    python benchmarks/best.py [--streams far near demo] [--variants slca_best frozen ...] [--torch_seeds 1 2 3] [--jobs 1]

Beside them, on every stream, the same network trained on all classes at once: what training it could win. The ablation runs on icons50
with the far backbone and one torch seed. The frozen backbone draws nothing, so one torch seed serves all. Runs
go side by side (`--on local`); interrupted, the same command goes on where it was. Writes benchmarks/best.json and BEST.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
from typing import Any

from common import PROJECT, WORK, machine
from methods import STREAMS, mean_and_spread, settings, train
from report import table

from utils.formulas.paired import paired_difference
from utils.report.results import read_results
from utils.report.tables import bytes_text

OUT, KEPT = WORK / "best", PROJECT / "benchmarks" / "best.json"
SEEDS = [0, 1, 2]  # class orders
ALL_IMAGES = {"val_fraction": 0.0}  # nothing is decided on held-out ones
VARIANTS: dict[str, tuple[str, str, dict[str, Any]]] = {  # name -> what the table says, exps/<method>_demo.json, what it changes
    "slca_best": ("slca_best", "slca_best", {}),
    "frozen": ("frozen backbone, read in the same way", "frozen_rgda_parts", {}),
    "at_once": ("all classes in one task, backbone trained for 20 epochs", "slca_best",
                ALL_IMAGES | {"move": "trained", "drift": "none", "epochs": 20}),
    "one_view": ("one view", "slca_best", {"views": 1}),
    "class_token": ("class token alone", "slca_best", {"features": "cls"}),
    "heads": ("aligned heads instead of RGDA", "slca_best", {"readout": "ca"}),
    "no_kd": ("without distillation", "slca_best", {"kd": 0.0}),
    "no_anchors": ("drift without anchors", "slca_best", {"drift_anchors": False}),
    "first_task": ("adapted in the first task, then kept", "slca_best", ALL_IMAGES | {"move": "average", "move_share": 0.0}),
    "average": ("move: average, a tenth of the images held out", "slca_best", {"move": "average"}),
    "average_no_drift": ("the same, without drift", "slca_best", {"move": "average", "drift": "none"}),
    "average_no_anchors": ("the same, drift without anchors", "slca_best", {"move": "average", "drift_anchors": False}),
    "average_no_kd": ("the same, without distillation", "slca_best", {"move": "average", "kd": 0.0}),
    "trained": ("move: trained, a tenth of the images held out", "slca_best", {"move": "trained"}),
}
PAIR = ("slca_best", "frozen")  # the rows beside each other on every stream; the first with all torch seeds
BOUND = "at_once"  # what training the backbone could win at most
CLASSES = {"demo": 10, "near": 50, "far": 50}  # in that one task
ABLATED = "far"


def run(stream: str, variants: list[str], torch_seed: int, jobs: int) -> None:
    """Train, or go on with, variants on a stream, `jobs` at a time."""
    name = f"{stream}_{torch_seed}"
    configs = {variant: settings(method, stream, SEEDS) | changes | {"torch_seed": torch_seed}
               for variant, (_, method, changes) in VARIANTS.items() if variant in variants}
    if BOUND in configs:
        configs[BOUND]["init_cls"] = CLASSES[stream]
    train(configs, OUT / "configs" / name, OUT / name, jobs)


def figures() -> dict[str, Any]:
    """stream -> variant -> one entry per torch seed and class order, of all runs that are there; the file's own where one is gone."""
    found: dict[str, Any] = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.exists() else {"streams": {}}
    for folder in sorted(OUT.glob("*_*")):
        stream, torch_seed = folder.name.rsplit("_", 1)
        for variant in VARIANTS:
            for file in sorted((folder / variant).glob("*/results.json"))[-1:]:
                entries = found["streams"].setdefault(stream, {}).setdefault(variant, {})
                for seed in read_results(file).seeds:
                    entries[f"{torch_seed}/{seed.seed}"] = {
                        "last": seed.last, "average_incremental": seed.average_incremental,
                        "shares": [at.get("share") for at in seed.diagnostics], "stage_seconds": seed.stage_seconds,
                        "memory_bytes": sum(seed.memory_curve[-1].values())}
    found["machine"] = machine()
    KEPT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


def row(stream: str, variant: str, found: dict[str, Any], against: str) -> list[str]:
    """Accuracy, difference to `against` where both have the class order (and the torch seed, if that draws anything), time, memory."""
    entries, others = found["streams"][stream][variant], found["streams"][stream].get(against, {})
    last = [entry["last"] for entry in entries.values()]
    partners = {key: others.get(key, others.get(f"1/{key.split('/')[1]}")) for key in entries}
    pairs = [(entries[key]["last"], other["last"]) for key, other in partners.items() if other is not None]
    cells = ["-", "-"]
    if variant != against and len(pairs) > 1:
        difference = paired_difference(*zip(*pairs, strict=True))
        cells = [f"{difference.mean:+.2f}", f"{difference.low:+.2f} to {difference.high:+.2f}"]
    incremental = "-" if variant == BOUND else f"{statistics.mean(entry['average_incremental'] for entry in entries.values()):.2f}"
    seconds = min(sum(entry["stage_seconds"].values()) for entry in entries.values())  # others may have met more other work
    return [STREAMS[stream][0], VARIANTS[variant][0], mean_and_spread(last), incremental, *cells,
            str(len(last)), f"{seconds:.0f} s", bytes_text(next(iter(entries.values()))["memory_bytes"])]


def moves(found: dict[str, Any]) -> str:
    """How often `auto` let the deployed state move."""
    told = []
    for stream in STREAMS:
        entries = found["streams"].get(stream, {}).get("slca_best", {}).values()
        shares = [share for entry in entries for share in entry["shares"] if share is not None]
        if shares:
            told.append(f"{STREAMS[stream][0]}: {sum(share > 0 for share in shares)} of {len(shares)}")
    return "Tasks after which `auto` let the deployed state move: " + "; ".join(told) + "."


def page(found: dict[str, Any]) -> str:
    """The two rows on every stream, and the ablation on one."""
    header = ["Stream", "Run", "Last (%)", "Average incremental (%)", "Difference", "95 % interval", "Runs", "Quickest run", "Memory kept"]
    pair = [row(stream, variant, found, PAIR[1]) for stream in STREAMS for variant in (*PAIR, BOUND)
            if variant in found["streams"].get(stream, {})]
    parts = found["streams"].get(ABLATED, {})
    ablation = [row(ABLATED, variant, found, PAIR[0]) for variant in VARIANTS if variant in parts and variant != BOUND]
    return "\n\n".join([
        "# `slca_best`: what it is worth, and what each part is",
        f"{__doc__.strip().splitlines()[0]}\nMade by `python benchmarks/best.py`; mean ± standard deviation over class orders and torch "
        "seeds. Differences are paired (same class order, same torch seed where it matters), intervals percentile bootstrap over the "
        "pairs; torch seeds of one class order are not independent. Times are of one thread on a shared machine, evaluation included.",
        "## Beside freezing: above 0 in Difference, the row is better than the frozen backbone",
        table(header, pair), moves(found),
        "With all classes in one task nothing is forgotten and nothing goes stale: that row is what training this backbone could win.",
        "## Each part off: below 0 in Difference, the part helps", table(header, ablation)]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", nargs="+", choices=STREAMS, default=["far", "near", "demo"])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--torch_seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side")
    arguments = parser.parse_args()
    for torch_seed in arguments.torch_seeds:
        for stream in arguments.streams:
            first = torch_seed == arguments.torch_seeds[0]
            wanted = [variant for variant in arguments.variants
                      if variant == PAIR[0] or (first and (variant in (PAIR[1], BOUND) or stream == ABLATED))]
            if wanted:
                run(stream, wanted, torch_seed, arguments.jobs)
    target = PROJECT / "benchmarks" / "BEST.md"
    target.write_text(page(figures()), encoding="utf-8")
    print(target)


if __name__ == "__main__":
    main()
