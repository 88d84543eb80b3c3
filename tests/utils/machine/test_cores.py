"""Cores that a process may use, and OpenMP's settings before torch is imported."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from utils.machine import cores
from utils.machine.cores import available_cores, cgroup_quota, prepare_openmp

PROJECT = Path(__file__).parents[3]


def cgroup(folder: Path, line: str, files: dict[str, str]) -> float | None:
    own = folder / "own"
    own.write_text(line)
    for name, text in files.items():
        file = folder / "fs" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return cgroup_quota(folder / "fs", own)


@pytest.mark.parametrize(("line", "files", "quota"), [
    ("0::/", {"cpu.max": "150000 100000\n"}, 1.5),
    ("0::/", {"cpu.max": "max 100000\n"}, None),
    ("0::/", {}, None),
    ("0::/a/b", {"a/cpu.max": "50000 100000", "a/b/cpu.max": "max 100000", "cpu.max": "400000 100000"}, 0.5),
    ("0::/not/mounted", {"cpu.max": "200000 100000"}, 2.0),
    ("3:cpu,cpuacct:/job\n1:memory:/job",
     {"cpu,cpuacct/job/cpu.cfs_quota_us": "300000", "cpu,cpuacct/job/cpu.cfs_period_us": "100000"}, 3.0),
    ("3:cpu,cpuacct:/job", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
    ("0::/", {"cpu.max": "nonsense"}, None),
])
def test_the_narrowest_quota_of_all_levels_holds(line, files, quota, tmp_path):
    assert cgroup(tmp_path, line, files) == quota


def test_a_system_without_cgroups_has_no_quota(tmp_path):
    assert cgroup_quota(tmp_path, tmp_path / "nothing") is None


@pytest.mark.parametrize(("quota", "counted"), [(None, 8), (100.0, 8), (2.5, 3), (0.5, 1)])
def test_cores_are_counted_by_affinity_and_quota(quota, counted, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(cores, "cgroup_quota", lambda: quota)
    assert available_cores() == counted
    environment: dict[str, str] = {}
    prepare_openmp(environment)
    assert environment == {"GOMP_SPINCOUNT": cores.SPINS, **({"OMP_NUM_THREADS": str(counted)} if counted < 8 else {})}


@pytest.mark.parametrize("own", [{"GOMP_SPINCOUNT": "7"}, {"OMP_WAIT_POLICY": "ACTIVE"}])
def test_a_users_own_settings_stay(own, monkeypatch):
    monkeypatch.setattr(cores, "available_cores", lambda: 1)
    environment = {**own, "OMP_NUM_THREADS": "5"}
    prepare_openmp(environment)
    assert environment == {**own, "OMP_NUM_THREADS": "5"}


def test_main_sets_them_before_torch_is_imported(tmp_path):
    program = ("import builtins, json, os, sys\nreal, seen = builtins.__import__, []\n"
               "def spy(name, *rest, **more):\n"
               "    if name.split('.')[0] == 'torch' and not seen: seen.append(os.environ.get('GOMP_SPINCOUNT'))\n"
               "    return real(name, *rest, **more)\n"
               "builtins.__import__ = spy\nimport main\nmain.main(['--config', 'exps/slca_demo.json', '--dry_run'])\n"
               "print(json.dumps(seen))")
    environment = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run([sys.executable, "-c", program], cwd=PROJECT, env=environment, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == [cores.SPINS]
