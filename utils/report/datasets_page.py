"""The tables of docs/datasets.md, made from the registry: `python -m utils.report.datasets_page` writes them anew."""

from __future__ import annotations

from collections.abc import Sequence

from utils.data.registry import REGISTRY, Registered
from utils.files import PROJECT, write_atomic

PAGE = PROJECT / "docs" / "datasets.md"
MARK = "<!-- {} table: python -m utils.report.datasets_page -->"


def sets_table() -> str:
    """Name, classes, images, split, folder and training transform of every registered set."""
    rows = [["name", "classes", "training / test images", "split", "folder", "training transform"]]
    for name, entry in REGISTRY.items():
        info, splits = entry.info, entry.splits
        classes = f"{info.num_classes:,}{f' x {len(info.domains)} domains' if info.domains else ''}"
        words = "; or ".join(split.name + ("" if split.sure else " (numbers from tables of papers)") for split in splits)
        size = "" if info.image_size == 224 else f" ({info.image_size} px)"
        rows.append([f"`{name}`", classes, f"{_number(info.train_count)} / {_number(info.test_count)}", words or "-",
                     f"`{info.folder}`" if info.folder else "-", f"{info.train_transform}{size}"])
    return _markdown(rows)


def sources_table() -> str:
    """Where each set comes from, its size, licence, official layout and command, and the public code it was checked against."""
    rows = [["name", "get it from", "size", "licence", "official layout", "command", "checked in"]]
    for name, entry in REGISTRY.items():
        if entry.info.folder:
            archives = ", ".join(f"`{archive.file.rpartition('/')[2]}`" for archive in entry.card.archives[:4])
            more = f" and {len(entry.card.archives) - 4} more" if len(entry.card.archives) > 4 else ""
            rows.append([f"`{name}`", f"{entry.info.source}: {archives}{more}", entry.card.size, entry.card.licence, entry.card.layout,
                         _command(name, entry), entry.card.checked or "-"])
    return _markdown(rows)


def page_with_tables(page: str) -> str:
    """The page with its tables as they are now; each stands between two marks."""
    for kind, table in (("sets", sets_table()), ("sources", sources_table())):
        mark = MARK.format(kind)
        before, _, after = page.split(mark)
        page = f"{before}{mark}\n{table}\n{mark}{after}"
    return page


def _command(name: str, entry: Registered) -> str:
    direct = entry.card.archives and all(archive.url for archive in entry.card.archives)
    return f"`prepare {name} {'--download' if direct else '--source ...'}`"


def _number(count: int | None) -> str:
    return "?" if count is None else f"{count:,}"


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    head, *body = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([head, "|" + "---|" * len(rows[0]), *body])


if __name__ == "__main__":
    write_atomic(PAGE, page_with_tables(PAGE.read_text(encoding="utf-8")))
