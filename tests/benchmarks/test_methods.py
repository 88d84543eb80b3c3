"""The tables of benchmarks/ are what their scripts make of the figures beside them."""

import importlib
import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.mark.parametrize(("script", "table"), [("methods", "METHODS.md"), ("best", "BEST.md")])
def test_a_table_is_made_of_the_figures_beside_it(script, table, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in ("methods", "best", "report", "common"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    module = importlib.import_module(script)
    figures = json.loads((BENCHMARKS / f"{script}.json").read_text(encoding="utf-8"))
    assert (BENCHMARKS / table).read_text(encoding="utf-8") == module.page(figures)
