"""Run one experiment: seeds, device, the loop over tasks, checkpoints and results. Names no method.

    from trainer import train
    from utils.config import load_config
    result = train(load_config("exps/slca_demo.json"))
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from models import learner_class, resolve_config, resolve_name
from models.evaluation import accuracy_on_all_domains
from models.stage1 import TrainingState
from models.tools.build import make_learner
from models.tools.dry_run import count_parameters
from utils.config import Config, MethodSettings
from utils.data.added import Learned
from utils.data.data_manager import DataManager
from utils.data.fingerprint import changes, digest
from utils.data.stream import StoredData
from utils.errors import DataChanged, RunFailed, StorageError, UserError
from utils.files import DISK_ERRORS, disk_errors_as_user_error, storage_errors_told
from utils.formulas import metrics
from utils.last_resort import keep_traceback, one_sentence
from utils.machine.deterministic import deterministic_kernels
from utils.machine.device import make_fabric
from utils.machine.distributed import launch, on_first, processes_ended_on_error
from utils.machine.environment import environment
from utils.machine.out_of_memory import out_of_memory_as_user_error
from utils.machine.peak_memory import peak_memory_mb, reset_peak_memory
from utils.machine.speed import arithmetic
from utils.report.page import report_is_there, write_report
from utils.report.results import RunResult, SeedResult, read_results, tables_are_current, write_results
from utils.report.tables import results_table, seconds_text
from utils.run.checkpoint import Checkpoint, CheckpointStore, check_base_weights, optimizer_tensors, write_tensors_atomic
from utils.run.figures import Figures
from utils.run.interrupt import check_stop
from utils.run.logs import file_log, terminal_log
from utils.run.metrics_file import METRICS
from utils.run.monitor import RunMonitor
from utils.run.parent import Parent
from utils.run.profiling import ProfilingMonitor
from utils.run.run_folder import RunFolder, experiment_folder
from utils.run.time_left import seconds_left
from utils.terminal import show

log = logging.getLogger("slca")
Edit = Callable[[Checkpoint], Checkpoint]

SHOWN_TASKS = 20  # accuracies in a log line


def train(config: Config, out_dir: str | Path = "logs", *, name: str | None = None, resume: bool = False,
          profile: bool = False, parent: Parent | None = None, edit: Edit | None = None) -> RunResult:
    """Train and evaluate one experiment over all its seeds.

    Args:
        config: from `load_config`.
        out_dir: results go to <out_dir>/<name>/<run>/.
        name: the experiment's name; default `model_name`.
        resume: continue the newest unfinished run of this name, if there is one.
        profile: trace every stage once (utils/run/profiling.py).
        parent: the run that this one goes on from with the last task of `added` (models/tools/extend.py).
        edit: learn no task, but change in each seed's checkpoint of the parent what is known (models/tools/forget.py).

    Returns:
        The figures that results.json holds.

    Raises:
        UserError: something the user can mend: settings, data, weights, device, disk.
    """
    config = resolve_config(config)
    out_dir, resume = Path(out_dir), resume or config.resume == "auto"
    with terminal_log(), deterministic_kernels(config.deterministic), disk_errors_as_user_error(out_dir), ExitStack() as held:
        fabric = make_fabric(config.device, config.precision, config.tf32)
        launch(fabric)
        held.enter_context(processes_ended_on_error(fabric))

        def open_run() -> tuple[RunFolder, RunResult]:
            run = RunFolder.open(out_dir, name or config.model_name, config, resume=resume, device=fabric.device,
                                 parent=None if parent is None else parent.to_json())
            if not run.finished:
                held.enter_context(run.lock())
            return run, _results_so_far(config, run, fabric.device)

        run, result = on_first(fabric, open_run)
        log.info(f"run folder: {run.path}")
        if run.finished:
            log.info("finished already, nothing to resume; without --resume a new run starts")
            if fabric.is_global_zero and not (tables_are_current(result, run.path) and report_is_there(run.path)):
                with run.lock():  # tidies too
                    _write(result, run.path)
        else:
            result = _train_seeds(config, fabric, run, result, profile, parent, edit)
        if fabric.is_global_zero:
            show(results_table(result))
            show(f"\nreport: {run.path / 'report.html'}\ncurves: {run.path / 'curve.png'}")
    return result


def _train_seeds(config: Config, fabric: Fabric, run: RunFolder, result: RunResult, profile: bool, parent: Parent | None = None,
                 edit: Edit | None = None) -> RunResult:
    """All seeds of one run but those that `result` has already. Raises UserError."""
    failures: dict[int, str] = {}
    images: DataManager | None = None  # the first seed's; the others take over what it decoded
    finished = {done.seed for done in result.seeds}
    if result.seeds and fabric.is_global_zero:
        _write(result, run.path)  # a run that was killed after results.json has older pages and pictures
    for seed in config.seeds:
        if any(done.seed == seed for done in result.seeds):
            log.info(f"seed {seed}: finished already")
            continue
        reset_peak_memory(fabric.device)
        try:  # what fails here fails for every seed: settings, data and weights are the same for all
            with out_of_memory_as_user_error(config):
                session = Session(config, seed, fabric, run.path / f"seed{seed}", share_images_of=images, profile=profile, parent=parent,
                                  edit=edit)
        except BaseException:
            if fabric.is_global_zero and not result.seeds and not failures:
                run.discard()
            raise
        images = session.data
        session.seeds_left = sum(other not in finished for other in config.seeds[config.seeds.index(seed) + 1:])
        with file_log(session.folder / "log.txt", session.data.notes) if fabric.is_global_zero else nullcontext():
            try:
                session.resume()
                with out_of_memory_as_user_error(config, session.monitor):
                    session.run()
            except (StorageError, DataChanged):  # no other seed would fare better
                raise
            except Exception as error:  # the other seeds are not lost with this one
                if len(config.seeds) == 1 or fabric.world_size > 1:  # other processes would wait for this one
                    raise
                failures[seed] = one_sentence(error)
                log.error(f"seed {seed} failed: {one_sentence(error)}", exc_info=None if isinstance(error, UserError) else error)
                del session  # with its network, before the next seed's is made
                continue
        result.environment["weights"] = session.net.backbone.weights
        result.environment["images"] = {"size": session.data.info.image_size, "fingerprint": digest(session.data.fingerprint)}
        if session.data.notes:
            result.environment["data"] = list(session.data.notes)
        result.class_names = session.data.stream.names_by_own_label()
        result = _with_seed(result, session.result())
        del session
        if fabric.is_global_zero:
            _write(result, run.path)
    if failures:
        told = "; ".join(f"seed {seed}: {words}" for seed, words in failures.items())
        raise RunFailed(f"{run.path}: {len(failures)} of {len(config.seeds)} seeds failed, the results of the others are written. {told} "
                        "The same command with --resume tries the failed ones again.")
    if fabric.is_global_zero:
        run.finish()
    return result


def test(config: Config, out_dir: str | Path = "logs", *, name: str | None = None, after_task: int | None = None) -> RunResult:
    """Evaluate a finished or unfinished run from its checkpoints and print the table that the run printed.

    The last task of every seed is evaluated anew; the figures of earlier tasks come from the checkpoint. Writes nothing.

    Args:
        after_task: evaluate the checkpoint after this task, counted from 1; default the newest.

    Raises:
        UserError: there is no run of this config, or it has no such checkpoint.
    """
    config = resolve_config(config)
    with terminal_log(), deterministic_kernels(config.deterministic), ExitStack() as held:
        fabric = make_fabric(config.device, config.precision, config.tf32)
        launch(fabric)
        held.enter_context(processes_ended_on_error(fabric))
        run = on_first(fabric, lambda: RunFolder.newest(experiment_folder(Path(out_dir), name or config.model_name), config))
        result = replace(_results_so_far(config, run, fabric.device), seeds=[])
        parent = Parent.from_json(run.status()["parent"]) if "parent" in run.status() else None
        for seed in config.seeds:
            with out_of_memory_as_user_error(config):
                session = Session(config, seed, fabric, run.path / f"seed{seed}", parent=parent)
            with out_of_memory_as_user_error(config, session.monitor):
                tested = session.test(after_task)
            if tested:
                result = _with_seed(result, session.result())
    if not result.seeds:
        asked = "" if after_task is None else f" after task {after_task}"
        there = ", ".join(CheckpointStore(run.path / f"seed{config.seeds[0]}" / "checkpoints").names())
        advice = (f"there are {there} of seed {config.seeds[0]} (keep_checkpoints 'all' keeps every task's)" if there
                  else "train first (keep_checkpoints must not be 'none')")
        raise UserError(f"--test_only: {run.path} has no checkpoint{asked} to evaluate; {advice}")
    if fabric.is_global_zero:
        show(results_table(result))
    return result


class Session:
    """One seed of one run: data, network, learner, monitor, figures, checkpoints."""

    def __init__(self, config: MethodSettings, seed: int, fabric: Fabric, folder: Path, share_images_of: DataManager | None = None,
                 profile: bool = False, parent: Parent | None = None, edit: Edit | None = None) -> None:
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
        self.monitor = monitor(folder, log, self.data.stream.num_tasks, writes=first)
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
        with self.store.settled():
            for task in range(self.first_task, stream.num_tasks):
                check_stop()
                inside, self.inside = self.inside, None
                start = None if inside is None else TrainingState(inside.epoch or 0, inside.weights, inside.state)
                if task > self.learned_before:
                    self.learner.learn_task(task, self.monitor, start, self.save_inside_task)
                self.record(self.measure(task))
                self.save(task)
                shown = [metrics.percent_text(accuracy) for accuracy in self.figures.accuracy_rows[-1]]
                if len(shown) > SHOWN_TASKS:  # the log would grow with the square of the tasks
                    shown = [*shown[:2], "...", *shown[2 - SHOWN_TASKS:]]
                log.info(f"task {task + 1}/{stream.num_tasks} done  classes {stream.classes_upto(task)}  "
                         f"top-1 {metrics.percent_text(self.figures.top1_curve[-1])}  per task {' '.join(shown)}")
                self.tell_time_left(task)
        self.store.tidy(stream.num_tasks - 1, None)  # what a failing disk did not let go the first time

    def tell_time_left(self, task: int) -> None:
        """How long the rest of the run will take, the other seeds too."""
        tasks, told = self.data.stream.num_tasks - task - 1, self.figures.whole(self.figures.task_seconds)
        if told and (tasks or self.seeds_left):
            seconds = seconds_left(told, self.data.stream.task_sizes, self.seeds_left)
            log.info(f"about {seconds_text({'mean': seconds, 'std': None})} left: {tasks} tasks, {self.seeds_left} more seeds")

    def measure(self, task: int) -> metrics.Evaluation:
        """Evaluate after `task` and add that to the figures."""
        with self.monitor.stage("evaluation"):
            evaluation = self.learner.evaluate(task)
            if self.data.unmeasured:
                evaluation = metrics.without_old_images(evaluation)
            validation = self.learner.evaluate(task, "val").top1 if self.config.val_fraction and self.parent is None else None
            self.figures.add(evaluation, validation, accuracy_on_all_domains(self.learner))
        self.figures.add_times(self.monitor.seconds, self.monitor.trained_images, self.monitor.take_spans())
        self.figures.peak_memory_mb = max(self.figures.peak_memory_mb, peak_memory_mb(self.fabric.device))
        self.figures.memory_curve.append(self.learner.memory_bytes())
        self.figures.diagnostics.append(self.learner.diagnostics())
        return evaluation

    def record(self, evaluation: metrics.Evaluation) -> None:
        self.monitor.write({"kind": "task", "task": self.learner.task + 1, "top1": evaluation.top1, "top5": evaluation.top5,
                            "task_il": evaluation.task_il, "per_task": evaluation.task_accuracies,
                            "calibration_error": evaluation.calibration_error,
                            "memory_bytes": self.figures.memory_curve[-1], "diagnostics": self.figures.diagnostics[-1]})

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
            told = ["the classes of the tasks or their order are others"]
        if told:
            raise DataChanged(f"the data have changed since {where} was written: {'; '.join(told)}. Put them back as they were, or start a "
                              "new run on the new data (without --resume)")

    def result(self) -> SeedResult:
        f = self.figures
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
            calibration_curve=f.whole(f.calibration_curve), task_seconds=f.whole(f.task_seconds), task_images=f.whole(f.task_images),
            timeline=f.timeline)


def _empty_result(config: MethodSettings, device: torch.device) -> RunResult:
    method = learner_class(config.model_name)
    return RunResult(config=config.model_dump(mode="json"), environment=dict(environment(device)), seeds=[],
                     method=resolve_name(config.model_name), title=method.title_of(config), rehearsal_free=method.rehearsal_free)


def _results_so_far(config: MethodSettings, run: RunFolder, device: torch.device) -> RunResult:
    """The results that an interrupted run has written, else an empty one."""
    file = run.path / "results.json"
    return read_results(file) if file.exists() else _empty_result(config, device)


def _with_seed(result: RunResult, seed: SeedResult) -> RunResult:
    """The result with one more seed, in the config's order, and a new summary."""
    order = result.config["seed"]
    seeds = sorted([*result.seeds, seed], key=lambda s: order.index(s.seed) if isinstance(order, list) else 0)
    return replace(result, seeds=seeds, summary={})


def _write(result: RunResult, folder: Path) -> None:
    """Results first, so that no failure of a page or picture loses a finished seed. Raises StorageError, or OSError: the disk is full."""
    with storage_errors_told(folder / "results.json"):
        write_results(result, folder)
    try:
        write_report(result, folder)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            raise
        log.warning(f"{folder / 'report.html'} could not be made: {one_sentence(error)}. All figures are in results.json and results.csv; "
                    f"the traceback is in {keep_traceback(error)}")
