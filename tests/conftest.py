"""One thread per process: tests are small, and more threads than free cores slow them many times.

`--plugin FILE` adds methods; `--pretend_cuda` runs what is marked `cuda` on a GPU that is not there (tests/pretend_cuda.py).
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from models import LEARNERS, load_plugin
from utils.methods import catalogue


def pytest_addoption(parser):
    parser.addoption("--plugin", help="a Python file that registers methods: what is tested of every method is tested of them alone")
    parser.addoption("--pretend_cuda", action="store_true", help="for tests marked cuda where there is no GPU: one is pretended")


def pytest_configure(config):
    if config.getoption("--pretend_cuda"):
        from tests import pretend_cuda

        pretend_cuda.believe()
        pretend_cuda.Mode().__enter__()


def pytest_generate_tests(metafunc):
    """`method`: every method of the project, or those of the plugin."""
    if "method" in metafunc.fixturenames and not any("method" in mark.args[0] for mark in metafunc.definition.iter_markers("parametrize")):
        plugin = metafunc.config.getoption("plugin")
        if plugin:
            load_plugin(plugin)
        metafunc.parametrize("method", [name for name in catalogue().methods if name not in LEARNERS] if plugin else LEARNERS)
