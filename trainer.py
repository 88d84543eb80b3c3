"""Run one experiment: seeds, device, the loop over tasks, checkpoints and results. Names no method.

    from trainer import train
    from utils.config import load_config
    result = train(load_config("exps/slca_demo.json"))
"""

from __future__ import annotations

import logging
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch
from lightning_fabric import Fabric

from convs.backbones import Backbone, build_backbone
from convs.network import IncrementalNet
from models import learner_class, resolve_config, resolve_name
from models.base import BaseLearner
from models.describe import backbone_entry, count_parameters
from utils import metrics
from utils.checkpoint import Checkpoint, CheckpointStore
from utils.config import Config
from utils.data_manager import DataManager
from utils.device import make_fabric
from utils.distributed import launch, on_first
from utils.environment import environment
from utils.errors import UserError
from utils.monitor import RunMonitor
from utils.report import write_report
from utils.results import RunResult, SeedResult, write_results
from utils.run_folder import RunFolder
from utils.tables import results_table

log = logging.getLogger("slca")


def train(config: Config, out_dir: str | Path = "logs", *, name: str | None = None, resume: bool = False) -> RunResult:
    """Train and evaluate one experiment over all its seeds.

    Args:
        config: from `load_config`.
        out_dir: results go to <out_dir>/<name>/<run>/.
        name: the experiment's name; default `model_name`.
        resume: continue the newest unfinished run of this name, if there is one.

    Returns:
        The figures that results.json holds.

    Raises:
        UserError: something the user can mend: settings, data, weights, device, disk.
    """
    config = resolve_config(config)
    fabric = make_fabric(config.device, config.precision)
    launch(fabric)
    run = on_first(fabric, lambda: RunFolder.open(Path(out_dir) / (name or config.model_name), config, resume=resume))
    with _terminal_log():
        log.info(f"run folder: {run.path}")
        result = _empty_result(config)
        for seed in config.seeds:
            session = Session(config, seed, fabric, run.path / f"seed{seed}")
            with _file_log(session.folder / "log.txt") if fabric.is_global_zero else nullcontext():
                result.environment["weights"] = session.net.backbone.weights
                result.class_names = session.class_names()
                session.resume() if resume else None
                session.run()
            result = _with_seed(result, session.result())
            if fabric.is_global_zero:
                _write(result, run.path)
        if fabric.is_global_zero:
            run.finish()
            print(results_table(result))
            print(f"\nreport: {run.path / 'report.html'}\ncurves: {run.path / 'curve.png'}")
    return result


def test(config: Config, out_dir: str | Path = "logs", *, name: str | None = None) -> RunResult:
    """Evaluate a finished or unfinished run from its checkpoints and print the table that the run printed.

    The last task of every seed is evaluated anew; the figures of earlier tasks come from the checkpoint.

    Raises:
        UserError: there is no run, or it has no checkpoint.
    """
    config = resolve_config(config)
    fabric = make_fabric(config.device, config.precision)
    launch(fabric)
    run = RunFolder.newest(Path(out_dir) / (name or config.model_name))
    result = _empty_result(config)
    for seed in config.seeds:
        session = Session(config, seed, fabric, run.path / f"seed{seed}")
        checkpoint = session.store.newest()
        if checkpoint is None:
            log.warning(f"seed {seed}: no checkpoint in {session.store.folder}")
            continue
        session.load(checkpoint)
        session.figures.drop_after(checkpoint.task)
        session.evaluate(checkpoint.task)
        result = _with_seed(result, session.result())
    if not result.seeds:
        raise UserError(f"test_only: {run.path} has no checkpoint to evaluate; train first (keep_checkpoints must not be 'none')")
    if fabric.is_global_zero:
        print(results_table(result))
    return result


@dataclass
class Figures:
    """What one seed has measured so far; saved with every checkpoint."""

    top1_curve: list[float] = field(default_factory=list)
    top5_curve: list[float] = field(default_factory=list)
    task_il_curve: list[float] = field(default_factory=list)
    accuracy_rows: list[list[float | None]] = field(default_factory=list)  # row t: R[t][0..t]
    grouped: list[dict[str, float | None]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    peak_memory_mb: float = 0.0
    memory_bytes: dict[str, int] = field(default_factory=dict)

    def add(self, evaluation: metrics.Evaluation) -> None:
        self.top1_curve.append(evaluation.top1)
        self.top5_curve.append(evaluation.top5)
        self.task_il_curve.append(evaluation.task_il)
        self.accuracy_rows.append(evaluation.task_accuracies)
        self.grouped.append(evaluation.grouped)

    def drop_after(self, task: int) -> None:
        """Forget task `task` and everything later."""
        for curve in (self.top1_curve, self.top5_curve, self.task_il_curve, self.accuracy_rows, self.grouped):
            del curve[task:]


class Session:
    """One seed of one run: data, network, learner, monitor, figures."""

    def __init__(self, config: Config, seed: int, fabric: Fabric, folder: Path) -> None:
        self.config, self.seed, self.fabric, self.folder = config, seed, fabric, folder
        first = fabric.is_global_zero  # of several processes one writes
        if first:
            folder.mkdir(parents=True, exist_ok=True)
        method = learner_class(config.model_name)
        backbone = make_backbone(config)
        from_backbone = {"mean": backbone.mean, "std": backbone.std} if config.normalize == "backbone" else {}
        self.data = DataManager(config, seed, channels=backbone.channels, rank=fabric.global_rank, world_size=fabric.world_size,
                                device=fabric.device, **from_backbone)
        self.net = IncrementalNet(backbone)
        self.learner: BaseLearner = method(config, self.data, self.net, fabric)
        self.figures = Figures()
        self.store = CheckpointStore(folder / "checkpoints", config.keep_checkpoints if first else "none", warn=log.warning)
        self.monitor = RunMonitor(folder, self.store, log, lambda: vars(self.figures), writes=first)
        self.first_task = 0

    def run(self) -> None:
        """Learn and evaluate every task from `first_task` on."""
        weights = self.net.backbone.weights
        log.info(f"seed {self.seed}: {self.data.num_classes} classes in {self.data.num_tasks} tasks on {self.fabric.device}; "
                 f"weights {weights['source']} {weights['sha256'][:12]}")
        for task in range(self.first_task, self.data.num_tasks):
            self.learner.learn_task(task, self.monitor)
            self.evaluate(task)
            self.save(task)
            accuracy = self.figures.accuracy_rows[-1]
            log.info(f"task {task + 1}/{self.data.num_tasks} done  classes {self.data.classes_upto(task)}  "
                     f"top-1 {self.figures.top1_curve[-1]:.2f}  per task {' '.join('-' if a is None else f'{a:.1f}' for a in accuracy)}")

    def evaluate(self, task: int) -> None:
        with self.monitor.stage("evaluation"):
            evaluation = self.learner.evaluate(task)
        self.figures.add(evaluation)
        self.figures.seconds = dict(self.monitor.seconds)
        self.figures.peak_memory_mb = max(self.figures.peak_memory_mb, peak_memory_mb(self.fabric.device))
        self.figures.memory_bytes = self.learner.memory_bytes()
        self.monitor.write({"kind": "task", "task": task, "top1": evaluation.top1, "top5": evaluation.top5,
                            "task_il": evaluation.task_il, "per_task": evaluation.task_accuracies})

    def save(self, task: int) -> None:
        self.store.save(task, None, weights=self.learner.network_state(), state=self.learner.extra_state(), meta=vars(self.figures))

    def resume(self) -> None:
        """Continue after the newest undamaged checkpoint, inside a task where there is one."""
        done = self.store.newest()
        if done is not None:
            self.load(done)
            self.first_task = done.task + 1
        inside = self.store.newest(inside=self.first_task)
        self.monitor.resume_from = inside
        if inside is not None:
            self.restore_figures(inside)
        self.monitor.forget_after(self.first_task, inside.epoch if inside and inside.epoch else 0)
        if done or inside:
            log.info(f"seed {self.seed}: resuming at task {self.first_task + 1}")

    def load(self, checkpoint: Checkpoint) -> None:
        """Put the learner back to where it was when the checkpoint was written."""
        self.learner.load_network_state(checkpoint.weights, checkpoint.task)
        device = self.fabric.device
        self.learner.load_extra_state({name: tensor.to(device) for name, tensor in checkpoint.state.items()})
        self.restore_figures(checkpoint)

    def restore_figures(self, checkpoint: Checkpoint) -> None:
        self.figures = Figures(**checkpoint.meta)
        self.monitor.seconds.update(self.figures.seconds)

    def result(self) -> SeedResult:
        f = self.figures
        tasks = len(f.accuracy_rows)
        matrix = [row + [None] * (tasks - len(row)) for row in f.accuracy_rows]
        return SeedResult(
            seed=self.seed, class_order=self.data.class_order, task_sizes=self.data.task_sizes[:tasks],
            top1_curve=f.top1_curve, top5_curve=f.top5_curve, accuracy_matrix=matrix, task_il_curve=f.task_il_curve,
            last=f.top1_curve[-1] if f.top1_curve else None, average_incremental=metrics.average_incremental(f.top1_curve),
            forgetting=metrics.forgetting(matrix), backward_transfer=metrics.backward_transfer(matrix), grouped=f.grouped,
            stage_seconds=f.seconds, peak_memory_mb=f.peak_memory_mb, memory_bytes=f.memory_bytes,
            parameters=count_parameters(self.learner))

    def class_names(self) -> list[str]:
        """Names by the data set's own label."""
        names = [""] * self.data.num_classes
        for name, label in zip(self.data.class_names, self.data.class_order):
            names[label] = name
        return names


def make_backbone(config: Config, device: str = "cpu") -> Backbone:
    """The backbone of a config with its weights; device "meta" gives shapes alone. Raises UserError."""
    if not config.pretrained and device != "meta":
        log.warning("pretrained is false: the backbone starts from random weights; the Slow Learner needs pre-trained ones")
    return build_backbone(backbone_entry(config), pretrained=config.pretrained, reset_norm=config.reset_norm,
                          pool=config.pool, drop_path=config.drop_path, grad_checkpointing=config.grad_checkpointing,
                          generator_seed=config.torch_seed, device=device)


def peak_memory_mb(device: torch.device) -> float:
    """Peak memory of this process so far: the device's where it keeps count, else the main memory's, in MiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def _empty_result(config: Config) -> RunResult:
    method = learner_class(config.model_name)
    return RunResult(config=config.model_dump(mode="json"), environment=dict(environment()), seeds=[],
                     method=resolve_name(config.model_name), title=method.title_of(config), rehearsal_free=method.rehearsal_free)


def _with_seed(result: RunResult, seed: SeedResult) -> RunResult:
    """The result with one more seed and a new summary."""
    return RunResult(config=result.config, environment=result.environment, seeds=[*result.seeds, seed], method=result.method,
                     title=result.title, rehearsal_free=result.rehearsal_free, class_names=result.class_names)


def _write(result: RunResult, folder: Path) -> None:
    write_results(result, folder)
    write_report(result, folder)


@contextmanager
def _terminal_log() -> Iterator[None]:
    handler = logging.StreamHandler(sys.stdout)
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)


@contextmanager
def _file_log(path: Path) -> Iterator[None]:
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s  %(message)s"))
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        handler.close()
