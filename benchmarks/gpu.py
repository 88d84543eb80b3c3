"""On one GPU: ViT-B/16's steps beside a bare loop's, waits, alignment, memory, checkpoints, two runs at once, accuracy by `speed`.

    python benchmarks/gpu.py [--parts steps waits alignment memory checkpoint two accuracy] [--short]

Images are synthetic, in the shapes of CIFAR-100's tasks (5,000 of 32 px, brought to 224). Writes benchmarks/GPU_RESULTS.md after
every part. `--short` does little of everything, to see that it runs; without a GPU it does that on the CPU and writes nothing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import timm
import torch
from alignment import DIM, EPOCHS, TASKS, fit_classes, new_heads, our_align
from common import PROJECT, WORK, in_turns, machine
from gpu_page import gpu_page
from textbook import align as plain_align
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from models import resolve_config, stage1
from models.tools.build import make_learner
from trainer import train
from utils.config import Config, load_config, parse_config
from utils.machine.device import make_fabric
from utils.machine.speed import arithmetic

VIT_B, PIXELS, CLASSES, BATCH = "vit_base_patch16_224", 224, 10, 128
ARITHMETIC: dict[str, dict[str, Any]] = {
    "fp32": {}, "TF32": {"tf32": True}, "bf16": {"precision": "bf16-mixed", "tf32": True},
    "bf16, compiled": {"precision": "bf16-mixed", "tf32": True, "compile": True}}
# Dense TFLOP/s of the data sheets (NVIDIA H100 SXM and H200 SXM, 2023): float32 outside the matrix units, TF32, bf16.
PEAKS = {"H100": {"fp32": 67, "TF32": 494, "bf16": 989}, "H200": {"fp32": 67, "TF32": 494, "bf16": 989}}
STREAMS = {"the demo's stream": "exps/slca_demo.json", "50 classes of icons": "exps/icons50_slca_near.json"}
BACKWARD = 2  # a backward pass costs about two forward ones
IMAGES_PER_CLASS = 500


class Run:
    """How much of everything is measured, and where."""

    def __init__(self, short: bool) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.short = short or self.device.type == "cpu"
        self.images = 2 * BATCH if self.short else CLASSES * IMAGES_PER_CLASS  # of the one task
        self.rounds = 2 if self.short else 3  # the first one warms up

    @property
    def name(self) -> str:
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "CPU"

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def timed(self, call: Callable[[], Any]) -> Callable[[], None]:
        """`call`, until the device has done it."""
        def run() -> None:
            call()
            self.wait()
        return run


# The project and the bare loop --------------------------------------------------------------------------------

def cifar_shaped(run: Run, images: int) -> dict[str, Any]:
    """A data set of one task of `images` random 32 px images, as the object that a config describes it with."""
    file = WORK / f"cifar_shaped_{images}.npz"
    if not file.exists():
        WORK.mkdir(parents=True, exist_ok=True)
        random = np.random.default_rng(0)
        pixels = random.integers(0, 256, (images + CLASSES, 32, 32, 3), dtype=np.uint8)
        labels = np.arange(images + CLASSES) % CLASSES
        np.savez(file, x_train=pixels[:images], y_train=labels[:images], x_test=pixels[images:], y_test=labels[images:])
    size = PIXELS if run.device.type == "cuda" else 32
    return {"name": "cifar-shaped", "layout": "npz", "root": str(file), "image_size": size, "train_transform": "crop224"}


def run_config(run: Run, images: int, **settings: Any) -> Config:
    """SLCA on that task with a ViT-B/16 of random weights; on a CPU with a tiny one."""
    tiny = {"timm": VIT_B, "args": {"img_size": 32, "embed_dim": 48, "depth": 2, "num_heads": 2}}
    backbone = "timm/" + VIT_B if run.device.type == "cuda" else tiny
    return resolve_config(parse_config({
        "model_name": "slca", "convnet_type": backbone, "pretrained": False,
        "dataset": cifar_shaped(run, images), "init_cls": CLASSES, "increment": 0, "epochs": 1, "batch_size": BATCH,
        "device": str(run.device), "seed": 0, **settings}))


def project_epoch(run: Run, images: int, **settings: Any) -> Callable[[], Any]:
    """A call that runs one epoch of the project's stage 1, data and augmentation included."""
    config = run_config(run, images, **settings)
    learner = make_learner(config, 0, make_fabric(config.device, config.precision, config.tf32))
    learner.begin_task(0)
    module, optimizer = learner.fabric.setup(learner.training_module(0), learner.make_optimizer(0))
    learner.net.train()
    return lambda: stage1.train_epoch(learner, module, optimizer, learner.training_batches(0, 0))


def bare_epoch(run: Run, images: int, precision: str = "32-true", tf32: bool = False, compile: bool = False) -> Callable[[], Any]:
    """As many steps on fixed batches that lie on the device: forward, backward, fused SGD, nothing else."""
    args = {} if run.device.type == "cuda" else {"img_size": 32, "embed_dim": 48, "depth": 2, "num_heads": 2}
    model = timm.create_model(VIT_B, num_classes=CLASSES, **args).to(run.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9, weight_decay=5e-4, fused=True)
    size = PIXELS if run.device.type == "cuda" else 32
    sizes = [BATCH] * (images // BATCH) + ([images % BATCH] if images % BATCH else [])
    pixels = torch.randn(BATCH, 3, size, size, device=run.device)
    labels = torch.randint(CLASSES, (BATCH,), device=run.device)
    forward = torch.compile(model) if compile else model

    def epoch() -> None:
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        for count in sizes:
            with torch.autocast(run.device.type, torch.bfloat16, enabled=precision == "bf16-mixed"):
                loss = F.cross_entropy(forward(pixels[:count]), labels[:count])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return epoch


def steps(run: Run) -> dict[str, Any]:
    """Images per second of stage 1 beside the bare loop, in every arithmetic; epochs take turns."""
    found = {}
    with torch.device("meta"):
        counter = FlopCounterMode(display=False)
        with counter:
            timm.create_model(VIT_B, num_classes=CLASSES)(torch.empty(1, 3, PIXELS, PIXELS))
    per_image = counter.get_total_flops() * (1 + BACKWARD)
    for name, settings in ARITHMETIC.items():
        if run.short and "compile" in settings:
            continue
        images = run.images if name != "fp32" else min(run.images, 12 * BATCH)
        ways = {"bare loop": bare_epoch(run, images, **settings), "project": project_epoch(run, images, **settings)}
        torch.set_float32_matmul_precision("high" if settings.get("tf32") else "highest")
        start = time.perf_counter()
        comparison = in_turns({way: run.timed(call) for way, call in ways.items()}, run.rounds)
        first = time.perf_counter() - start
        comparison = comparison.without_first()
        seconds = {way: comparison.medians()[way]["wall"] for way in ways}
        rate = {way: images / value for way, value in seconds.items()}
        peak = next((peaks for card, peaks in PEAKS.items() if card in run.name), {}).get(name.split(",")[0])
        found[name] = {"images": images, "per_second": rate, "of_bare_loop": comparison.ratio("bare loop", "project"),
                       "seconds_in_all": first, "mfu": None if peak is None else rate["project"] * per_image / (peak * 1e12)}
        print(f"stage 1, {name}: {rate['project']:,.0f} images/s, {100 * comparison.ratio('bare loop', 'project')['median']:.1f} % "
              "of the bare loop", flush=True)
        del ways
        free()
    return {"flops_per_image": per_image, "arithmetic": found}


# Waits ------------------------------------------------------------------------------------------------------------

def waits(run: Run) -> dict[str, Any]:
    """How long the GPU is idle within an epoch of bf16 steps, and where the host waits for it (torch's own warnings)."""
    images = (4 if run.short else 20) * BATCH
    settings = ARITHMETIC["bf16"] if run.device.type == "cuda" else {}
    untimed = project_epoch(run, images, **settings)
    epoch = run.timed(untimed)
    epoch()
    if run.device.type == "cpu":
        epoch()
        return {}
    places = host_waits(untimed)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as traced:
        epoch()
    kernels = sorted((e.time_range.start, e.time_range.end) for e in traced.events() if e.device_type == torch.autograd.DeviceType.CUDA)
    first, last = kernels[0][0], max(end for _, end in kernels)
    busy, until = 0.0, first
    for start, end in kernels:
        busy += max(end - max(start, until), 0)
        until = max(until, end)
    found = {"steps": images // BATCH, "idle_share": 1 - busy / (last - first), "waits": places}
    print(f"the GPU is idle {100 * found['idle_share']:.1f} % of a traced epoch; waits in {found['steps']} steps: {places or 'none'}",
          flush=True)
    return found


def host_waits(call: Callable[[], Any]) -> dict[str, int]:
    """Where `call` makes the host wait for the GPU, and how often: project line -> times."""
    places: dict[str, int] = {}

    def note(message: Warning | str, category: type[Warning], filename: str, lineno: int, *rest: Any) -> None:
        if "synchroniz" not in str(message):
            return
        frame, place = sys._getframe(1), Path(filename).name
        while frame is not None:
            file = Path(frame.f_code.co_filename)
            if file.is_relative_to(PROJECT) and file.name != "gpu.py" and ".venv" not in file.parts:
                place = f"{file.relative_to(PROJECT)}:{frame.f_lineno}"
                break
            frame = frame.f_back
        places[place] = places.get(place, 0) + 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        torch.cuda.set_sync_debug_mode("warn")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return places


# Alignment ----------------------------------------------------------------------------------------------------------

def alignment(run: Run) -> dict[str, Any]:
    """Stage 2 and the statistics of 100 and 1,000 classes of 500 features of 768 dimensions, against the textbook's."""
    torch.set_float32_matmul_precision("highest")
    found = {}
    for classes, epochs, rounds in ((20, 1, 2),) if run.short else ((100, EPOCHS, 4), (1000, 1, 2)):
        generator = torch.Generator(run.device).manual_seed(0)
        spectrum = torch.arange(1, DIM + 1, device=run.device) ** -0.5
        centres = torch.randn(classes, DIM, generator=generator, device=run.device) * spectrum
        features = [centre + torch.randn(IMAGES_PER_CLASS, DIM, generator=generator, device=run.device) * spectrum for centre in centres]
        new, gaussians = features[: classes // TASKS], fit_classes({}, features)
        ridge = 1e-4 * torch.eye(DIM, device=run.device)
        means, covariances = torch.stack([f.mean(dim=0) for f in features]), torch.stack([torch.cov(f.T) + ridge for f in features])
        heads = new_heads(classes).to(run.device)

        def textbook(features: list[torch.Tensor], ridge: torch.Tensor) -> None:
            for own in features:
                own.mean(dim=0), torch.linalg.cholesky(torch.cov(own.T) + ridge)

        fitting = in_turns({"textbook": run.timed(partial(textbook, new, ridge)),
                            "project": run.timed(partial(fit_classes, {}, new))}, rounds).without_first()
        aligning = in_turns({
            "textbook": run.timed(partial(plain_align, heads, means, covariances, epochs=epochs)),
            "project": run.timed(partial(our_align, heads, gaussians, 0, epochs=epochs))}, rounds).without_first()
        found[str(classes)] = {"epochs": epochs, **{name: {"seconds": {way: c.medians()[way]["wall"] for way in c.seconds},
                                                           "speedup": c.ratio("textbook", "project")}
                                                    for name, c in (("alignment", aligning), ("fitting of a tenth", fitting))}}
        print(f"alignment of {classes} classes, {epochs} epochs: {aligning.medians()['project']['wall']:.3f} s, "
              f"{aligning.ratio('textbook', 'project')['median']:.1f}x the textbook's speed", flush=True)
        del features, covariances, gaussians
        free()
    return found


# Memory, checkpoints, two runs ------------------------------------------------------------------------------------------

def memory(run: Run) -> dict[str, Any]:
    """Peak GiB of a bf16 training step by batch size, with and without activations computed again."""
    if run.device.type == "cpu":
        return {}
    found: dict[str, dict[str, float]] = {}
    for again in (False, True):
        for batch in (32, 128) if run.short else (32, 128, 512):
            epoch = project_epoch(run, 2 * batch, batch_size=batch, grad_checkpointing=again, **ARITHMETIC["bf16"])
            torch.cuda.reset_peak_memory_stats()
            run.timed(epoch)()
            found.setdefault(str(batch), {})["checkpointed" if again else "plain"] = torch.cuda.max_memory_allocated() / 2**30
            del epoch
            free()
    print("peak GiB:", json.dumps(found), flush=True)
    return found


def checkpoint(run: Run) -> dict[str, Any]:
    """Seconds that a checkpoint inside a task holds the training up (benchmarks/checkpoints.py)."""
    found = checkpoints.measure(run.device, 1 if run.short else 5)
    held = {way: seconds["wall"] for way, seconds in found["held_up_seconds"].items()}
    print(f"a checkpoint of {found['bytes'] / 2**20:,.0f} MiB holds the training up for {held['beside']:.3f} s, "
          f"written in its way for {held['in its way']:.3f} s", flush=True)
    return found


def two(run: Run) -> dict[str, Any]:
    """Images per second of two bf16 runs side by side on one GPU, over those of one alone."""
    alone = _side_by_side(run, 1)
    both = _side_by_side(run, 2)
    print(f"two runs on one GPU: {sum(both) / alone[0]:.2f}x the images per second of one", flush=True)
    return {"alone": alone[0], "both": both}


def _side_by_side(run: Run, count: int) -> list[float]:
    """Images per second of each of `count` processes, which start together once all are warm."""
    command = [sys.executable, __file__, "--worker", *(["--short"] if run.short else [])]
    workers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(count)]
    for worker in workers:
        assert worker.stdout.readline().strip() == "warm"
    for worker in workers:
        worker.stdin.write("go\n")
        worker.stdin.flush()
    return [float(worker.communicate()[0]) for worker in workers]


def worker(run: Run) -> None:
    epoch = run.timed(project_epoch(run, run.images, **ARITHMETIC["bf16"]))
    epoch()
    print("warm", flush=True)
    sys.stdin.readline()
    start = time.perf_counter()
    for _ in range(3):
        epoch()
    print(3 * run.images / (time.perf_counter() - start))


def accuracy(run: Run) -> dict[str, Any]:
    """SLCA's last accuracy on the demo's and the icons' stream, at both speeds; three seeds, in `--short` one."""
    found = {}
    for stream, file in STREAMS.items():
        for speed in ("release", "fast"):
            changes = {"device": str(run.device), "speed": speed, **({"seed": 0, "epochs": 1} if run.short else {})}
            start = time.perf_counter()
            result = train(load_config(PROJECT / file, changes), WORK / "runs", name=f"{Path(file).stem}_{speed}")
            found.setdefault(stream, {})[speed] = {**result.shown("last"), "arithmetic": arithmetic(result.config),
                                                   "seconds": time.perf_counter() - start}
        told = ", ".join(f"{speed} {row['mean']:.2f}" for speed, row in found[stream].items())
        print(f"last accuracy on {stream}: {told}", flush=True)
    return found


def driver() -> str | None:
    """The GPU driver's version."""
    try:
        asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.run(asked, capture_output=True, text=True, timeout=30, check=True).stdout.strip().splitlines()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return None


def free() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    torch.compiler.reset()


PARTS: dict[str, Callable[[Run], dict[str, Any]]] = {"steps": steps, "waits": waits, "alignment": alignment, "memory": memory,
                                                         "checkpoint": checkpoint, "two": two, "accuracy": accuracy}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--short", action="store_true", help="little of everything")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    run = Run(arguments.short)
    if arguments.worker:
        return worker(run)
    whole, failed = run.device.type == "cuda" and not run.short, []
    kept = PROJECT / "benchmarks" / "gpu.json" if whole else WORK / "gpu_in_short" / "figures.json"  # not beside what report.py collects
    kept.parent.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {"machine": {**machine(), "driver": driver()}, "short": run.short}
    for name in arguments.parts:
        start = time.perf_counter()
        try:
            found[name] = PARTS[name](run)
        except Exception:  # one part that fails does not lose the others
            failed.append(name)
            traceback.print_exc()
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
        kept.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")  # a later part may fail, or the time be over
    if whole:
        page = PROJECT / "benchmarks" / "GPU_RESULTS.md"
        page.write_text(gpu_page(found), encoding="utf-8")
        print(page)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
