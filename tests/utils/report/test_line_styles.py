"""Which runs are coloured, and what else tells their lines apart."""

from __future__ import annotations

import pytest

from tests.result_samples import make_result
from utils.errors import UserError
from utils.report.line_styles import BEST, MOST_COLOURED, check_chosen, line_styles


def styles_of(count: int, *chosen: str):
    results = [make_result(title=f"M{k}", seeds=(1,), drop=count - k) for k in range(count)]  # the last one is the best
    return line_styles([*results, make_result("joint", "Joint", seeds=(1,), task_sizes=(10,))], [*(f"M{k}" for k in range(count)), "Joint"],
                       chosen)


def test_a_few_runs_have_a_colour_each() -> None:
    assert [style.colour for style in styles_of(MOST_COLOURED - 1)] == list(range(MOST_COLOURED))


def test_of_many_the_best_five_and_the_chosen_are_coloured_and_the_others_grey() -> None:
    coloured = [number for number, style in enumerate(styles_of(25, "M3", "M24", "Joint")) if style.colour is not None]
    assert coloured == [3, *range(25 - BEST, 25), 25]


@pytest.mark.parametrize("count", [6, 25])
def test_coloured_lines_differ_in_dash_and_marker_too(count: int) -> None:
    coloured = [style for style in styles_of(count, *(f"M{k}" for k in range(min(count, 15)))) if style.colour is not None]
    assert len({(str(style.dash), style.marker) for style in coloured}) == len(coloured) == min(count + 1, 20)


def test_a_name_that_no_run_has_is_a_user_error_with_the_names_there_are() -> None:
    with pytest.raises(UserError, match="got 'slca', allowed: SLCA, Joint"):
        check_chosen(["slca"], ["SLCA", "Joint"])
