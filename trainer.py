"""Run one experiment: device, seeds (each one a session, models/session.py) and results. Names no method.

    from trainer import train
    from utils.config import load_config
    result = train(load_config("exps/slca_demo.json"))
"""

from __future__ import annotations

import logging
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from lightning_fabric import Fabric

from models import learner_class, resolve_config, resolve_name
from models.session import Edit, Session
from models.tools.analyze import analyze_finished, check_analyzed
from utils.config import Config, MethodSettings
from utils.data.data_manager import DataManager
from utils.data.fingerprint import digest
from utils.errors import DataChanged, RunFailed, StorageError, UserError
from utils.files import DISK_ERRORS, disk_errors_as_user_error, storage_errors_told
from utils.last_resort import keep_traceback, one_sentence
from utils.machine.deterministic import deterministic_kernels
from utils.machine.device import make_fabric
from utils.machine.distributed import launch, on_first, processes_ended_on_error
from utils.machine.environment import environment
from utils.machine.out_of_memory import out_of_memory_as_user_error
from utils.machine.peak_memory import reset_peak_memory
from utils.report.page import report_is_there, write_report
from utils.report.results import RunResult, SeedResult, read_results, tables_are_current, write_results
from utils.report.tables import results_table
from utils.run.checkpoint import CheckpointStore
from utils.run.events import Events, Subscriber
from utils.run.interrupt import check_stop
from utils.run.logs import file_log, terminal_log
from utils.run.parent import Parent
from utils.run.run_folder import RunFolder, experiment_folder
from utils.terminal import show
from utils.trackers.open import open_trackers

log = logging.getLogger("slca")


def train(config: Config, out_dir: str | Path = "logs", *, name: str | None = None, resume: bool = False,
          profile: bool = False, parent: Parent | None = None, edit: Edit | None = None,
          on_event: Subscriber | None = None) -> RunResult:
    """Train and evaluate one experiment over all its seeds.

    Args:
        config: from `load_config`.
        out_dir: results go to <out_dir>/<name>/<run>/.
        name: the experiment's name; default `model_name`.
        resume: continue the newest unfinished run of this name, if there is one.
        profile: trace every stage once (utils/run/profiling.py).
        parent: the run that this one goes on from with the last task of `added` (models/tools/extend.py).
        edit: learn no task, but change in each seed's checkpoint of the parent what is known (models/tools/forget.py).
        on_event: called with what the run tells while it goes on, as those of `utils.run.events.subscribe` are.

    Returns:
        The figures that results.json holds.

    Raises:
        UserError: something the user can mend: settings, data, weights, device, disk.
    """
    check_stop()
    config = resolve_config(config)
    out_dir, resume = Path(out_dir), resume or config.resume == "auto"
    with terminal_log(), deterministic_kernels(config.deterministic), disk_errors_as_user_error(out_dir), ExitStack() as held:
        fabric = make_fabric(config.device, config.precision, config.tf32)
        launch(fabric)
        held.enter_context(processes_ended_on_error(fabric))

        listeners = [] if on_event is None else [on_event]

        def open_run() -> tuple[RunFolder, RunResult]:
            listeners.extend(listeners_of(config))
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
            events = Events(listeners, tells=fabric.is_global_zero, run=str(run.path))
            with events.during("run", config=result.config, method=result.name, seeds=config.seeds) as end:
                result = _train_seeds(config, fabric, run, result, profile, parent, edit, events)
                end["summary"] = result.summary
        if config.analyze and fabric.is_global_zero:
            analyze_finished(run, fabric.device)
        if fabric.is_global_zero:
            show(results_table(result))
            show(f"\nreport: {run.path / 'report.html'}\ncurves: {run.path / 'curve.png'}")
    return result


def listeners_of(config: Config) -> list[Subscriber]:
    """The trackers that a config asks for. Raises UserError: one of them, or the analysis at the end, cannot be had."""
    check_analyzed(config)
    return open_trackers(config)


def _train_seeds(config: MethodSettings, fabric: Fabric, run: RunFolder, result: RunResult, profile: bool, parent: Parent | None,
                 edit: Edit | None, events: Events) -> RunResult:
    """All seeds of one run but those that `result` has already. Raises UserError."""
    failures: dict[int, str] = {}
    images: DataManager | None = None  # the first seed's; the others take over what it decoded
    finished = {done.seed for done in result.seeds}
    if result.seeds and fabric.is_global_zero:
        _write(result, run.path)  # a run that was killed after results.json has older pages and pictures
    for seed in config.seeds:
        check_stop()  # also after a seed that failed because half a module was imported
        if any(done.seed == seed for done in result.seeds):
            log.info(f"seed {seed}: finished already")
            continue
        reset_peak_memory(fabric.device)
        try:  # what fails here fails for every seed: settings, data and weights are the same for all
            with out_of_memory_as_user_error(config):
                session = Session(config, seed, fabric, run.path / f"seed{seed}", share_images_of=images, profile=profile, parent=parent,
                                  edit=edit, events=events)
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
        result.environment["images"] = {"size": session.data.info.image_size, "fingerprint": digest(session.data.fingerprint),
                                        **({"split": session.data.split} if session.data.split else {})}
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
