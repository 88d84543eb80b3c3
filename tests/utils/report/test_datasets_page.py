"""docs/datasets.md holds the registry's tables."""

from utils.data.registry import REGISTRY
from utils.report.datasets_page import PAGE, page_with_tables, sources_table


def test_the_page_is_up_to_date():
    page = PAGE.read_text(encoding="utf-8")
    assert page_with_tables(page) == page, "run python -m utils.report.datasets_page"


def test_every_set_in_files_has_a_source_a_licence_a_layout_and_a_command():
    rows = {row.split("|")[1].strip(" `"): row.split("|")[2:-1] for row in sources_table().splitlines()[2:]}
    assert set(rows) == {name for name, entry in REGISTRY.items() if entry.info.folder}
    assert all(cell.strip() for cells in rows.values() for cell in cells)
    assert "`prepare food101 --download`" in rows["food101"][4] and "`prepare objectnet --source ...`" in rows["objectnet"][4]
