"""One seed of a run: the loop over tasks, what is measured after each, and checkpoints, out of which it can go on. Names no method."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from models.anytime import AnytimeAccuracy
from models.evaluation import accuracy_on_all_domains
from models.stage1 import TrainingState
from models.tools.build import make_learner
from models.tools.dry_run import count_parameters
from models.unknown import unknown_figures
from utils.config import MethodSettings
from utils.data.added import Learned
from utils.data.data_manager import DataManager
from utils.data.fingerprint import changes
from utils.data.stream import StoredData
from utils.errors import DataChanged, UserError
from utils.files import storage_errors_told
from utils.formulas import metrics
from utils.last_resort import one_sentence
from utils.machine.peak_memory import peak_memory_mb
from utils.machine.speed import arithmetic
from utils.report.results import HEADLINES, SeedResult
from utils.report.tables import seconds_text
from utils.run.checkpoint import Checkpoint, CheckpointStore, check_base_weights, optimizer_tensors, write_tensors_atomic
from utils.run.events import Events
from utils.run.figures import Figures
from utils.run.interrupt import check_stop
from utils.run.metrics_file import METRICS
from utils.run.monitor import RunMonitor
from utils.run.parent import Parent
from utils.run.profiling import ProfilingMonitor
from utils.run.time_left import seconds_left

log = logging.getLogger("slca")
Edit = Callable[[Checkpoint], Checkpoint]

SHOWN_TASKS = 20  # accuracies in a log line


class Session:
    """One seed of one run: data, network, learner, monitor, figures, checkpoints."""

    def __init__(self, config: MethodSettings, seed: int, fabric: Fabric, folder: Path, share_images_of: DataManager | None = None,
                 profile: bool = False, parent: Parent | None = None, edit: Edit | None = None, events: Events | None = None) -> None:
        self.config, self.seed, self.fabric, self.folder = config, seed, fabric, folder
        first = fabric.is_global_zero  # of several processes one writes
        if not config.pretrained:
            log.warning("pretrained is false: the backbone starts from random weights; the Slow Learner needs pre-trained ones")
        self.parent = parent
        self.start = None if parent is None else parent.checkpoint(seed)  # where the run begins that goes on from another's
        if edit is not None:
            self.start = edit(self.start)
        self.learned_before = -1 if edit is None else self.start.task  # the task up to which nothing is to be learned
        self.learner = make_learner(config, seed, fabric, share_images_of=share_images_of,
                                    learned=None if self.start is None else Learned.of(self.start.meta, extended=edit is None))
        self.data, self.net = self.learner.data, self.learner.net
        self.figures = Figures()
        self.store = CheckpointStore(folder / "checkpoints", config.keep_checkpoints if first else "none", warn=log.warning,
                                     flushed_first=[folder / METRICS])
        monitor = ProfilingMonitor if profile else RunMonitor
        self.events = (events or Events(tells=False)).of(seed=seed)
        self.monitor = monitor(folder, log, self.data.stream.num_tasks, writes=first, events=self.events)
        self.saved_at = time.monotonic()  # when the newest checkpoint was written
        self.first_task = 0
        self.seeds_left = 0  # after this one, for the expected time
        self.inside: Checkpoint | None = None  # where an interrupted run was inside `first_task`
        self._untrained: tuple[frozenset[str], str] | None = None  # what checkpoints leave out: names, checksum

    def run(self) -> None:
        """Learn and evaluate every task from `first_task` on; when this returns, the last checkpoint is on the disk."""
        weights, stream = self.net.backbone.weights, self.data.stream
        log.info(f"seed {self.seed}: {stream.num_classes} classes in {stream.num_tasks} tasks on {self.fabric.device} in "
                 f"{arithmetic(self.config.model_dump())}; "
                 f"weights {weights['source']} {weights['sha256'][:12]} {weights.get('taken', '')}".rstrip())
        with self.events.during("seed", folder=str(self.folder), tasks=stream.num_tasks, classes=stream.num_classes,
                                first_task=self.first_task + 1) as end, self.store.settled():
            for task in range(self.first_task, stream.num_tasks):
                check_stop()
                self.events.tell("task_start", task=task + 1, classes=[stream.class_names[c] for c in stream.classes_of(task)])
                inside, self.inside = self.inside, None
                start = None if inside is None else TrainingState(inside.epoch or 0, inside.weights, inside.state)
                if task > self.learned_before:
                    if self.config.blurry is not None and self.parent is None:
                        self.learner.after_step = AnytimeAccuracy(self.learner, task, self.figures.anytime)
                    self.learner.learn_task(task, self.monitor, start, self.save_inside_task)
                self.record(self.measure(task))
                self.save(task)
                shown = [metrics.percent_text(accuracy) for accuracy in self.figures.accuracy_rows[-1]]
                if len(shown) > SHOWN_TASKS:  # the log would grow with the square of the tasks
                    shown = [*shown[:2], "...", *shown[2 - SHOWN_TASKS:]]
                log.info(f"task {task + 1}/{stream.num_tasks} done  classes {stream.classes_upto(task)}  "
                         f"top-1 {metrics.percent_text(self.figures.top1_curve[-1])}  per task {' '.join(shown)}")
                self.tell_time_left(task)
            result = self.result()
            end |= {key: getattr(result, key) for key in HEADLINES}
        self.store.tidy(stream.num_tasks - 1, None)  # what a failing disk did not let go the first time

    def time_left(self) -> float | None:
        """Seconds that the rest of the run will take, the other seeds too; None where nothing tells."""
        told = self.figures.whole(self.figures.task_seconds)
        return seconds_left(told, self.data.stream.task_sizes, self.seeds_left) if told else None

    def tell_time_left(self, task: int) -> None:
        """The same in the log, while there is something left."""
        tasks, seconds = self.data.stream.num_tasks - task - 1, self.time_left()
        if seconds is not None and (tasks or self.seeds_left):
            log.info(f"about {seconds_text({'mean': seconds, 'std': None})} left: {tasks} tasks, {self.seeds_left} more seeds")

    def measure(self, task: int) -> metrics.Evaluation:
        """Evaluate after `task` and add that to the figures."""
        with self.monitor.stage("evaluation"):
            evaluation = self.learner.evaluate(task)
            if self.data.unmeasured:
                evaluation = metrics.without_old_images(evaluation)
            validation = self.learner.evaluate(task, "val").top1 if self.config.val_fraction and self.parent is None else None
            few_shot = self.config.few_shot is not None
            harmonic = metrics.harmonic_accuracy(evaluation.base, evaluation.novel) if few_shot else None
            self.figures.add(evaluation, validation, accuracy_on_all_domains(self.learner), harmonic, unknown_figures(self.learner, task))
        self.figures.add_times(self.monitor.seconds, self.monitor.trained_images, self.monitor.take_spans())
        self.figures.peak_memory_mb = max(self.figures.peak_memory_mb, peak_memory_mb(self.fabric.device))
        self.figures.memory_curve.append(self.learner.memory_bytes())
        self.figures.diagnostics.append(self.learner.diagnostics())
        return evaluation

    def record(self, evaluation: metrics.Evaluation) -> None:
        f = self.figures
        self.monitor.write({"kind": "task", "task": self.learner.task + 1, "tasks": self.data.stream.num_tasks,
                            "top1": evaluation.top1, "top5": evaluation.top5, "validation": f.validation_curve[-1],
                            "task_il": evaluation.task_il, "per_task": evaluation.task_accuracies,
                            "calibration_error": evaluation.calibration_error, "unknown": f.unknown_curve[-1],
                            "memory_bytes": f.memory_curve[-1], "diagnostics": f.diagnostics[-1], "seconds": {"left": self.time_left()}})

    # Checkpoints -----------------------------------------------------------------------------------------------

    def save(self, task: int) -> None:
        """After a task: everything that the next one needs, and the files that the method wants beside it."""
        if self.fabric.is_global_zero:
            for name, tensors in self.learner.files(task).items():
                with storage_errors_told(self.folder / f"{name}.safetensors") as path:
                    write_tensors_atomic(path, tensors)
        weights = self.learner.network_state()
        self.store.save(task, None, weights=weights, state=self.learner.extra_state(), meta=self.meta(weights),
                        parts=self.learner.state_parts(), beside=True)
        self.saved_at = time.monotonic()

    def save_inside_task(self, epochs: int, optimizer: torch.optim.Optimizer) -> None:
        """After `epochs` epochs of the learner's task, as often as `checkpoint_every` or `checkpoint_minutes` say."""
        c = self.config
        due = time.monotonic() - self.saved_at >= 60 * c.checkpoint_minutes
        if due if c.checkpoint_every is None else epochs % c.checkpoint_every == 0:
            self.saved_at = time.monotonic()
            weights = self.learner.network_state()
            self.store.save(self.learner.task, epochs, weights=weights,
                            state={**optimizer_tensors(optimizer), **self.learner.epoch_state()}, meta=self.meta(weights), beside=True)

    def meta(self, weights: Mapping[str, Tensor]) -> dict[str, Any]:
        """What a checkpoint of `weights` holds beside tensors; with them it is all that a prediction needs."""
        left_out = frozenset(self.net.state_dict()) - weights.keys()  # the same in every task for most methods
        if self._untrained is None or self._untrained[0] != left_out:
            self._untrained = left_out, self.learner.untrained_sha256(weights)
        return {"figures": {**vars(self.figures), "seconds": self.monitor.seconds_so_far(),
                            "trained_images": self.monitor.trained_images}, "base_sha256": self._untrained[1],
                "precision": self.fabric.strategy.precision.state_dict(), "data": self.data.stored.to_json(), "seed": self.seed,
                "temperature": self.learner.temperature,
                "fingerprint": self.data.fingerprint, **({} if self.parent is None else {"parent": self.parent.proof(self.seed)})}

    def test(self, after_task: int | None) -> bool:
        """Evaluate the newest checkpoint, or the one after task `after_task` (from 1); False where there is none."""
        checkpoint = self.store.newest(None if after_task is None else after_task - 1)
        if checkpoint is None or (after_task is not None and checkpoint.task != after_task - 1):
            there = ", ".join(self.store.names()) or "none"
            log.warning(f"seed {self.seed}: no such checkpoint in {self.store.folder}; there are: {there}")
            return False
        self.load(checkpoint)
        reported = list(self.figures.top1_curve)
        self.figures.drop_after(checkpoint.task)
        self.measure(checkpoint.task)
        if self.figures.top1_curve != reported:
            log.warning(f"seed {self.seed}: top-1 is {self.figures.top1_curve[-1]} here, the run reported {reported[-1]}: another device, "
                        "number of threads, test_batch_size or version of torch?")
        return True

    def resume(self) -> None:
        """Continue after the newest undamaged checkpoint, inside a task where there is one. Raises UserError."""
        done = self.store.newest()
        if done is not None:
            self.load(done)
            self.first_task = done.task + 1
        elif self.start is not None:
            self.load_parent(self.start)
            self.first_task = self.start.task + (0 if self.start.task == self.learned_before else 1)
            self.figures.drop_after(self.first_task)
        self.start = None  # its tensors are in the learner
        inside = self.inside = self.store.newest(inside=self.first_task)
        if inside is not None:
            self.restore_meta(inside)
        epoch = inside.epoch if inside else None
        self.store.tidy(*((self.first_task, epoch) if epoch else (self.first_task - 1, None)))
        self.monitor.forget_after(self.first_task, epoch or 0)
        if done or inside:
            log.info(f"seed {self.seed}: resuming at task {self.first_task + 1}")

    def load_parent(self, checkpoint: Checkpoint) -> None:
        """Put the learner to where the parent's was, with room for one more task. Raises UserError."""
        log.info(f"seed {self.seed}: goes on from {self.parent.path} after task {checkpoint.task + 1}")
        try:
            self.load(replace(checkpoint, weights=self.learner.grown(checkpoint.weights)), of_parent=True)
        except (AssertionError, KeyError, RuntimeError) as error:  # a setting shapes the network, and is another now
            raise UserError(f"what {self.parent.path} learned does not fit the settings: {one_sentence(error)}. Leave out of --set what "
                            "shapes the network or the statistics") from None

    def load(self, checkpoint: Checkpoint, of_parent: bool = False) -> None:
        """Put the learner back to where it was when the checkpoint was written. Raises UserError."""
        self.restore_meta(checkpoint, of_parent)
        self.learner.load_network_state(checkpoint.weights, checkpoint.task)
        device = self.fabric.device
        self.learner.load_extra_state({name: tensor.to(device) for name, tensor in checkpoint.state.items()})
        self.learner.temperature = checkpoint.meta.get("temperature", self.learner.temperature)  # older ones have the Gaussians' alone

    def restore_meta(self, checkpoint: Checkpoint, of_parent: bool = False) -> None:
        """Figures and the loss scaler's state, after a check that data and frozen base weights are the same. Raises UserError."""
        if not of_parent:
            self.check_data(checkpoint)
        check_base_weights(checkpoint, self.learner.untrained_sha256(checkpoint.weights), self.store.folder,
                           self.net.backbone.weights["source"])
        self.fabric.strategy.precision.load_state_dict(checkpoint.meta["precision"])
        try:
            self.figures = Figures(**checkpoint.meta["figures"])
        except TypeError:
            raise UserError(f"{self.store.folder}: another version of this program wrote these checkpoints, with other figures; "
                            "continue with that version, or start a new run") from None
        self.monitor.continue_after(self.figures.seconds, self.figures.trained_images, self.figures.timeline)

    def check_data(self, checkpoint: Checkpoint) -> None:
        """Raises DataChanged when the checkpoint is of another seed, of other images, or of another stream of tasks."""
        meta, where = checkpoint.meta, self.store.folder / checkpoint.name
        try:
            written_by, before, stream = meta["seed"], meta["fingerprint"], StoredData.from_json(meta["data"]).stream
        except (KeyError, TypeError):
            raise UserError(f"{where}: another version of this program wrote this checkpoint; continue with that version, or start a new "
                            "run") from None
        if written_by != self.seed:
            raise DataChanged(f"{where} was written by seed {written_by}, but this is seed {self.seed}; put the seeds' folders back as "
                              "they were, or start a new run")
        told = changes(before, self.data.fingerprint)
        if not told and stream != self.data.stream:
            told = ["the classes of the tasks, their order or the images that the protocol takes are others"]
        if told:
            raise DataChanged(f"the data have changed since {where} was written: {'; '.join(told)}. Put them back as they were, or start a "
                              "new run on the new data (without --resume)")

    def result(self) -> SeedResult:
        f, c = self.figures, self.config
        tasks = len(f.accuracy_rows)
        matrix = [row + [None] * (tasks - len(row)) for row in f.accuracy_rows]
        return SeedResult(
            seed=self.seed, class_order=self.data.stream.class_order, task_sizes=self.data.stream.task_sizes[:tasks],
            top1_curve=f.top1_curve, top5_curve=f.top5_curve, accuracy_matrix=matrix, task_il_curve=f.task_il_curve,
            last=f.top1_curve[-1] if f.top1_curve else None, average_incremental=metrics.average_incremental(f.top1_curve),
            forgetting=metrics.forgetting(matrix), backward_transfer=metrics.backward_transfer(matrix), grouped=f.grouped,
            validation_curve=f.validation_curve, all_domains_curve=f.all_domains_curve,
            stage_seconds=f.seconds, peak_memory_mb=f.peak_memory_mb, memory_curve=f.memory_curve, diagnostics=f.diagnostics,
            parameters=count_parameters(self.learner), class_accuracies=f.whole(f.class_accuracies), confusion=f.confusion,
            old_as_new_curve=f.whole(f.old_as_new_curve), new_as_old_curve=f.whole(f.new_as_old_curve),
            calibration_curve=f.whole(f.calibration_curve), uncalibrated_curve=f.whole(f.uncalibrated_curve),
            unknown_curve=f.whole(f.unknown_curve), harmonic_curve=f.whole(f.harmonic_curve) if c.few_shot else [],
            anytime=f.anytime, task_seconds=f.whole(f.task_seconds), task_images=f.whole(f.task_images),
            timeline=f.timeline)
