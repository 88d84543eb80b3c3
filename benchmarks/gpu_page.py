"""From the figures of benchmarks/gpu.py to GPU_RESULTS.md."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from report import table, verdict

from utils.report.tables import mean_std_text

OF_BARE_LOOP, ALIGNMENT_SECONDS, CHECKPOINT_SHARE = 0.95, 3.0, 0.02  # the targets
MINUTES = 5  # the default of checkpoint_minutes


def gpu_page(found: dict[str, Any]) -> str:
    m = found["machine"]
    head = (f"# On a GPU\n\nMade by `make gpu` on one {m['gpu']}, driver {m['driver']}, {m['cores']} cores; Python {m['python']}, torch "
            f"{m['torch']}, torchvision {m['torchvision']}, timm {m['timm']}. Ratios are of two ways measured in turns in one process.")
    return "\n\n".join([head, *(part(found[name]) for name, part in PARTS.items() if found.get(name))]) + "\n"


def _range(ratio: dict[str, float]) -> str:
    return f"{ratio['median']:.3f} ({ratio['min']:.3f} to {ratio['max']:.3f}, {ratio['rounds']} rounds)"


def steps(f: dict[str, Any]) -> str:
    rows = [[name, f"{row['per_second']['bare loop']:,.0f}", f"{row['per_second']['project']:,.0f}", _range(row["of_bare_loop"]),
             verdict(row["of_bare_loop"]["median"], OF_BARE_LOOP), "-" if row["mfu"] is None else f"{100 * row['mfu']:.0f} %"]
            for name, row in f["arithmetic"].items()]
    return ("## Stage 1: ViT-B/16 at 224 px, batches of 128, an epoch of a CIFAR-100 task\n\nImages per second. The bare loop has its "
            "batch on the GPU and does forward, backward and a fused SGD step; the project reads bytes of 32 px, augments and trains.\n\n"
            + table(["arithmetic", "bare loop", "project", "project / bare loop", "target", "of the peak"], rows)
            + f"\n\nOf the peak: {f['flops_per_image'] / 1e9:.1f} GFLOP per image and step (counted by torch in the forward pass, times "
            "three) over the data sheet's dense rate in that arithmetic.")


def waits(f: dict[str, Any]) -> str:
    places = {place: count for place, count in f["waits"].items() if "/" in place}  # others are the benchmark's own
    told = ", ".join(f"{place} {count}x" for place, count in places.items()) or "none"
    return (f"## Waits\n\nThe GPU was idle {100 * f['idle_share']:.1f} % of a traced epoch of {f['steps']} bf16 steps (tracing itself "
            f"slows the host). Lines of the project that waited for it in an epoch: {told}. Those of `train_epoch` read the losses and the "
            "accuracy at the epoch's end; `tests/test_cuda.py` makes every wait inside a step an error.")


def alignment(f: dict[str, Any]) -> str:
    rows = []
    for classes, row in f.items():
        for name in ("alignment", "fitting of a tenth"):
            seconds = row[name]["seconds"]
            target = f"under {ALIGNMENT_SECONDS:g} s: {'reached' if seconds['project'] < ALIGNMENT_SECONDS else '**not reached**'}"
            what = f"{name}, {row['epochs']} epoch(s)" if name == "alignment" else "statistics of a tenth of the classes"
            rows.append([classes, what, *(f"{seconds[way]:.3f} s" for way in ("textbook", "project")),
                         f"{row[name]['speedup']['median']:.1f}x", target if name == "alignment" and classes == "100" else ""])
    return ("## Alignment and statistics: 768 dimensions, 500 images per class, 256 features drawn per class and epoch\n\n"
            + table(["classes", "what", "textbook", "project", "faster", "target"], rows))


def memory(f: dict[str, Any]) -> str:
    rows = [[batch, *(f"{peak:.1f} GiB" for peak in row.values())] for batch, row in f.items()]
    return "## Peak memory of a bf16 step of ViT-B/16\n\n" + table(["batch", "plain", "`grad_checkpointing`"], rows)


def checkpoint(f: dict[str, Any]) -> str:
    blocking, held = (f["held_up_seconds"][way]["wall"] for way in ("in its way", "beside"))
    share = held / MINUTES / 60
    return (f"## A checkpoint inside a task: {f['bytes'] / 2**20:,.0f} MiB, weights and momentum of ViT-B/16\n\nIt holds the training "
            f"up for {held:.3f} s; written in its way it took {blocking:.3f} s. A thread writes it for {f['writing_seconds']:.2f} s; "
            f"meanwhile the training does {100 * f['speed_meanwhile']:.0f} % of the steps that it does alone. With one every "
            f"{MINUTES} minutes, as is usual, that is {100 * share:.2f} % of the time (target {100 * CHECKPOINT_SHARE:g} %: "
            f"{'reached' if share < CHECKPOINT_SHARE else '**not reached**'}).")


def two(f: dict[str, Any]) -> str:
    both = " and ".join(f"{rate:,.0f}" for rate in f["both"])
    return (f"## Two runs on one GPU\n\nOne alone: {f['alone']:,.0f} images per second in bf16; two side by side: {both}, together "
            f"{sum(f['both']) / f['alone']:.2f}x.")


def accuracy(f: dict[str, Any]) -> str:
    rows = [[stream, speed, row["arithmetic"], mean_std_text(row), f"{row['seconds']:.0f} s"] for stream, rows in f.items()
            for speed, row in rows.items()]
    return ("## Accuracy by `speed`\n\nSLCA's last accuracy with the shipped tiny ViT (three seeds, each another class order), and what a "
            "whole run took: so small a network is no measure of speed.\n\n"
            + table(["stream", "`speed`", "arithmetic", "last accuracy (%)", "whole run"], rows))


PARTS: dict[str, Callable[[dict[str, Any]], str]] = {"steps": steps, "waits": waits, "alignment": alignment, "memory": memory,
                                                         "checkpoint": checkpoint, "two": two, "accuracy": accuracy}
