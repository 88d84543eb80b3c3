"""The report page: complete, self-contained, and safe whatever the names are."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.result_samples import make_result
from utils.report.page import report_is_there, write_report
from utils.report.page_measured import class_table
from utils.report.published import SOURCE
from utils.report.results import OPTIONAL_CURVES, RunResult, write_results

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{ 7 * 7 }}"


class Tags(HTMLParser):
    """Collects every tag with its attributes, and the text between."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    result = make_result(task_sizes=(10,) * 10, drop=1, dataset="cifar100_224", notes="my notes")
    return write_report(result, tmp_path_factory.mktemp("run")).read_text()


def test_the_report_holds_figures_pictures_config_environment_and_the_papers_reference(page: str) -> None:
    text, result = Tags(page).text, make_result(task_sizes=(10,) * 10, drop=1)
    for expected in (f"{result.summary['last']['mean']:.2f}", "seed 1996", "paper 91.53 ± 0.28", SOURCE, "my notes",
                     "931f75f-dirty", "Accuracy matrix", "class 99", "rehearsal-free", "Backward transfer",
                     "AUROC, distance (%)", "FPR95, energy (%)", "Calibration error before the temperature (%)"):
        assert expected in text


def test_the_report_needs_no_other_file_and_no_network(page: str) -> None:
    attributes = [pair for _, attributes in Tags(page).tags for pair in attributes.items()]
    sources = [value for name, value in attributes if name in ("src", "srcset")]
    assert len(sources) == 3 and all(source.startswith("data:image/svg+xml;base64,") for source in sources)
    pictures = [base64.b64decode(source.partition(",")[2]).decode() for source in sources]
    assert not any(re.search(r"@import|<script|href=\"(?!#|data:)|url\((?!#)", picture) for picture in pictures)
    assert all(re.fullmatch(r"[a-z_]+\.[a-z]+", value) for name, value in attributes if name == "href")  # files beside it, to click on
    assert not re.search(r"@import|url\(|<script src|<link", page) and page.count("<script>") == 1


def test_no_other_script_than_the_pages_own_may_run(page: str) -> None:
    script = page.partition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page and "default-src 'none'" in page


def test_the_pictures_lie_beside_the_page(tmp_path: Path) -> None:
    write_report(make_result(seeds=(1,)), tmp_path)
    vectors = {f"{name}.{suffix}" for name in ("curve", "matrix", "confusion", "timeline") for suffix in ("svg", "pdf")}
    assert {path.name for path in tmp_path.iterdir()} == {"curve.png", "matrix.png", "report.html"} | vectors


def test_hostile_names_are_shown_as_text_and_never_become_markup(tmp_path: Path) -> None:
    harmless = make_result(seeds=(1,), notes="x", extra={"a": "b"})
    hostile = make_result(seeds=(1,), title=HOSTILE, notes=HOSTILE, extra={HOSTILE: HOSTILE}, dataset={"name": HOSTILE},
                          convnet_type={"timm": HOSTILE, "weights": HOSTILE})
    hostile.class_names = [HOSTILE] * 10
    hostile.environment[HOSTILE] = HOSTILE
    harmless.environment["x"] = "y"
    hostile.config[HOSTILE] = HOSTILE
    harmless.config["x"] = "y"
    hostile.seeds[0].stage_seconds[HOSTILE] = harmless.seeds[0].stage_seconds["x"] = 1.0
    hostile.seeds[0].timeline[0]["stage"] = HOSTILE
    harmless.seeds[0].timeline[0]["stage"] = "x"
    expected, found = (Tags(write_report(result, tmp_path).read_text()) for result in (harmless, hostile))
    assert [tag for tag, _ in found.tags] == [tag for tag, _ in expected.tags]
    assert [set(attributes) for _, attributes in found.tags] == [set(attributes) for _, attributes in expected.tags]
    assert found.text.count(HOSTILE) > 10


def test_the_report_of_one_task_and_one_seed_has_dashes_where_nothing_is_defined(tmp_path: Path) -> None:
    page = write_report(make_result("joint", "Joint", seeds=(3,), task_sizes=(10,)), tmp_path).read_text()
    assert "± " not in page.split("<body>")[1].replace("mean ± std", "")
    assert re.search(r"<small>Forgetting</small><b>-</b>", page)


def test_the_report_gives_no_papers_figure_for_an_experiment_that_is_not_the_papers(tmp_path: Path) -> None:
    assert "paper" not in Tags(write_report(make_result(seeds=(1,)), tmp_path).read_text()).text


def test_sparse_results_still_make_a_page(tmp_path: Path) -> None:
    result = make_result(seeds=(1,))
    seed = result.seeds[0]
    seed.stage_seconds, seed.parameters, seed.memory_curve, seed.peak_memory_mb, seed.confusion = {}, {}, [], None, {}
    for name in (*OPTIONAL_CURVES, "timeline"):
        setattr(seed, name, [])
    bare = RunResult(config={}, environment={}, seeds=[seed])
    text = write_report(bare, tmp_path).read_text()
    assert "Peak memory" in text and "Confusion" not in text and "the worst first" not in text and "Time of each task" not in text
    assert not (tmp_path / "timeline.svg").exists()


def test_the_report_shows_classes_the_worst_first_and_what_the_pictures_say(tmp_path: Path) -> None:
    result = make_result(seeds=(1, 2))
    for seed in result.seeds:
        seed.class_accuracies[-1][seed.class_order.index(7)] = 12.5
    found = Tags(write_report(result, tmp_path).read_text())
    assert class_table(result)[1][0] == "class 7" and class_table(result)[1][2] == "12.5 ± 0.0"
    alts = " ".join(attributes.get("alt") or attributes.get("aria-label") or "" for tag, attributes in found.tags if tag in ("img", "svg"))
    assert f"SLCA {result.summary['last']['mean']:.1f}" in alts and "before alignment 66.7 %, after alignment 66.7 %" in alts
    assert "Calibration error (%)" in found.text and "Training images per second" in found.text


def test_the_report_says_which_run_it_is_about_and_what_the_spread_is_over(tmp_path: Path) -> None:
    status = {"started": "2026-01-02T03:04:05+00:00", "command": "python main.py --config <b>.json", "config": {}}
    (tmp_path / "run.json").write_text(json.dumps(status))
    text = Tags(write_report(make_result(), tmp_path).read_text()).text
    for expected in (str(tmp_path), *list(status.values())[:2], "over the seeds, each of which is another class order"):
        assert expected in text


def test_every_table_has_a_caption_or_a_heading_and_headers_that_say_what_they_head(page: str) -> None:
    tags = [(tag, attributes) for tag, attributes in Tags(page).tags if tag in ("table", "caption", "th", "tr")]
    assert all(attributes.get("scope") in ("col", "row") for tag, attributes in tags if tag == "th")
    data = [tags[number + 1][0] for number, (tag, attributes) in enumerate(tags) if tag == "table" and attributes.get("class") != "keys"]
    assert len(data) >= 4 and set(data) == {"caption"}


def test_the_report_links_its_numbers_and_pictures(page: str) -> None:
    links = {attributes["href"] for tag, attributes in Tags(page).tags if tag == "a"}
    assert {"results.json", "results.csv", "results_tidy.csv", "curve.pdf", "matrix.svg"} <= links


def test_a_machine_without_a_gpu_has_none(page: str) -> None:
    assert re.search(r"gpu</th><td>none</td>", page)


def test_a_page_of_names_that_are_not_utf8_is_written(tmp_path: Path) -> None:
    result = make_result(seeds=(1,), title=os.fsdecode(b"m\xe9thode"))
    result.class_names[0] = os.fsdecode(b"caf\xe9")
    assert "caf\\xe9" in write_report(result, tmp_path).read_text(encoding="utf-8")


def test_a_report_that_is_older_than_the_results_or_incomplete_is_noticed(tmp_path: Path) -> None:
    result = make_result(seeds=(1,))
    write_results(result, tmp_path)
    assert not report_is_there(tmp_path)
    write_report(result, tmp_path)
    assert report_is_there(tmp_path)
    os.utime(tmp_path / "curve.png", ns=(1, 1))
    assert not report_is_there(tmp_path)
