"""What a job does with its command."""

import os
import signal
import sys
import threading
import time

import pytest

from utils.sweep.job import CommandJob

SLEEPS = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(143)); print('up', flush=True); time.sleep(60)"


def a_job(folder, program, **environment):
    return CommandJob([sys.executable, "-c", program], [sys.executable, "-c", "second"], str(folder), str(folder / "x.exit"), environment)


@pytest.fixture(autouse=True)
def on_a_cluster(monkeypatch):
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")  # the test's own handlers stay


def test_a_command_runs_in_its_folder_and_environment_and_leaves_its_exit_code(tmp_path):
    program = "import os, sys; open('seen', 'w').write(os.environ['A']); sys.exit(3)"
    assert a_job(tmp_path, program, A="b")() == 3
    assert (tmp_path / "seen").read_text() == "b" and (tmp_path / "x.exit").read_text() == "3\n"


def test_a_job_whose_time_is_over_ends_its_command_in_order_and_goes_on_with_the_resumed_one(tmp_path):
    pytest.importorskip("submitit")
    job, again = a_job(tmp_path, SLEEPS), []

    def time_is_over(number, frame):
        again.append(job.checkpoint())
        raise SystemExit(0)

    before = signal.signal(signal.SIGUSR2, time_is_over)
    try:
        threading.Thread(target=lambda: (wait_for(job), time.sleep(0.3), os.kill(os.getpid(), signal.SIGUSR2))).start()
        with pytest.raises(SystemExit):
            job()
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert job.process.returncode in (143, -signal.SIGTERM) and not (tmp_path / "x.exit").exists()
    assert again[0].function.command == again[0].function.resumed == [sys.executable, "-c", "second"]


def test_the_signal_before_the_end_does_not_reach_the_command(tmp_path):
    assert a_job(tmp_path, "import os, signal; os.kill(os.getpid(), signal.SIGUSR2)")() == 0


def wait_for(job):
    while job.process is None:
        time.sleep(0.01)
