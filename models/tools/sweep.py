"""`python main.py sweep`: many runs of some configs, and which settings are best by validation accuracy.

    sweep.json       what was asked for; the same command goes on with the same folder
    configs/         the JSON file of every run
    runs/            the runs, as of any other command
    points/          a results.json per row of the table, all seeds in it (python main.py compare takes these folders)
    table.*          json, csv, md
    best.json        the best config, which runs as it is
    jobs.json, jobs/, submitit/   the jobs (utils/sweep/queue.py)
    study.db         Optuna's, of a search
    *.png, *.svg, *.pdf   Optuna's pictures
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from models.registry import load_given, resolve_config
from utils.config import Config, MethodSettings
from utils.errors import RunFailed, UserError
from utils.files import storage_errors_told, write_atomic
from utils.json_files import json_text
from utils.last_resort import one_sentence
from utils.report.results import RunResult
from utils.run.locks import folder_lock
from utils.run.runs import runs_in
from utils.sweep.pictures import write_pictures
from utils.sweep.places import Place
from utils.sweep.plan import Point, Run, default_folder, grid_points, remember_request, request_of, seed_runs
from utils.sweep.queue import Job, Queue, State, failures_told
from utils.sweep.side_by_side import place_of
from utils.sweep.space import parse_space
from utils.sweep.study import Search, optuna_module, study_of, validation_so_far
from utils.sweep.table import Row, best_first, finished_result, merged, value_text, write_table
from utils.terminal import show

SEARCH_AT_ONCE = 10  # jobs of a search without --jobs: a trial learns from those that ended before it
NO_VALIDATION = ("{source}: val_fraction is 0, so nothing is held out to choose by, and a sweep never chooses by the test images (their "
                 "accuracy would no longer say what the chosen settings are worth). Hold out a part of the training images, e.g. --set "
                 "val_fraction=0.1. To run several configs side by side without choosing: python main.py --config FILE FILE --on local")


def sweep(arguments: argparse.Namespace) -> None:
    """Run, or go on with, the sweep that the command line describes.

    Raises:
        UserError: settings, place or storage are not as they should be; RunFailed: some of the runs failed.
    """
    space = parse_space(arguments.set)
    configs = Configs(space.fixed, arguments.seeds)
    combinations = list(space.ends()) if arguments.search else space.grid()
    checked = [configs.resolved(file, values) for file in arguments.config for values in combinations]  # every mistake before the first run
    place = place_of(arguments, checked, arguments.search or len(checked) * max(len(config.seeds) for config in checked))
    optuna_module()  # a mistake is told before a missing package
    if arguments.search and arguments.jobs is None:
        place = replace(place, jobs=min(place.jobs, SEARCH_AT_ONCE))
    request = request_of(arguments.config, arguments.set, arguments.seeds, arguments.search is not None)
    folder = Path(arguments.out or default_folder(request))
    folder.mkdir(parents=True, exist_ok=True)
    with folder_lock(folder):
        remember_request(folder, request)
        show(f"sweep folder: {folder}")
        work = Work(folder, place, configs, arguments.device, arguments.plugins)
        if arguments.search:
            work.search(Search(arguments.config, space, folder, default_folder(request).name, arguments.storage), arguments.search)
        else:
            work.grid(grid_points(arguments.config, combinations))


@dataclass(frozen=True)
class Configs:
    """Config files with what is the same in the whole sweep."""

    fixed: Mapping[str, Any]
    seeds: Sequence[int] | None

    def given(self, file: Path, values: Mapping[str, Any]) -> Config:
        seeds = {} if self.seeds is None else {"seed": list(self.seeds)}
        return load_given(file, {**self.fixed, **values, **seeds})

    def resolved(self, file: Path, values: Mapping[str, Any]) -> MethodSettings:
        """Every setting checked. Raises UserError, also where nothing is held out to choose by."""
        config = resolve_config(self.given(file, values))
        if not config.val_fraction:
            raise UserError(NO_VALIDATION.format(source=file))
        return config

    def content(self, file: Path, values: Mapping[str, Any]) -> dict[str, Any]:
        """What a JSON file of these settings holds."""
        return self.given(file, values).model_dump(mode="json", exclude_unset=True)


class Work:
    """One sweep in its folder."""

    def __init__(self, folder: Path, place: Place, configs: Configs, device: str | None, plugins: Sequence[str]) -> None:
        self.folder, self.configs, self.place = folder, configs, place
        self.device, self.plugins = device, plugins
        self.queue = Queue(folder, place)
        self._results: dict[Path, RunResult] = {}  # of finished runs, each read once

    def job(self, run: Run) -> Job:
        """The job of a run, whose config it writes."""
        file = self.folder / "configs" / f"{run.name}.json"
        with storage_errors_told(file):
            write_atomic(file, json_text(run.config))
        words = ["--config", str(file), "--out", str(self.folder / "runs"), "--resume",
                 *self.place.device_words(run.config.get("device", "auto"), self.device),
                 *(word for plugin in self.plugins for word in ("--plugin", plugin))]
        return Job(run.name, tuple(words), self.experiment(run))

    def experiment(self, run: Run) -> Path:
        return self.folder / "runs" / run.name

    def result(self, experiment: Path) -> RunResult | None:
        """What a finished run gave; None where it is not finished."""
        if experiment not in self._results and (found := finished_result(experiment)) is not None:
            self._results[experiment] = found
        return self._results.get(experiment)

    # A grid ------------------------------------------------------------------------------------------------------

    def grid(self, points: Sequence[Point]) -> None:
        """Every point with every seed. Raises RunFailed."""
        planned = []
        for point in points:
            seeds = self.configs.resolved(point.file, point.values).seeds
            planned.append((point, seed_runs(point, self.configs.content(point.file, point.values), seeds)))
        jobs = [self.job(run) for _, runs in planned for run in runs]
        self.queue.plan(jobs)
        waiting = [job for job in jobs if self.result(job.experiment) is None]
        show(f"{len(points)} points, {len(jobs)} runs, {len(jobs) - len(waiting)} of them done")
        states: dict[str, State] = {}

        def ended(job: Job, state: State) -> None:
            states[job.name] = state
            write_table(self.folder, self._grid_rows(planned, states))

        self.queue.work(lambda: waiting.pop(0) if waiting else None, ended)
        rows = self._grid_rows(planned, states)
        self.write(rows, study_of(rows))
        failure = failures_told(self.folder, states, len(jobs))
        if failure is not None:
            raise failure

    def _grid_rows(self, planned: Sequence[tuple[Point, Sequence[Run]]], states: Mapping[str, State]) -> list[Row]:
        rows = []
        for point, runs in planned:
            results = [result for run in runs if (result := self.result(self.experiment(run))) is not None]
            failed = any(states[run.name].word == "failed" for run in runs if run.name in states)
            state = "done" if len(results) == len(runs) else "failed" if failed else f"{len(results)} of {len(runs)} done"
            rows.append(Row(point, state, merged(results)))
        return rows

    # A search ----------------------------------------------------------------------------------------------------

    def search(self, search: Search, trials: int) -> None:
        """`trials` trials in all, each with all seeds. Raises RunFailed: the first ones failed, and none succeeded."""
        continued = search.interrupted()
        going: dict[str, tuple[Any, tuple[int, ...]]] = {}  # job -> trial, seeds
        failed: list[str] = []

        def ask() -> Job | None:
            while continued or (search.begun() < trials and not search.hopeless()):
                trial = continued.pop(0) if continued else search.ask()
                point = search.point(trial)
                values = [f"{key}={value_text(value)}" for key, value in point.values.items()]
                show(f"{point.name}: {', '.join([point.file.stem, *values])}")
                try:
                    seeds = tuple(self.configs.resolved(point.file, point.values).seeds)
                except UserError as error:  # values that are right one by one, and wrong together
                    search.tell(trial, None, "failed")
                    failed.append(f"{point.name}: {error}")
                    show(f"failed: {failed[-1]}")
                    continue
                job = self.job(Run(point.name, self.configs.content(point.file, point.values)))
                self.queue.plan([job])
                going[job.name] = trial, seeds
                return job
            return None

        def watch(job: Job) -> bool:
            trial, seeds = going[job.name]
            runs = runs_in(job.experiment)
            return bool(runs) and search.report(trial, validation_so_far(runs[-1], seeds))

        def ended(job: Job, state: State) -> None:
            watch(job)  # others are compared with what it measured at last too
            trial, _ = going.pop(job.name)
            result = self.result(job.experiment)
            search.tell(trial, None if result is None else result.summary["last_validation"]["mean"], state.word)
            if state.word == "failed":
                failed.append(f"{job.name}: {state.last}")
            write_table(self.folder, self._search_rows(search))

        self.queue.work(ask, ended, watch)
        rows = self._search_rows(search)
        self.write(rows, search.study)
        if search.hopeless():
            raise RunFailed(f"the first {len(failed)} trials failed, so the search was ended; {'; '.join(failed)}")

    def _search_rows(self, search: Search) -> list[Row]:
        words = {"COMPLETE": "done", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running"}
        points = [(search.point(trial), words[trial.state.name]) for trial in search.own_trials()]
        return [Row(point, word, self.result(self.folder / "runs" / point.name)) for point, word in points]

    # What comes of it ----------------------------------------------------------------------------------------------

    def write(self, rows: Sequence[Row], study: Any) -> None:
        """Table, the best config, pictures."""
        show(f"\n{write_table(self.folder, rows)}\n\ntable: {self.folder / 'table.md'}")
        best = best_first(rows)[0] if rows else None
        if best is not None and best.state == "done":
            file = self.folder / "best.json"
            with storage_errors_told(file):
                write_atomic(file, json_text(self.configs.content(best.point.file, best.point.values)))
            show(f"best config: {file} (python main.py --config {shlex.quote(str(file))})")
        try:
            pictures = write_pictures(self.folder, study)
        except Exception as error:  # of libraries that draw; the figures are all there
            show(f"the pictures could not be drawn: {one_sentence(error)}", error=True)
        else:
            show("\n".join(f"picture: {picture}" for picture in pictures))
