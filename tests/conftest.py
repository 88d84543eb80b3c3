"""One thread per process: tests are small, and more threads than free cores slow them many times."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
