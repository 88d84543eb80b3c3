"""docs/continual_classifier.ipynb runs from top to bottom and prints what stands in it."""

import contextlib
import io
import json
import re
from pathlib import Path

import pytest

import trainer

NOTEBOOK = Path(__file__).parents[1] / "docs" / "continual_classifier.ipynb"
NUMBER = re.compile(r"\d+\.\d+")
CLOSE = 0.03  # of a share of 100 images: another processor may round otherwise


def test_the_notebook_prints_what_stands_in_it(monkeypatch):
    monkeypatch.chdir(NOTEBOOK.parents[1])
    monkeypatch.setattr(trainer, "write_report", lambda result, folder: None)  # pictures take most of the time
    variables = {"__name__": "__main__"}
    for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                exec(compile("".join(cell["source"]), str(NOTEBOOK), "exec"), variables)
            stored, now = "".join("".join(output["text"]) for output in cell["outputs"]), printed.getvalue()
            assert NUMBER.sub("#", now) == NUMBER.sub("#", stored)
            assert [*map(float, NUMBER.findall(now))] == pytest.approx([*map(float, NUMBER.findall(stored))], abs=CLOSE)
