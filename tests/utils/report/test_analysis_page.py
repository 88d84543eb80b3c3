"""The analysis page and its file: what is said of the figures, and files that are none."""

from __future__ import annotations

import json

import pytest

from tests.analysis_samples import PIXEL, make_analysis
from utils.errors import UserError
from utils.report.analysis import ANALYSIS, read_analysis, write_analysis
from utils.report.analysis_page import frechet_words, map_words, write_analysis_page
from utils.report.plots_analysis import map_figure


def test_the_file_holds_all_of_an_analysis(tmp_path):
    write_analysis(make_analysis(), tmp_path)
    assert read_analysis(tmp_path) == make_analysis()


def test_the_page_shows_lost_images_nearest_gaussians_and_how_the_map_was_made(tmp_path):
    text = write_analysis_page(make_analysis(map_method="UMAP", stored=False), tmp_path).read_text()
    assert f'src="{PIXEL}"' in text and 'alt="a, taken for b"' in text and "b 0.40, its own 0.90" in text
    assert "UMAP of each state" in text and "principal components" not in text and "stores no Gaussians" in text


def test_an_analysis_of_an_older_version_has_a_page(tmp_path):
    older = make_analysis(frechet=[], map_classes=[])
    older.worst[0].examples, older.worst[0].nearest = [], []
    text = write_analysis_page(older, tmp_path).read_text()
    assert "principal components" in text and "analysis_frechet.svg" not in {path.name for path in tmp_path.iterdir()}


def test_distances_are_told_of_the_first_tasks_classes():
    assert "stored Gaussians of the first task's classes are 0.60 of" in frechet_words(make_analysis())
    assert "by UMAP" in map_words(make_analysis(map_method="UMAP")) and "principal components" in map_words(make_analysis())


def test_the_map_is_by_class_too_where_marks_tell_all_classes_apart():
    assert len(map_figure(make_analysis()).axes) == 4
    many = make_analysis(class_names=[str(n) for n in range(100)], task_of_class=[1] * 50 + [2] * 50)
    assert len(map_figure(many).axes) == 2
    marks = {(tuple(points.get_facecolor()[0]), points.get_paths()[0].vertices.tobytes()) for points in map_figure(make_analysis(
        class_names=[str(n) for n in range(35)], task_of_class=[1] * 35, map_tasks=[1] * 35, map_classes=list(range(35)),
        map={"pre-trained": [(float(n), 0.0) for n in range(35)]})).axes[1].collections}
    assert len(marks) == 35


@pytest.mark.parametrize(("change", "told"), [
    ({"cka": [[1.0, 1.0]]}, "cka: got 1 entries, not 2"), ({"probe_all": "high"}, "probe_all"),
    ({"map_classes": [0, 1, 2, 9]}, "map_classes: a class is below 0 or above 3"),
    ({"worst": [{"name": "a", "accuracy": 1, "taken_for": [], "examples": [{"image": "https://x.y/z.png", "taken_for": "b"}]}]}, "image"),
    ({"states": []}, "states"), ({"heads": {"after": {"mean_logit": [], "weight_norm": [], "share": [1.0]}}}, "heads.after.mean_logit")])
def test_a_file_that_is_no_analysis_is_told_by_what_is_wrong(change, told, tmp_path):
    write_analysis(make_analysis(), tmp_path)
    (tmp_path / ANALYSIS).write_text(json.dumps({**json.loads((tmp_path / ANALYSIS).read_text()), **change}))
    with pytest.raises(UserError, match=f"is no analysis: .*{told}"):
        read_analysis(tmp_path)
