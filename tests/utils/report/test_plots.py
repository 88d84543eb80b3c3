"""The pictures: what is drawn, not how it looks (that was checked by eye)."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from tests.result_samples import make_result
from utils.report.drawing import DARK, DPI, LIGHT, few_ticks, following_reader, freeze_layout, pdf_bytes, png_bytes, svg_bytes
from utils.report.plots import _spread_out, curve_figure, matrix_figure
from utils.report.plots_measured import confusion_figure, timeline_figure


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def test_the_curve_draws_the_mean_over_the_classes_seen_with_a_band_of_one_standard_deviation() -> None:
    result = make_result()
    axes = curve_figure([result]).axes[0]
    curves = np.array([seed.top1_curve for seed in result.seeds])
    np.testing.assert_array_equal(axes.lines[0].get_xdata(), [2, 4, 6, 8, 10])
    np.testing.assert_allclose(axes.lines[0].get_ydata(), curves.mean(axis=0))
    heights = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert heights.max() == pytest.approx((curves.mean(axis=0) + curves.std(axis=0, ddof=1)).max())


def test_one_seed_has_no_band() -> None:
    assert not curve_figure([make_result(seeds=(1,))]).axes[0].collections


def test_a_run_of_one_task_is_a_dashed_level() -> None:
    joint = make_result("joint", "Joint", task_sizes=(10,))
    line = curve_figure([make_result(), joint]).axes[0].lines[1]
    assert line.get_linestyle() == "--" and set(line.get_ydata()) == {joint.summary["last"]["mean"]}


def test_every_line_is_named_at_its_end_and_no_two_names_overlap() -> None:
    results = [make_result(title=f"Method {k}", drop=4 + 0.01 * k) for k in range(18)]
    figure = curve_figure(results)
    png_bytes(figure)                                                               # lays the picture out
    labels = figure.axes[0].texts
    assert len(labels) == 18 and all(any(f"Method {k} " in text for text in texts(figure)) for k in range(18))
    boxes = sorted((Text.get_window_extent(label) for label in labels), key=lambda box: box.y0)
    assert all(low.y0 + 0.8 * low.height <= high.y0 for low, high in pairwise(boxes))


def test_labels_move_as_little_as_needed() -> None:
    assert _spread_out([1.0, 5.0], gap=2) == [1.0, 5.0]
    assert _spread_out([5.0, 5.0], gap=2) == [4.0, 6.0]
    crowded = _spread_out([1.0, 1.1, 1.2, 9.0], gap=1)
    assert np.diff(crowded).min() >= 1 - 1e-9 and crowded[3] == 9.0


def test_labels_stay_inside_the_picture_where_there_is_room() -> None:
    assert _spread_out([7.0, 9.9, 10.0], gap=2, low=0, high=10) == [6.0, 8.0, 10.0]
    assert _spread_out([0.0, 0.1, 5.0], gap=2, low=0, high=10) == [0.0, 2.0, 5.0]


def test_bands_are_left_out_where_they_would_hide_the_lines() -> None:
    axes = curve_figure([make_result(title=f"Method {k}") for k in range(8)]).axes[0]
    assert not axes.collections and "±" not in axes.get_title(loc="left")


def test_ticks_are_few_and_hold_the_last_value() -> None:
    assert few_ticks(range(1, 101))[-1] == 100 and len(few_ticks(range(1, 101))) == 10
    assert few_ticks([50, 100]) == [50, 100]


def test_the_matrix_shows_the_mean_of_each_cell_and_nothing_above_the_diagonal() -> None:
    result = make_result()
    cells = texts(matrix_figure(result))
    assert len(cells) == 15
    assert f"{np.mean([seed.accuracy_matrix[4][0] for seed in result.seeds]):.1f}" in cells


def test_a_matrix_of_many_tasks_leaves_the_numbers_out() -> None:
    assert texts(matrix_figure(make_result(seeds=(1,), task_sizes=(1,) * 30, drop=1))) == []


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_pictures_are_png_files_and_the_same_each_time(theme) -> None:
    first, second = (png_bytes(curve_figure([make_result(seeds=(1, 2))], theme=theme)) for _ in range(2))
    assert first.startswith(b"\x89PNG") and first == second


def test_a_task_without_test_images_leaves_its_cells_empty() -> None:
    result = make_result(seeds=(1,), task_sizes=(1, 1))
    result.seeds[0].accuracy_matrix = [[None, None], [None, 50.0]]
    assert texts(matrix_figure(result)) == ["50.0"]


def test_the_first_lines_of_a_comparison_differ_without_their_colours() -> None:
    lines = curve_figure([make_result(title=f"Method {k}") for k in range(20)]).axes[0].lines
    assert len({(line.get_marker(), str(line._dash_pattern)) for line in lines}) == 20


def test_a_vector_picture_is_the_same_each_time_and_follows_the_readers_setting() -> None:
    figures = [curve_figure([make_result(seeds=(1, 2))]) for _ in range(2)]
    first, second = map(svg_bytes, figures)
    assert first == second and LIGHT.lines[0].lower().encode() in first
    assert pdf_bytes(figures[0]) == pdf_bytes(figures[1]) and pdf_bytes(figures[0]).startswith(b"%PDF")
    drawn = following_reader(first).decode()
    assert "stroke: var(--line0)" in drawn and "prefers-color-scheme: dark" in drawn and drawn.count(LIGHT.lines[0]) == 1


def test_a_layout_that_is_kept_draws_the_same_picture() -> None:
    figure = matrix_figure(make_result())
    first = png_bytes(figure)
    freeze_layout(figure)
    assert png_bytes(figure) == first


def test_the_confusion_shows_both_classifiers_of_a_method_that_aligns() -> None:
    result = make_result()
    cells = [[text.get_text() for text in axes.texts] for axes in confusion_figure(result).axes]
    assert [len(panel) for panel in cells] == [25, 25] and cells[0][:2] == ["67", "8"]
    for seed in result.seeds:
        del seed.confusion["before"]
    assert len(confusion_figure(result).axes) == 1


def test_the_timeline_has_a_line_per_stage_and_a_rule_per_task() -> None:
    axes = timeline_figure(make_result()).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["train", "evaluation"]
    assert [line.get_xdata()[0] for line in axes.lines] == [2.0, 5.0, 8.0, 11.0, 14.0]


def test_a_hostile_name_is_drawn_as_text() -> None:
    png_bytes(curve_figure([make_result(title=r"$\frac{1}{$ <b>" + "x" * 500, seeds=(1,))]))


def test_drawing_leaves_pyplot_alone() -> None:
    png_bytes(matrix_figure(make_result(seeds=(1,))))
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()


@pytest.mark.parametrize("backend", ["module://matplotlib_inline.backend_inline", "Qt4Agg", "TkAgg", "nonsense", ""])
def test_a_picture_needs_no_backend_that_a_notebook_or_a_toolkit_asks_for(backend: str) -> None:
    program = ("import os; from tests.result_samples import make_result; from utils.report.plots import curve_figure\n"
               "from utils.report.drawing import png_bytes\n"
               "print(png_bytes(curve_figure([make_result()]))[:4], repr(os.environ['MPLBACKEND']))")
    done = subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[3], env={**os.environ, "MPLBACKEND": backend},
                          capture_output=True, text=True, check=True)
    assert done.stdout.strip() == rf"b'\x89PNG' {backend!r}"


def test_a_name_that_is_not_utf8_or_would_steer_a_terminal_is_drawn_as_text() -> None:
    assert texts(curve_figure([make_result()], [os.fsdecode(b"caf\xe9") + "\x1b"]))[0].startswith(r"caf\xe9\x1b")


def test_a_png_is_as_fine_after_the_vector_pictures_as_before() -> None:
    figure = curve_figure([make_result(seeds=(1, 2))])
    before = png_size(figure)
    for other in (svg_bytes, pdf_bytes):
        other(figure)
    assert png_size(figure) == before and before[0] == round(figure.get_size_inches()[0] * DPI)


def png_size(figure: Figure) -> tuple[int, int]:
    """Width and height in pixels."""
    return Image.open(io.BytesIO(png_bytes(figure))).size
