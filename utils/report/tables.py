"""Results as aligned plain text: the table that a run prints at its end, with the paper's figure beside it."""

from __future__ import annotations

from collections.abc import Sequence

from utils.formulas.metrics import percent_text
from utils.machine.speed import arithmetic
from utils.report.published import Published, published_beside
from utils.report.results import HEADLINES, WHERE_DEFINED, RunResult, Statistic, statistic
from utils.terminal import visible_name

TASKS_PER_LINE = 10         # of the curve, on a terminal of 100 columns
SEEDS_SHOWN = 5             # with more seeds than these, only mean ± std
SPREAD = "Mean ± standard deviation over the seeds, each of which is another class order."


def results_table(result: RunResult) -> str:
    """The run as plain text: headline figures per seed, mean ± std, the paper's figure if there is one, the curve."""
    reference = published_beside(result)
    lines = [title_line(result), "", *text_table(headline_rows(result, reference, SEEDS_SHOWN)), ""]
    lines += _curve_lines(result)
    learned = [len(seed.task_sizes) for seed in result.seeds]
    if len(set(learned)) > 1:
        lines += ["", f"Unfinished: the seeds have learned {', '.join(map(str, learned))} tasks; the mean mixes them."]
    if len(result.seeds) > 1:
        lines += ["", SPREAD]
    if reference:
        lines += ["", f"{reference.words}."]
    return "\n".join(lines)


def headline_rows(result: RunResult, reference: Published | None, most_seeds: int) -> list[list[str]]:
    """Header and one row per headline figure: each seed (unless more than `most_seeds`), mean ± std, the paper's."""
    seeds = result.seeds if 1 < len(result.seeds) <= most_seeds else []
    mean = "mean ± std" if len(result.seeds) > 1 else "accuracy"
    rows = [["", *(f"seed {seed.seed}" for seed in seeds), mean, *(["paper"] if reference else [])]]
    for key, label in HEADLINES.items():
        figure = result.shown(key)
        undefined = figure["mean"] is None
        if undefined and key in WHERE_DEFINED:
            continue
        cells = [mean_std_text({"mean": None if undefined else getattr(seed, key), "std": None}) for seed in seeds]
        paper = [mean_std_text(reference.figures.get(key))] if reference else []
        rows.append([f"{label} (%)", *cells, mean_std_text(figure), *paper])
    return rows


def datasets_table() -> str:
    """Every registered data set on one line: name, classes, images, size in pixels, folder under `data_root`, source."""
    from utils.data.registry import list_datasets  # imports numpy, which a comparison of results does not need

    rows = [["name", "classes", "training", "test", "pixels", "folder", "source"]]
    for info in list_datasets():
        counts = ["?" if count is None else f"{count:,}" for count in (info.train_count, info.test_count)]
        rows.append([info.name, str(info.num_classes), *counts, str(info.image_size), info.folder or "-", info.source])
    lines = text_table([row[:5] for row in rows])
    width = max(len(row[5]) for row in rows)
    return "\n".join(f"{line}  {row[5]:{width}}  {row[6]}" for line, row in zip(lines, rows, strict=True))


def title_line(result: RunResult) -> str:
    """"SLCA on cifar100_224 with vit-b-p16: 100 classes in 10 tasks, 3 seeds, 32-true"."""
    return printable(f"{result.name} on {result.dataset_words} with {result.backbone}: {stream_text(result)}")


def stream_text(result: RunResult) -> str:
    """"100 classes in 10 tasks, 3 seeds, bf16-mixed, TF32", with a protocol named after the tasks."""
    size = f"{_count(result.num_classes, 'class', 'classes')} in {_count(result.num_tasks, 'task')}"
    protocol = f", {result.protocol}" if result.protocol else ""
    return f"{size}{protocol}, {_count(len(result.seeds), 'seed')}, {printable(arithmetic(result.config))}"


def _count(number: int, noun: str, plural: str = "") -> str:
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def printable(text: str) -> str:
    """`text` as one line, its control characters written out: a name from a config must not steer the terminal."""
    return visible_name(text)


def text_table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as aligned lines: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
        for row in rows
    ]


def _curve_lines(result: RunResult) -> list[str]:
    """Top-1 accuracy after each task, mean over the seeds, at most TASKS_PER_LINE tasks side by side."""
    if not result.seeds:
        return []
    seen = min((seed.classes_seen for seed in result.seeds), key=len)
    means = [statistic(seed.top1_curve[t] for seed in result.seeds)["mean"] for t in range(len(seen))]
    lines = []
    for start in range(0, len(seen), TASKS_PER_LINE):
        part = slice(start, start + TASKS_PER_LINE)
        rows = [["Classes seen", *map(str, seen[part])], ["Top-1 (%)", *map(percent_text, means[part])]]
        lines += text_table(rows)
    return lines


def mean_std_text(figure: Statistic | None, digits: int = 2) -> str:
    """"91.53 ± 0.28", without the second part for one seed; "-" where undefined."""
    if figure is None or figure["mean"] is None:
        return "-"
    text = f"{figure['mean']:.{digits}f}"
    return text if figure["std"] is None else f"{text} ± {figure['std']:.{digits}f}"


def count_text(number: float | None) -> str:
    """"85.8 M", "1,290"; "-" for None."""
    if number is None:
        return "-"
    return f"{number / 1e6:.2f} M" if number >= 1e6 else f"{number:,.0f}"


def bytes_text(number: float | None) -> str:
    """"1.24 MiB", "0 B"; "-" for None."""
    if number is None:
        return "-"
    for unit in ("B", "KiB", "MiB"):
        if number < 1024:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.2f} {unit}"
        number /= 1024
    return f"{number:.2f} GiB"


def seconds_text(figure: Statistic) -> str:
    """"13.2 ± 0.4 s", or in minutes or hours where that reads better; "-" where undefined."""
    mean = figure["mean"]
    if mean is None:
        return "-"
    unit, length = ("s", 1) if mean < 120 else ("min", 60) if mean < 7200 else ("h", 3600)
    scaled: Statistic = {name: None if value is None else value / length for name, value in figure.items()}
    return f"{mean_std_text(scaled, digits=1)} {unit}"
