"""The earlier name of utils/data/described.py, kept for scripts that import it."""

from utils.data.described import load_spec, spec_info

__all__ = ["load_spec", "spec_info"]
