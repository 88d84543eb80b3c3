"""The search: Optuna's tree-structured Parzen estimator asks for values, its median pruner ends what falls behind.

Akiba et al., KDD 2019 (Optuna); Bergstra et al., NeurIPS 2011 (TPE). The value of a trial is the validation accuracy after the last
task, mean over the seeds; after each task of each seed the accuracy so far is reported, and a trial below the median of the others at
the same place is ended.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from utils.errors import UserError, first_line
from utils.extras import extra
from utils.run.metrics_file import METRICS, read_metrics
from utils.sweep.plan import Point
from utils.sweep.space import Axis, Choice, Space
from utils.sweep.table import Row

OWNER = "sweep folder"   # attribute of a trial: whose it is, where several machines share a study
CONFIG = "config"        # the parameter that says which config a trial starts from, where there are several
WARMUP_TASKS = 1         # after the first task nothing can be forgotten yet
FAILED_AT_FIRST = 3      # trials that may fail before any has succeeded


def optuna_module() -> Any:
    """Optuna, quiet. Raises UserError: it is not installed."""
    optuna = extra("optuna", "sweep", "python main.py sweep")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    return optuna


class Search:
    """A study, as this sweep sees it.

    Args:
        storage: URL of an RDB (sqlite:///file, postgresql://...) or of a journal (journal:///file, redis://host), by which several
            machines may share the study; None: a file in the sweep's folder.
        name: of the study; machines with the same name and storage work on the same one.
        folder: of this sweep.

    Raises:
        UserError: the storage cannot be opened.
    """

    def __init__(self, files: Sequence[Path], space: Space, folder: Path, name: str, storage: str | None) -> None:
        self.optuna = optuna_module()
        self.files, self.space, self.owner = files, space, str(folder.resolve())
        self.reported: dict[int, int] = {}  # trial -> values reported
        self.study = self._open(storage or f"sqlite:///{(folder / 'study.db').resolve()}", name, shared=storage is not None)

    def _open(self, storage: str, name: str, *, shared: bool) -> Any:
        try:
            backend = open_storage(storage, self.optuna)
            study = self.optuna.create_study(storage=backend, study_name=name, direction="maximize", load_if_exists=True,
                                             pruner=self.optuna.pruners.MedianPruner(n_warmup_steps=WARMUP_TASKS))
        except Exception as error:  # every database has its own
            where = urlsplit(storage)
            raise UserError(f"--storage: {where.scheme}://{where.hostname or where.path} cannot be opened: "
                            f"{first_line(error)}") from error
        # where nobody else draws, the same sweep draws the same trials; a continued one must not begin from the start again
        study.sampler = self.optuna.samplers.TPESampler(seed=None if shared else len(study.trials), constant_liar=True)
        return study

    def own_trials(self) -> list[Any]:
        """The trials of this sweep, whatever became of them."""
        return [trial for trial in self.study.get_trials(deepcopy=False) if trial.user_attrs.get(OWNER) == self.owner]

    def interrupted(self) -> list[Any]:
        """Trials of this sweep that were going on when it was stopped."""
        return [self.optuna.Trial(self.study, trial._trial_id) for trial in self.own_trials() if trial.state.name == "RUNNING"]

    def begun(self) -> int:
        """Trials of the study, those of other machines too."""
        return len(self.study.get_trials(deepcopy=False))

    def ask(self) -> Any:
        trial = self.study.ask()
        trial.set_user_attr(OWNER, self.owner)
        return trial

    def point(self, trial: Any) -> Point:
        """Which config and values a trial tries; asked a second time it answers the same."""
        names = [str(file) for file in self.files]
        file = self.files[names.index(trial.suggest_categorical(CONFIG, names))] if len(names) > 1 else self.files[0]
        return Point(f"trial-{trial.number}", file, {key: _suggested(trial, key, axis) for key, axis in self.space.axes.items()})

    def report(self, trial: Any, values: Sequence[float]) -> bool:
        """Tell what was measured so far; True when the trial is not worth going on.

        Optuna's pruner takes the best of a trial's values up to now, and accuracies fall from task to task. So each place gets a
        hundred of its own: 80 % at the third place is told as 280.
        """
        new = range(self.reported.get(trial.number, 0), len(values))
        for step in new:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a continued trial has reported its first steps before
                trial.report(100.0 * step + values[step], step)
        self.reported[trial.number] = len(values)
        return bool(new) and trial.should_prune()

    def tell(self, trial: Any, value: float | None, state: str) -> None:
        """The end of a trial: "done" with its value, "pruned" or "failed"."""
        states = self.optuna.trial.TrialState
        if state == "done" and value is not None:
            self.study.tell(trial.number, value)
        else:
            self.study.tell(trial.number, state=states.PRUNED if state == "pruned" else states.FAIL)

    def hopeless(self) -> bool:
        """Whether the first trials failed and none has succeeded: the settings are wrong, not their values."""
        trials = self.study.get_trials(deepcopy=False)
        failed = sum(trial.state.name == "FAIL" for trial in trials)
        return failed >= FAILED_AT_FIRST and not any(trial.state.name in ("COMPLETE", "PRUNED") for trial in trials)


def open_storage(url: str, optuna: Any) -> Any:
    """What Optuna keeps a study in. Raises whatever the database raises."""
    journal = optuna.storages.journal
    scheme, _, path = url.partition("://")
    if scheme == "journal":
        return optuna.storages.JournalStorage(journal.JournalFileBackend(path))
    if scheme in ("redis", "rediss"):
        return optuna.storages.JournalStorage(journal.JournalRedisBackend(url))
    return url


def _suggested(trial: Any, key: str, axis: Axis) -> Any:
    if isinstance(axis, Choice):  # Optuna takes no lists and objects, so all go as text
        return json.loads(trial.suggest_categorical(key, [json.dumps(value) for value in axis.values]))
    if all(isinstance(number, int) for number in (axis.low, axis.high, axis.step or 1)):
        return trial.suggest_int(key, axis.low, axis.high, step=axis.step or 1, log=axis.log)
    return trial.suggest_float(key, axis.low, axis.high, step=axis.step, log=axis.log)


def validation_so_far(run: Path, seeds: Sequence[int]) -> list[float]:
    """Validation accuracy (%) after each finished task of a run, seed after seed, while it goes on."""
    records = [record for seed in seeds for record in read_metrics(run / f"seed{seed}" / METRICS, warn=lambda words: None)]
    return [record["validation"] for record in records if record["kind"] == "task" and isinstance(record.get("validation"), float)]


def study_of(rows: Sequence[Row]) -> Any:
    """The finished points of a grid as a study in memory, so that Optuna draws them as it draws a search."""
    optuna = optuna_module()
    study = optuna.create_study(direction="maximize")
    tried = [{CONFIG: row.point.file.stem, **{key: json.dumps(value) for key, value in row.point.values.items()}} for row in rows]
    varied = [key for key in dict.fromkeys(key for values in tried for key in values) if len({values.get(key) for values in tried}) > 1]
    texts = {key: sorted({values[key] for values in tried if key in values}) for key in varied}
    choices = {key: optuna.distributions.CategoricalDistribution(values) for key, values in texts.items()}
    for row, values in zip(rows, tried, strict=True):
        if row.state == "done" and row.validation is not None:
            own = {key: values[key] for key in varied if key in values}
            study.add_trial(optuna.create_trial(params=own, distributions={key: choices[key] for key in own}, value=row.validation))
    return study
