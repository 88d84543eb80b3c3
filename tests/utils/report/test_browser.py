"""Every page in a browser: nothing wider than the window, all pictures there, tables that sort. Skipped where there is no chromium."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.result_samples import make_result
from utils.report.analysis import Analysis, HeadBias, WorstClass
from utils.report.analysis_page import write_analysis_page
from utils.report.compare import compare
from utils.report.page import write_report
from utils.report.results import write_results

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here; pages are not opened (apt-get install chromium)")
PAGES = ("report.html", "out/comparison.html", "analysis.html")
PROBE = """<script>
const header = document.querySelectorAll("th[scope=col]")[2]; header.click();
const column = [...header.closest("table").rows].slice(1).map((row) => row.cells[header.cellIndex].textContent);
document.title = JSON.stringify({inner: innerWidth, page: document.documentElement.scrollWidth, sorted: column,
  pictures: [...document.images].map((image) => image.naturalWidth)});
</script>"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One page of each kind, with long names and many columns."""
    folder = tmp_path_factory.mktemp("pages")
    result = make_result(task_sizes=(10,) * 10, drop=1)
    result.class_names = [f"{name} with a long name that goes on and on" for name in result.class_names]
    write_results(result, folder)
    write_report(result, folder)
    write_results(make_result("finetune", "Seq FT with a name of some length", task_sizes=(10,) * 10, drop=3, lr=0.5), folder / "other")
    compare([folder, folder / "other"], folder / "out")
    heads = {which: HeadBias([1.0, 2.0], [0.5, 0.6], [40.0, 60.0]) for which in ("before", "after")}
    points = [(0.0, 1.0), (1.0, 0.0), (2.0, 1.0), (0.5, 0.5)]
    write_analysis_page(Analysis(
        run="r", title="SLCA", seed=1, note="Only one checkpoint.", states=["pre-trained", "task 2"], tasks=[None, 2],
        class_names=list("abcd"), task_of_class=[1, 1, 2, 2], probe_all=[70.0, 71.0], nearest_mean_all=[60.0, 61.0],
        probe_seen=[None, 71.0], classifier_seen=[None, 65.0], blocks=["block 1", "features"], cka=[[1.0, 1.0], [0.9, 0.8]],
        mean_cosine=[[None] * 4, [0.9, 0.9, 1.0, 1.0]], heads=heads, worst=[WorstClass("a", 10.0, [("b", 90.0)])],
        map={"pre-trained": points, "task 2": points}, map_tasks=[1, 1, 2, 2]), folder)
    return folder


def open_page(page: Path, width: int) -> dict:
    """The page in a window of `width` pixels, without its rule against scripts: how wide it is, and how wide its pictures are."""
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text(encoding="utf-8"))
    probed = page.with_name(f"probed_{page.name}")
    probed.write_text(text.replace("</body>", PROBE + "</body>"), encoding="utf-8")
    command = [CHROMIUM, "--no-sandbox", "--headless", "--disable-gpu", "--virtual-time-budget=5000", f"--window-size={width},900",
               f"--user-data-dir={page.parent / 'profile'}", "--dump-dom", probed.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return json.loads(re.search(r"<title>(\{.*?\})</title>", done.stdout, re.DOTALL)[1])


@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_no_wider_than_its_window_and_shows_its_pictures(name: str, width: int, pages: Path) -> None:
    found = open_page(pages / name, width)
    assert found["page"] <= found["inner"] <= max(width, 500)  # some chromium will not make a window narrower than that
    assert found["pictures"] and min(found["pictures"]) > 0


def test_a_click_on_a_header_sorts_the_table(pages: Path) -> None:
    column = open_page(pages / "out" / "comparison.html", 1400)["sorted"]
    assert column == sorted(column) and len(column) == 2


def test_the_pages_own_script_is_let_through_by_its_own_rule(pages: Path) -> None:
    command = [CHROMIUM, "--no-sandbox", "--headless", "--disable-gpu", "--virtual-time-budget=2000",
               f"--user-data-dir={pages / 'profile'}", "--enable-logging=stderr", "--dump-dom", (pages / "report.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert 'tabindex="0"' in done.stdout and "CONSOLE" not in done.stderr
