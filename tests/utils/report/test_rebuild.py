"""`main.py report`: pages of several runs from their results alone."""

from __future__ import annotations

import json

import pytest

from main import main
from tests.analysis_samples import make_analysis
from tests.result_samples import make_result
from utils.errors import UserError
from utils.report.analysis import write_analysis
from utils.report.page import write_report
from utils.report.rebuild import rebuild, results_folder
from utils.report.results import write_results


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs of which only results.json is left, one with an analysis; and what the first had."""
    out = tmp_path_factory.mktemp("logs")
    made = out / "made"
    write_results(make_result(), made)
    write_report(make_result(), made)
    for name in ("one/2026-01-01", "two/2026-01-01"):
        (out / name).mkdir(parents=True)
        (out / name / "results.json").write_bytes((made / "results.json").read_bytes())
    write_analysis(make_analysis(), out / "two/2026-01-01")
    assert main(["report", str(out / "one/2026-01-01"), str(out / "two")]) == 0
    return out


def test_what_a_run_wrote_is_made_again_without_the_run(runs):
    made, again = (({path.name: path.read_bytes() for path in folder.iterdir()}) for folder in (runs / "made", runs / "one/2026-01-01"))
    assert again.keys() == made.keys() and {"report.html", "results.csv", "curve.png", "timeline.pdf"} <= set(made)
    assert [name for name, content in made.items() if content != again[name]] == []


def test_the_page_of_an_analysis_is_made_again_from_its_file(runs):
    names = {path.name for path in (runs / "two/2026-01-01").iterdir()}
    assert {"report.html", "analysis.html", "analysis_map.png"} <= names


def test_of_several_runs_those_that_can_be_made_are_and_the_others_are_told(runs, monkeypatch, capsys):
    (runs / "empty").mkdir(exist_ok=True)
    (runs / "none").mkdir(exist_ok=True)
    (runs / "none" / "results.json").write_text(json.dumps({"config": {}, "environment": {}, "seeds": []}))
    made = []
    monkeypatch.setattr("utils.report.rebuild.write_report", lambda result, folder: made.append(folder) or folder / "report.html")
    assert main(["report", str(runs / "empty"), str(runs / "none"), str(runs / "absent"), str(runs / "one")]) == 2
    told = capsys.readouterr().err
    assert made == [runs / "one/2026-01-01"] and "(1 of 4 runs are done)" in told and "Traceback" not in told
    for problem in ("empty holds no results.json", "holds no finished seed", "absent does not exist"):
        assert problem in told


def test_a_run_may_be_named_by_its_results_and_an_experiment_means_its_newest_run(runs):
    wanted = runs / "one/2026-01-01"
    assert results_folder(wanted / "results.json") == results_folder(wanted) == results_folder(runs / "one") == wanted


def test_damaged_results_are_a_mistake_with_its_place(tmp_path):
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(UserError, match=r"report: .*results.json is not a run's results.json"):
        rebuild([tmp_path])


def test_a_link_that_leads_out_of_the_runs_folder_is_refused_and_nothing_is_written(tmp_path):
    write_results(make_result(seeds=(1,)), tmp_path / "run")
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "run" / "report.html").symlink_to(tmp_path / "victim")
    with pytest.raises(UserError, match=r"report\.html is a link to .*outside of the run's folder"):
        rebuild([tmp_path / "run"])
    assert (tmp_path / "victim").read_text() == "precious"
