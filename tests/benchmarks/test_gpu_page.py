import json
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def test_the_page_about_a_gpu_is_of_the_figures_beside_it(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.delitem(sys.modules, "gpu_page", raising=False)
    from gpu_page import PARTS, gpu_page

    figures = json.loads((BENCHMARKS / "gpu.json").read_text(encoding="utf-8"))
    assert set(PARTS) <= set(figures)
    assert (BENCHMARKS / "GPU_RESULTS.md").read_text(encoding="utf-8") == gpu_page(figures)
