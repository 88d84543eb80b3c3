"""From the benchmarks' figures to results.json and RESULTS.md.

    python benchmarks/report.py
"""

from __future__ import annotations

import json
from typing import Any

from common import PROJECT, WORK, short

TARGETS = {"exact": 15, "rank 64": 30}  # times faster than the textbook's alignment
FIT_TARGET = 1.5  # times faster than covariance + Cholesky
SAME_ACCURACY = 0.3  # points


def main() -> None:
    results = PROJECT / "benchmarks" / "results.json"
    found = json.loads(results.read_text(encoding="utf-8")) if results.exists() else {}  # what was not measured again stays
    found |= {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(WORK.glob("*.json"))}
    results.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    missing = [name.replace("_", " ") for name in PARTS if name not in found]
    gaps = [f"Not measured yet: {', '.join(missing)}."] if missing else []
    sections = [part(found[name]["figures"]) for name, part in PARTS.items() if name in found]
    text = "\n\n".join(["# Benchmarks", INTRODUCTION, *gaps, *sections, machines(found)])
    page = results.with_name("RESULTS.md")
    page.write_text(text + "\n", encoding="utf-8")
    print(page)


INTRODUCTION = """Made by the scripts that `make bench` runs, each figure under the load and threads at the end of this page; every
ratio is of two ways measured in turns in one process. "Clock" ratios feel what else the machine does; processor time
hardly does. The plain ways are in `benchmarks/textbook.py` and in the benchmark named."""


def verdict(ratio: float, target: float) -> str:
    """A target and whether the median by the clock reaches it, as the tables round it."""
    return f"{target:g}x: {_yes(round(ratio, 2) >= target)}"


def _yes(reached: bool) -> str:
    return "reached" if reached else "**not reached**"


def table(header: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, ["---"] * len(header), *rows])


def alignment(f: dict[str, Any]) -> str:
    rows = [["textbook", _time(f["seconds"]["textbook"]), "", "", f"{f['accuracy']['textbook']:.2f}", ""]]
    for name, ratio in f["speedup"].items():
        difference = f["accuracy_difference"][name]
        rows.append([name, _time(f["seconds"][name]), short(ratio), f"{f['speedup_with_fit'][name]['median']:.2f}x",
                     f"{f['accuracy'][name]:.2f} ({difference:+.2f})",
                     f"{verdict(ratio['median'], TARGETS[name])}; {SAME_ACCURACY} points: {_yes(abs(difference) <= SAME_ACCURACY)}"])
    header = ["way", "time", "faster", "with the statistics of the task's 10 new classes", "accuracy on held-out samples", "target"]
    fit = ", ".join(f"{name} {seconds['wall']:.2f} s" for name, seconds in f["fit_seconds_new_classes"].items())
    return ("## 1. Alignment (`alignment.py`): 768 dimensions, 100 classes in 10 tasks of 500 images, 5 epochs\n\n"
            + table(header, rows)
            + f"\n\nStatistics of 10 classes, fitted once, by the clock: {fit}. The project finds a factor of the covariance "
            "there; the textbook factorises it in every epoch of every later alignment.")


def stage1(f: dict[str, Any]) -> str:
    rows = [[name, _time(row["seconds"]["bare loop"]), _time(row["seconds"]["project"]), short(row["of_bare_loop"]),
             verdict(row["of_bare_loop"]["median"], 0.95)]
            for name, row in f.items()]
    return ("## 2. Stage 1 (`stage1.py`): images per second over those of a bare loop\n\n"
            + table(["network", "bare loop", "project", "project / bare loop", "target"], rows))


def lora(f: dict[str, Any]) -> str:
    rows = [[name, str(row["batch"]), short(row["speedup"]), verdict(row["speedup"]["median"], 1.1)] for name, row in f.items()]
    title = "## 3. SLCA++ step of ViT-B/16 (`stage1.py`) over forming W + s B A\n\n"
    return title + table(["LoRA on", "batch", "faster", "target"], rows)


def whole(f: dict[str, Any]) -> str:
    rows = [[name, _time(row["seconds"]["textbook"]), _time(row["seconds"]["project"]), short(row["speedup"]),
             f"{row['mean_difference']:+.2f} points over {len(row['last_accuracy']['project'])} seed(s)",
             verdict(row["speedup"]["median"], 2)] for name, row in f.items()]
    header = ["method", "textbook", "project", "faster", "last accuracy", "target"]
    return "## 4. Whole demo run (`whole_run.py`)\n\n" + table(header, rows)


def memory(f: dict[str, Any]) -> str:
    kinds = list(next(iter(f["per_class"].values())))
    rows = [[images, *(f"{row[kind]['bytes']:,} ({row[kind]['of_full_percent']:.1f} %)" for kind in kinds)]
            for images, row in f["per_class"].items()]
    peak = f["alignment_100_classes_120_images"]
    return (f"## 5. Statistics (`alignment.py`): bytes per class; mean and full covariance take {f['full_bytes']:,}\n\n"
            + table(["images per class", *kinds], rows)
            + f"\n\nPeak of statistics and one epoch of alignment, 100 classes of 120 images: {peak['ours_peak_mb']:.0f} MiB; textbook "
            f"{peak['textbook_peak_mb']:.0f} MiB.")


def bf16(f: dict[str, Any]) -> str:
    flags = ", ".join(f["cpu_has_bf16"]) or "none: it is emulated"
    rows = [[name, short(row["speedup"])] for name, row in f["networks"].items()]
    return ("## 6. bf16-mixed over 32-true (`stage1.py`), one epoch of stage 1\n\n" + table(["network", "times as fast"], rows)
            + f"\n\nbf16 instructions of this processor: {flags}.")


def bf16_accuracy(f: dict[str, Any]) -> str:
    return f"Last accuracy of whole demo runs: {f['difference']:+.2f} points over {len(f['last_accuracy']['32-true'])} seed(s)."


def growth(f: dict[str, Any]) -> str:
    rows = [[f"{int(classes):,}", f"{row['bytes_per_class']:,.0f}", f"{row['statistics_mb']:,.0f} MiB", f"{row['peak_gb']:.2f} GiB",
             str(row["rounds"]), f"{1000 * row['seconds_per_step']:.1f} ms", f"{row['seconds_per_epoch']:,.0f} s ({row['epoch_is']})"]
            for classes, row in f.items()]
    return ("## 7. Growth (`alignment.py`): rank 64, 256 samples of 768 dimensions per class, 2 GiB for drawn features\n\n"
            + table(["classes", "bytes per class", "statistics", "peak above start", "rounds per epoch", "time per step",
                     "time per epoch"], rows)
            + "\n\nA step's cost grows with the classes, since every step trains all heads; an epoch has as many steps as classes. "
            "`alignment.py --only 7 --whole_upto 10000` runs every epoch whole; by itself it computes those beyond 1,000 classes.")


def data_path(f: dict[str, Any]) -> str:
    rows = [[row["case"], str(row["workers"]), f"{row['images_per_second']:,.0f}", f"{row['pil_images_per_second']:,.0f}",
             f"{row['ratio']:.2f}x ({row['ratio_low']:.2f} to {row['ratio_high']:.2f})"] for row in f["lines"]]
    return (f"## 8. Data path (`data_path.py`): images per second in batches of {f['batch']}, beside PIL and torchvision transforms "
            "with as many workers\n\n" + table(["images", "workers", "project", "PIL", "faster"], rows))


def switches(f: dict[str, Any]) -> str:
    rows = [[name, short(row["speedup"]), f"{row['first_epoch_more']:.0f} s"] for name, row in f.items()]
    return ("## 9. Switches (`stage1.py`): an epoch of stage 1 with the switch on over one with it off\n\n"
            + table(["what", "faster", "the first epoch took more by"], rows))


def fitting(f: dict[str, Any]) -> str:
    rows = [[images, *(f"{row['ms_per_class'][way]['wall']:.1f} ms ({row['ms_per_class'][way]['cpu']:.1f} ms processor)"
                       for way in ("textbook", "project")), short(row["speedup"]), verdict(row["speedup"]["median"], FIT_TARGET)]
            for images, row in f.items()]
    return ("## 10. Fitting (`alignment.py --only 10`): a class of 768 dimensions, beside its mean, covariance + ridge and Cholesky factor"
            "\n\n" + table(["images", "textbook", "project", "faster", "target"], rows)
            + "\n\nUp to 769 images the project takes the R of a QR decomposition of the centred features, with more images the Cholesky "
            "factor of the covariance, of which it computes one triangle.")


def checkpoints(f: dict[str, Any]) -> str:
    rows = [[name, f"{seconds['wall']:.3f} s"] for name, seconds in f["held_up_seconds"].items()]
    return (f"## 11. Checkpoints (`checkpoints.py`): how long one inside a task holds the training up, {f['bytes'] / 2**20:,.0f} MiB "
            f"(weights and momentum of ViT-B/16) on {f['device']}\n\n" + table(["written", "training waits"], rows)
            + f"\n\nThe wait is {f['less']['median']:.1f} times shorter ({f['less']['min']:.1f} to {f['less']['max']:.1f}, "
            f"{f['less']['rounds']} rounds). A thread writes, hashes and flushes for {f['writing_seconds']:.2f} s beside the training, "
            f"which meanwhile does {100 * f['speed_meanwhile']:.0f} % of the steps that it does alone.")


def pretended(f: dict[str, Any]) -> str:
    rows = [[method, phase, f"{row['launches']:.1f}", f"{row['waits']:.2f}", row["unit"]]
            for method, phases in f.items() for phase, row in phases.items()]
    return ("## 12. On a GPU (`pretended.py`): launches and waits of the host, counted on a CUDA device that is only pretended\n\n"
            + table(["method", "phase", "launches", "waits", "per"], rows)
            + "\n\nTwo tasks of 10 classes, a ViT of 5 blocks. A launch is an operation that computes: a lower bound. The classes of a "
            "task share their launches and waits, so figures per class fall with more classes. GEM waits once in each step of the second "
            "task, for its quadratic program.")


def epochs_ahead(f: dict[str, Any]) -> str:
    rows = [[name, f"{seconds['first_step']:.3f} s", f"{seconds['epoch']:.2f} s"] for line in f["lines"]
            for name, seconds in line["seconds"].items()]
    ahead, replay = (f"{line['faster']['median']:.2f}x ({line['faster']['min']:.2f} to {line['faster']['max']:.2f}, "
                     f"{line['faster']['rounds']} rounds)" for line in f["lines"])
    return (f"## 13. Planning across passes (`epochs_ahead.py`): JPEG files at 224 px, {f['workers']} workers, {f['images']} images an "
            f"epoch in batches of {f['batch']}\n\n" + table(["way", "first step of an epoch after", "epoch"], rows)
            + f"\n\nAn epoch takes {ahead} as long when it begins only after the one before, and {replay} as long when the two replayed "
            "batches of a DER++ step are read in the main process. The computing of a step is a sleep as long as the workers need for its "
            "images, as on a device that is as fast as they are.")


def many_tasks(f: dict[str, Any]) -> str:
    few, many = f["tasks"]
    rows = [[method, f"{row['few']:.3f} ms", f"{row['many']:.3f} ms", f"{row['ratio']:.2f}x"] for method, row in f["methods"].items()]
    return (f"## 14. Many tasks (`many_tasks.py`): what evaluation costs per image, {few} and {many} tasks of one class\n\n"
            + table(["method", f"{few} tasks", f"{many} tasks", f"ratio, at most {f['bar']:g}"], rows)
            + "\n\nOne test image per class, a micro ViT. With more tasks an image costs less: small tasks share batches.")


def kinds(f: dict[str, Any]) -> str:
    rows = [[name, f"{row['mean']:.2f}", f"{row['difference']:+.2f}", f"{row['bytes_per_class']:,.0f}"] for name, row in f.items()]
    seeds = len(next(iter(f.values()))["last_accuracy"])
    return (f"## Kinds of covariance on the demo (`whole_run.py`): SLCA, {seeds} seed(s), one trained backbone per seed for all kinds\n\n"
            + table(["kind", "last accuracy", "difference", "bytes per class"], rows))


def machines(found: dict[str, Any]) -> str:
    rows = [[name, *(str(content["machine"][key]) for key in ("threads", "cores", "load_at_start"))] for name, content in found.items()]
    first = next(iter(found.values()))["machine"]
    return (f"## Measured on\n\n{first['cpu']}, torch {first['torch']}, GPU: {first['gpu'] or 'none'}. Load is what ran on the machine "
            "when the figure was written.\n\n" + table(["figure", "threads", "cores", "load"], rows))


def _time(seconds: dict[str, float]) -> str:
    return f"{seconds['wall']:.2f} s ({seconds['cpu']:.2f} s processor)"


PARTS = {"1_alignment": alignment, "2_stage1": stage1, "3_lora": lora, "4_whole_run": whole, "5_statistics": memory, "6_bf16": bf16,
         "6_bf16_accuracy": bf16_accuracy, "7_growth": growth, "8_data_path": data_path, "9_switches": switches, "10_fitting": fitting,
         "11_checkpoints": checkpoints, "12_pretended": pretended, "13_epochs_ahead": epochs_ahead, "14_many_tasks": many_tasks,
         "covariance_kinds": kinds}

if __name__ == "__main__":
    main()
