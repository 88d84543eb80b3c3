"""Every page in a browser: nothing wider than the window, pictures and curves there, tables that sort, nothing cut on paper.

Skipped where there is no chromium.
"""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import unicodedata
from pathlib import Path

import pytest

from tests.result_samples import make_result
from utils.report.analysis import Analysis, HeadBias, WorstClass
from utils.report.analysis_page import write_analysis_page
from utils.report.compare import compare
from utils.report.compare_streams import compare_streams
from utils.report.page import write_report
from utils.report.results import write_results

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here; pages are not opened (apt-get install chromium)")
PAGES = ("report.html", "out/comparison.html", "many/comparison.html", "streams/ranks.html", "analysis.html")
WIDTHS = (400, 1400)
# The page at both widths at once: to start chromium takes most of the time.
FRAMES = """<body><script>const found = [];
onmessage = (event) => { found.push(JSON.parse(event.data)); document.title = JSON.stringify(found); };</script>""" + "".join(
    f'<iframe src="PAGE" style="border: 0; width: {width}px; height: 900px"></iframe>' for width in WIDTHS)
# What a page is like and does, told to what is around its frame, whose title the test reads.
PROBE = """<script>addEventListener("load", () => {
  const header = document.querySelectorAll("th[scope=col]")[2], found = {};
  found.inner = innerWidth; found.page = document.documentElement.scrollWidth;
  found.pictures = [...document.images].map((image) => image.naturalWidth);
  if (header) {
    header.click();
    found.sorted = [...header.closest("table").rows].slice(1).map((row) => row.cells[header.cellIndex].textContent);
  }
  const live = document.querySelector(".live");
  if (live !== null) {
    const svg = live.querySelector("svg.curves"), button = live.querySelector(".legend button");
    const line = svg.querySelector(`.line[data-n="${button.dataset.n}"]`), marks = line.querySelectorAll(".mark");
    const at = marks[marks.length - 1].getBoundingClientRect();
    svg.dispatchEvent(new PointerEvent("pointermove", {clientX: at.x + at.width / 2, clientY: at.y + at.height / 2}));
    found.told = live.querySelector(".tip").textContent; found.label = button.textContent.trim();
    found.value = button.closest("li").querySelector(".value").textContent;
    button.click(); found.hidden = [getComputedStyle(line).display, button.ariaPressed];
    button.click(); found.shown = [getComputedStyle(line).display !== "none", button.ariaPressed];
    found.lines = [...svg.querySelectorAll(".line .stroke")].filter((path) => path.getTotalLength() > 0).length;
  }
  parent.postMessage(JSON.stringify(found), "*");
})</script>"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One page of each kind, with long names and many columns."""
    folder = tmp_path_factory.mktemp("pages")
    result = make_result(task_sizes=(10,) * 10, drop=1)
    result.class_names = [f"{name} with a long name that goes on and on" for name in result.class_names]
    write_results(result, folder)
    write_report(result, folder)
    write_results(make_result("finetune", "Seq FT with a name of some length", task_sizes=(10,) * 10, drop=3, lr=0.5), folder / "other")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("write_picture", "curve_figure", "ranked_figure"):  # files beside the page, which draws its own curves
            patch.setattr(f"utils.report.compare.{name}", lambda *_, **__: None)
        compare([folder, folder / "other"], folder / "out")
        write_many(folder)
    heads = {which: HeadBias([1.0, 2.0], [0.5, 0.6], [40.0, 60.0]) for which in ("before", "after")}
    points = [(0.0, 1.0), (1.0, 0.0), (2.0, 1.0), (0.5, 0.5)]
    write_analysis_page(Analysis(
        run="r", title="SLCA", seed=1, note="Only one checkpoint.", states=["pre-trained", "task 2"], tasks=[None, 2],
        class_names=list("abcd"), task_of_class=[1, 1, 2, 2], probe_all=[70.0, 71.0], nearest_mean_all=[60.0, 61.0],
        probe_seen=[None, 71.0], classifier_seen=[None, 65.0], blocks=["block 1", "features"], cka=[[1.0, 1.0], [0.9, 0.8]],
        mean_cosine=[[None] * 4, [0.9, 0.9, 1.0, 1.0]], heads=heads, worst=[WorstClass("a", 10.0, [("b", 90.0)])],
        map={"pre-trained": points, "task 2": points}, map_tasks=[1, 1, 2, 2]), folder)
    return folder


def write_many(folder: Path) -> None:
    """A comparison of 25 methods, and ranks over three streams."""
    for number in range(25):
        write_results(make_result(f"m{number}", f"Method number {number}", drop=1 + number / 3, lr=1 + number, seeds=(1,)),
                      folder / "25" / f"m{number}")
    runs = [folder / "25" / f"m{number}" for number in range(25)]
    compare(runs, folder / "many")
    for dataset in "ab":
        for number in range(3):
            result = make_result(title=f"Method number {number}", drop=1 + number, dataset=dataset, seeds=(1,))
            write_results(result, folder / dataset / f"{number}")
    compare_streams([*runs[:3], *(folder / dataset / f"{number}" for dataset in "ab" for number in range(3))], folder / "streams")


def chromium(page: Path, *options: str) -> subprocess.CompletedProcess[str]:
    profile = next(parent for parent in page.parents if parent.name.startswith("pages")) / "profile"
    command = [CHROMIUM, "--no-sandbox", "--headless", "--disable-gpu", "--virtual-time-budget=5000", "--enable-logging=stderr",
               f"--user-data-dir={profile}", *options, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


def open_page(page: Path) -> dict[int, dict]:
    """The page in frames of WIDTHS, without its rule against scripts: what PROBE found, by width. No error may come to the console."""
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text(encoding="utf-8"))
    probed, frame = page.with_name(f"probed_{page.name}"), page.with_name("frame.html")
    probed.write_text(text.replace("</body>", PROBE + "</body>"), encoding="utf-8")
    frame.write_text(FRAMES.replace("PAGE", probed.name))
    done = chromium(frame, "--window-size=1900,900", "--dump-dom")
    assert "CONSOLE" not in done.stderr
    found = json.loads(html.unescape(re.search(r"<title>(\[.*?\])</title>", done.stdout, re.DOTALL)[1]))
    return {one["inner"]: one for one in found}


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_no_wider_than_its_window_shows_its_pictures_and_its_curves_answer(name: str, pages: Path) -> None:
    frames = open_page(pages / name)
    assert sorted(frames) == sorted(WIDTHS)
    for width, found in frames.items():
        assert found["page"] <= width
        assert found["pictures"] or found["lines"]
        assert not found["pictures"] or min(found["pictures"]) > 0
        if "lines" in found:
            assert found["lines"] == {"report.html": 4, "out/comparison.html": 2, "many/comparison.html": 25}[name]
            assert found["told"].startswith(f"{found['label']}, after task") and found["value"] in found["told"]
            assert found["hidden"] == ["none", "false"] and found["shown"] == [True, "true"]
        if name == "out/comparison.html":
            assert found["sorted"] == sorted(found["sorted"]) and len(found["sorted"]) == 2


def test_the_pages_own_script_is_let_through_by_its_own_rule(pages: Path) -> None:
    done = chromium(pages / "report.html", "--dump-dom")
    assert 'tabindex="0"' in done.stdout and "CONSOLE" not in done.stderr


@pytest.mark.parametrize("name", ["report.html", "many/comparison.html"])
def test_a_printed_page_cuts_no_table_and_opens_what_is_folded(name: str, pages: Path) -> None:
    pypdf = pytest.importorskip("pypdf", reason="no pypdf here; printed pages are not read (pip install pypdf)")
    pdf = pages / "printed.pdf"
    chromium(pages / name, f"--print-to-pdf={pdf}", "--no-pdf-header-footer")
    words = []
    for sheet in pypdf.PdfReader(pdf).pages:
        right = float(sheet.mediabox.right)

        def see(text: str, page: list[float], line: list[float], _font: object, _size: object, right: float = right) -> None:
            if text.strip():
                words.append(text)
                x = page[0] * line[4] + page[4]  # two matrices of PDF: of the page's units, and of the line of text in it
                assert 0 <= x < right, f"{text!r} is outside the sheet"

        sheet.extract_text(visitor_text=see)
    printed = re.sub(r"\s+", "", unicodedata.normalize("NFKC", "".join(words)))  # fonts have one letter for "fi"
    page = (pages / name).read_text(encoding="utf-8")
    cells = [html.unescape(re.sub("<[^>]*>", "", cell)) for cell in re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", page, re.DOTALL)]
    assert len(cells) > 100 and [cell for cell in cells if re.sub(r"\s+", "", cell) not in printed] == []
