"""`"wandb": "offline"` or `"online"`: each seed's metrics.jsonl as a run of Weights & Biases, the seeds of a run as one group.

Nothing is ever asked, the terminal is left as it is, and neither code nor what the machine does is sent. WANDB_PROJECT and
WANDB_ENTITY say where runs go, else the project "slca".
"""

from __future__ import annotations

import logging
import os
import secrets
from pathlib import Path
from typing import Any, Literal

from utils.errors import UserError
from utils.extras import extra
from utils.files import links_that_leave, write_atomic
from utils.last_resort import one_sentence
from utils.run.events import Event
from utils.trackers.records import RECORDS, Steps, named_numbers, written_records

log = logging.getLogger("slca")
NETWORK_SECONDS = 30.0  # that the beginning and the end of a seed may wait for a network


class WandB:
    """One wandb run of each seed, in <run>/seed<N>/wandb; its id is kept there, so that a resumed seed goes on in it.

    A seed's n-th line of metrics.jsonl is step n: what a resumed run computes again has a step that wandb holds already, and is
    passed over.

    Raises:
        UserError: the package is missing, or the mode is "online" and there is no key.
    """

    name = "wandb"

    def __init__(self, mode: Literal["offline", "online"]) -> None:
        self.mode = mode
        self._wandb = extra("wandb", "trackers", f'"wandb": "{mode}"')
        if mode == "online":
            self._check_key()
        self._run: Any = None  # while a seed goes on
        self._config: dict[str, Any] = {}
        self._lines = 0  # of this seed's metrics.jsonl
        self._steps = Steps()

    def __call__(self, event: Event) -> None:
        kind = event["kind"]
        if kind == "run_start":
            self._config = event["config"]
        elif kind == "seed_start":
            self._open(event)
        elif kind in RECORDS:
            self._add(event, send=True)
        elif kind == "seed_end" and self._run is not None:
            self._run.summary.update(named_numbers(event))
            self._run.finish(exit_code=0 if event["finished"] else 1)
            self._run = None

    def _check_key(self) -> None:
        """Raises UserError unless wandb finds a key (or an identity token) without asking for one."""
        wandb = self._wandb
        try:
            wandb.setup(self._settings())
            there = wandb.login(prompt=False, verify=False)
        except Exception as error:  # a key that is no key, another version of the package
            raise UserError(f'"wandb": "online": wandb takes no login here: {one_sentence(error)}. {WAYS_OUT}') from None
        if not there:
            raise UserError(f'"wandb": "online" needs a key, and there is none. {WAYS_OUT}')

    def _settings(self) -> Any:
        return self._wandb.Settings(mode=self.mode, silent=True, console="off", disable_git=True, disable_code=True, save_code=False,
                                    x_disable_stats=True, x_disable_machine_info=True, x_save_requirements=False,
                                    init_timeout=NETWORK_SECONDS, finish_timeout=NETWORK_SECONDS, symlink=False)

    def _open(self, event: Event) -> None:
        folder, run = Path(event["folder"]), Path(event["run"])
        id_file = folder / "wandb" / "run_id.txt"
        known = id_file.is_file()
        if not known:
            write_atomic(id_file, secrets.token_hex(8))
        group = f"{run.parent.name}/{run.name}"
        self._run = self._wandb.init(
            id=id_file.read_text(encoding="utf-8").strip(), resume="allow", dir=str(folder), group=group,
            name=f"{group} seed {event['seed']}", project=os.environ.get("WANDB_PROJECT") or "slca",
            config={**self._config, "run_seed": event["seed"]}, settings=self._settings())
        for link in links_that_leave(folder / "wandb"):  # to wandb's own log; with a link like that no run is resumed
            link.unlink()
        if self.mode == "online":
            log.info(f"wandb: {self._run.url}")
        self._lines, self._steps = 0, Steps()
        for kind in RECORDS:
            self._run.define_metric(f"{kind}/*", step_metric=f"{kind}/step")
        for record in written_records(folder):
            self._add(record, send=not known)  # else they are there

    def _add(self, record: Event, send: bool) -> None:
        self._lines += 1
        step = self._steps.of(record)
        if send:
            self._run.log({**named_numbers(record), f"{record['kind']}/step": step}, step=self._lines, commit=True)


WAYS_OUT = ('Allowed: the environment variable WANDB_API_KEY, a login before the run (`wandb login`), or "wandb": "offline", whose '
            "folder `wandb sync` uploads later")
