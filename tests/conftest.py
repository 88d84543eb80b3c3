"""One thread per process: tests are small, and more threads than free cores slow them many times. `--plugin FILE` adds methods."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from models import LEARNERS, load_plugin
from utils.methods import catalogue


def pytest_addoption(parser):
    parser.addoption("--plugin", help="a Python file that registers methods: what is tested of every method is tested of them alone")


def pytest_generate_tests(metafunc):
    """`method`: every method of the project, or those of the plugin."""
    if "method" in metafunc.fixturenames and not any("method" in mark.args[0] for mark in metafunc.definition.iter_markers("parametrize")):
        plugin = metafunc.config.getoption("plugin")
        if plugin:
            load_plugin(plugin)
        metafunc.parametrize("method", [name for name in catalogue().methods if name not in LEARNERS] if plugin else LEARNERS)
