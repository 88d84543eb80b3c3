"""Events of a run: who hears what, and that a listener changes nothing."""

from __future__ import annotations

import errno
import logging
import re

import pytest

from tests.run_files import tiny_config
from trainer import train
from utils.errors import UserError
from utils.files import PROJECT
from utils.run import events
from utils.run.events import Events, subscribe, unsubscribe


@pytest.fixture
def nobody(monkeypatch):
    """No subscriber of other tests."""
    monkeypatch.setattr(events, "_subscribers", [])


def broken(event):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_every_listener_gets_a_copy_with_the_facts_of_run_and_seed(nobody):
    heard, others = [], []
    told = Events([heard.append, others.append], run="r").of(seed=3)
    told.tell("task", task=1, per_task=[50.0])
    heard[0]["per_task"].clear()
    assert others == [{"kind": "task", "run": "r", "seed": 3, "task": 1, "per_task": [50.0]}]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), ConnectionError("gone"), SystemExit(1)], ids=lambda e: type(e).__name__)
def test_a_failing_listener_is_told_once_and_hears_no_more_while_others_do(error, nobody, caplog):
    calls, heard = [], []

    def failing(event):
        calls.append(event)
        raise error

    told = Events([failing, heard.append]).of(seed=1)
    for task in range(3):
        told.tell("task", task=task)
    assert len(calls) == 1 and len(heard) == 3
    assert len(caplog.records) == 1 and "failing failed at the event 'task'" in caplog.text and "goes on" in caplog.text


def test_ctrl_c_in_a_listener_stops_the_run(nobody):
    def stop(event):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Events([stop]).tell("task")


def test_the_processes_beside_the_first_tell_nothing(nobody):
    heard = []
    subscribe(heard.append)
    Events([heard.append], tells=False).tell("task")
    assert heard == []


def test_an_end_tells_what_ended_it(nobody):
    heard = []
    with pytest.raises(UserError), Events([heard.append]).during("seed", seed=1):
        raise UserError("the loss became nan")
    assert heard[1] == {"kind": "seed_end", "finished": False, "error": "the loss became nan"}


def test_who_unsubscribes_hears_nothing_and_what_cannot_be_called_is_refused(nobody):
    heard = []
    listener = subscribe(heard.append)
    unsubscribe(listener)
    Events().tell("task")
    assert heard == []
    with pytest.raises(UserError, match="subscribe: got int"):
        subscribe(3)


def test_a_run_tells_its_seeds_tasks_and_epochs_in_their_order(nobody, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("trainer.write_report", lambda result, folder: None)  # pictures take most of a tiny run's time
    caplog.set_level(logging.WARNING, logger="slca")
    heard = []
    subscribe(broken)
    result = train(tiny_config(model_name="finetune", epochs=1, keep_checkpoints="none"), tmp_path, on_event=heard.append)
    task = ["task_start", "epoch_start", "epoch", "task"]
    assert [event["kind"] for event in heard] == ["run_start", "seed_start", *task * 3, "seed_end", "run_end"]
    assert {event["seed"] for event in heard[1:-1]} == {1993} and len({event["run"] for event in heard}) == 1
    assert heard[2]["classes"] == [result.class_names[c] for c in result.seeds[0].class_order[:2]]
    assert heard[-2]["last"] == result.seeds[0].last and heard[-1]["summary"] == result.summary
    assert caplog.text.count("broken failed") == 1


def test_the_example_of_the_docs_works(nobody, monkeypatch, capsys):
    (example,) = re.findall(r"```python\n(.*?)```", (PROJECT / "docs" / "trackers.md").read_text(), flags=re.DOTALL)
    monkeypatch.setattr("utils.config.load_config", lambda path, overrides: tiny_config(epochs=overrides["epochs"], seed=overrides["seed"]))
    told = Events

    def train_a_little(config):
        for task in (1, 2):
            told(run="r").of(seed=config.seeds[0]).tell("task", task=task, top1=100.0 / task)

    monkeypatch.setattr("trainer.train", train_a_little)
    exec(compile(example, "docs/trackers.md", "exec"), {})
    assert capsys.readouterr().out == "{(0, 1): 100.0, (0, 2): 50.0}\n"
