"""Where jobs run: devices, cores, Slurm's options."""

import pytest

from utils.errors import UserError
from utils.machine.cores import CORES, available_cores, prepare_openmp
from utils.sweep import places
from utils.sweep.places import Place, local_place, parse_minutes, slurm_options, slurm_place


@pytest.mark.parametrize(("text", "minutes"), [
    ("90", 90), ("12:00:00", 720), ("2-00:00:00", 2880), ("1-12", 2160), ("0:30", 1), ("10:30", 11)])
def test_times_are_read_as_slurm_reads_them(text, minutes):
    assert parse_minutes(text) == minutes


@pytest.mark.parametrize("text", ["", "soon", "1:2:3:4", "-5", "0", "1h", "0:00:00"])
def test_what_is_no_time_is_told(text):
    with pytest.raises(UserError, match="--time"):
        parse_minutes(text)


def test_each_run_on_a_machine_with_gpus_gets_its_own(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,GPU-7")
    place = local_place(None, 2, None, None, uses_gpus=True, runs=9)
    assert place.jobs == 2
    assert [place.environment(slot)["CUDA_VISIBLE_DEVICES"] for slot in (0, 1)] == ["4,5", "6,GPU-7"]
    assert place.device_words("auto", None) == ["--device", "0,1"] and place.device_words(["cpu", "cpu"], None) == []
    assert local_place(None, None, None, None, uses_gpus=True, runs=9).device_words(["0", "1"], None) == ["--device", "auto"]
    with pytest.raises(UserError, match="4 GPU"):
        local_place(None, 5, None, None, uses_gpus=True, runs=9)


def test_runs_on_the_cpu_share_its_cores_out(monkeypatch):
    monkeypatch.setattr(places, "available_cores", lambda: 8)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    place = local_place(3, None, None, None, uses_gpus=True, runs=9)
    assert (place.jobs, place.cpus_per_run, place.gpus_per_run) == (3, 2, 0)
    assert local_place(None, None, None, None, uses_gpus=False, runs=2).cpus_per_run == 4
    assert place.environment(1) == {CORES: "2", "CUDA_VISIBLE_DEVICES": ""}


def test_a_share_of_cores_limits_threads_and_workers(monkeypatch):
    assert available_cores({CORES: "1"}) == 1
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(8)))
    environment = {CORES: "3"}
    prepare_openmp(environment)
    assert environment["OMP_NUM_THREADS"] == "3"


def test_a_run_on_a_cluster_asks_for_its_time_gpus_and_cores(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda program: "/usr/bin/" + program)
    place = slurm_place(None, None, 8, 90, ["partition=gpu", "--mem=32G"], uses_gpus=True)
    assert place._slurm_options("a") == {
        "job_name": "a", "time": 90, "gpus_per_node": 1, "cpus_per_task": 8, "srun_args": ["--cpus-per-task=8"],
        "additional_parameters": {"partition": "gpu", "mem": "32G"}}


def test_slurm_where_there_is_none_is_told(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda program: None)
    with pytest.raises(UserError, match="no sbatch"):
        slurm_place(None, None, None, None, [], uses_gpus=True)


@pytest.mark.parametrize(("word", "told"), [
    ("gpu", "option=value"), ("time=5", "--time"), ("gpus-per-node=2", "--gpus-per-run"), ("=5", "option=value")])
def test_options_of_slurm_that_are_none_are_told(word, told):
    with pytest.raises(UserError, match=told):
        slurm_options([word])


def test_a_process_that_has_ended_or_is_another_program_is_no_job():
    import os
    import socket
    here = socket.gethostname()
    assert not places.local_job_lives({"host": here, "id": str(os.getpid())})
    assert not places.local_job_lives({"host": here, "id": "999999999"}) and not places.local_job_lives({"host": "elsewhere", "id": "1"})
    assert Place("local", 1).environment(0) == {"CUDA_VISIBLE_DEVICES": ""}
