"""A small, fixed sample of `make soak`: faults at system calls, and random settings (tests/soak says what both are)."""

import re
import subprocess
import sys

import pytest

from tests.soak import shim


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
@pytest.mark.timeout(300)
def test_a_sample_of_faults_and_of_random_settings_ends_as_it_must():
    done = subprocess.run([sys.executable, "-m", "tests.soak", "sample"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    if shim.compiler() is None:
        assert "faults: skipped, they need Linux and a C compiler (cc)" in done.stdout
    else:
        calls, faults = map(int, re.search(r"(\d+) calls, seed 0: (\d+) of \d+ faults, 0 problems", done.stdout).groups())
        assert calls > 150 and faults == 5  # the library saw the run's calls
    assert re.search(r"seed 0: 6 configs: [1-6] done, \d refused, \d stopped, 0 problems", done.stdout), done.stdout
