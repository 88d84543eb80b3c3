"""All methods on small streams that tell them apart: the demo's, and icons by class and by style, each with a near and a far backbone.

    python benchmarks/methods.py [--streams near far demo ...] [--methods slca ease ...] [--seeds 0 1 2] [--jobs 1]

A method is a file exps/<method>_demo.json; another stream replaces its data, tasks and weights, nothing else, so no setting was chosen
on the icons. Each seed is another class order. Runs go side by side (`--on local`). Interrupted, the same command goes on where it was;
what is done is not done again.
Writes benchmarks/methods.json and METHODS.md, of all runs that are there.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common import PROJECT, WORK, machine
from report import table

from utils.formulas.paired import paired_difference
from utils.json_files import read_json
from utils.report.results import RunResult, read_results
from utils.report.tables import bytes_text, mean_std_text

EXPS, OUT = PROJECT / "exps", WORK / "methods"
ICONS = {"name": "icons50", "layout": "npz", "root": "exps/streams/icons50.npz", "train_transform": "none", "mean": [0.286], "std": [0.353]}
STYLES = {**ICONS, "name": "icons_styles", "root": "exps/streams/icons_styles.npz"}
BY_CLASS: dict[str, Any] = {"dataset": ICONS, "init_cls": 5, "increment": 5}
BY_STYLE: dict[str, Any] = {"dataset": STYLES, "scenario": "domain", "init_cls": None, "increment": None}
NEAR, FAR = "pretrained/vit_demo_glyphs.safetensors", "pretrained/vit_demo_clothing.safetensors"
STREAMS: dict[str, tuple[str, str, dict[str, Any]]] = {  # name -> what the table calls it, weights, settings that replace the demo's
    "near": ("icons50, near", NEAR, BY_CLASS),
    "far": ("icons50, far", FAR, BY_CLASS),
    "demo": ("demo", NEAR, {}),
    "styles_near": ("icons_styles, near", NEAR, BY_STYLE),
    "styles_far": ("icons_styles, far", FAR, BY_STYLE),
}


def methods() -> list[str]:
    """Names of exps/<method>_demo.json."""
    return sorted(file.stem.removesuffix("_demo") for file in EXPS.glob("*_demo.json"))


def settings(method: str, stream: str, seeds: list[int]) -> dict[str, Any]:
    """One experiment's config."""
    _, weights, replaced = STREAMS[stream]
    found = read_json(EXPS / f"{method}_demo.json") | replaced | {"seed": seeds}
    found |= {"convnet_type": found["convnet_type"] | {"weights": weights}}
    return {key: value for key, value in found.items() if key != "$schema" and value is not None}


def run(stream: str, chosen: list[str], seeds: list[int], jobs: int) -> None:
    """Train, or go on with, the experiments of one stream, `jobs` at a time, each in a process of its own."""
    train({f"{method}_{stream}": settings(method, stream, seeds) for method in chosen}, OUT / "configs" / stream, OUT / stream, jobs)


def train(configs: Mapping[str, dict[str, Any]], folder: Path, out: Path, jobs: int) -> None:
    """Write each config into `folder`, as the file of its name, and train them or go on with them, `jobs` at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{name}.json" for name in configs]
    for file, config in zip(files, configs.values(), strict=True):
        file.write_text(json.dumps(config, indent=2), encoding="utf-8")
    command = [sys.executable, "main.py", "--config", *map(str, files), "--out", str(out), "--resume", "--on", "local", "--jobs", str(jobs)]
    subprocess.run(command, cwd=PROJECT, check=False)  # what fails is told there, and missing in the table


def results(stream: str) -> dict[str, RunResult]:
    """The newest results of every method on a stream."""
    found = {}
    for method in methods():
        runs = sorted((OUT / stream / f"{method}_{stream}").glob("*/results.json"))
        if runs:
            found[method] = read_results(runs[-1])
    return found


def figures() -> dict[str, Any]:
    """stream -> method -> what the page shows, from all runs that are there; the file's own where a run is not there any more."""
    kept = PROJECT / "benchmarks" / "methods.json"
    found: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {"streams": {}}
    for stream in STREAMS:
        for method, result in results(stream).items():
            found["streams"].setdefault(stream, {})[method] = {
                "title": result.name, "last": {str(seed.seed): seed.last for seed in result.seeds},
                "average_incremental": {str(seed.seed): seed.average_incremental for seed in result.seeds},
                "memory_bytes": max(sum(seed.memory_curve[-1].values()) for seed in result.seeds)}
    found["machine"] = machine()
    kept.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


def page(found: dict[str, Any]) -> str:
    """A row per method, best mean rank first: its accuracies, and how far they are from the best method's."""
    streams = {stream: rows for stream, rows in found["streams"].items() if rows}
    means = {stream: {method: statistics.mean(row["last"].values()) for method, row in rows.items()} for stream, rows in streams.items()}
    complete = set.intersection(*map(set, means.values())) if means else set()  # ranks compare what is on all streams
    rank = {method: statistics.mean(1 + sum(rows[other] > rows[method] for other in complete) for rows in means.values())
            for method in complete}
    behind_all = {method: statistics.mean(max(rows.values()) - rows[method] for rows in means.values() if method in rows)
                  for method in {method for rows in means.values() for method in rows}}
    best = {stream: max(rows, key=lambda name: rows[name]) for stream, rows in means.items()}
    rows, behind = [], []
    for method in sorted(behind_all, key=lambda name: (rank.get(name, len(complete) + 1), behind_all[name], name)):
        here = {stream: rows[method] for stream, rows in streams.items() if method in rows}
        cells = [_last(here[stream]["last"]) if stream in here else "-" for stream in streams]
        rows.append([next(iter(here.values()))["title"], *cells, f"{rank[method]:.1f}" if method in rank else "-",
                     bytes_text(next(iter(here.values()))["memory_bytes"])])
        behind.append([rows[-1][0], *(_behind(here[stream]["last"], streams[stream][best[stream]]["last"]) if stream in here else "-"
                                      for stream in streams)])
    titles = [STREAMS[stream][0] for stream in streams]
    header = ["Method", *(f"{title}: last (%)" for title in titles), "Mean rank", "Memory kept"]
    return (f"# Methods on small streams\n\n{__doc__.strip().splitlines()[0]}\nMade by `python benchmarks/methods.py`; mean ± standard "
            "deviation over class orders, whose number stands in brackets where it is not three. A method's settings are those of its "
            f"`exps/*_demo.json`, the same on all streams. {len(rows)} of {len(methods())} methods are here; the same command runs the "
            "others. Ranks are among the methods on all streams; the others follow by how far they are from the best row.\n\n"
            + table(header, rows)
            + "\n\nMemory kept is what a learner carries beside the pre-trained network after the first stream's last task.\n\n"
              "## Points from the best row\n\nPaired by class order; in brackets the 95 % interval of the percentile bootstrap over the "
              "orders, which of three orders is no more than their range.\n\n"
            + table(["Method", *titles], behind) + "\n")


def mean_and_spread(values: Sequence[float]) -> str:
    """"85.09 ± 0.00"; of one value no spread."""
    return mean_std_text({"mean": statistics.mean(values), "std": statistics.stdev(values) if len(values) > 1 else None})


def _last(seeds: dict[str, float]) -> str:
    values = list(seeds.values())
    text = mean_and_spread(values)
    return text if len(values) == 3 else f"{text} ({len(values)})"


def _behind(seeds: dict[str, float], best: dict[str, float]) -> str:
    """"-1.20 (-1.50 to -0.95)": less than the best method over the class orders that both have; "-" for that method itself."""
    both = [seed for seed in seeds if seed in best]
    if seeds == best or not both:
        return "-"
    difference = paired_difference([seeds[seed] for seed in both], [best[seed] for seed in both])
    interval = "" if difference.low is None else f" ({difference.low:+.2f} to {difference.high:+.2f})"
    return f"{difference.mean:+.2f}{interval}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", nargs="+", choices=STREAMS, default=list(STREAMS))
    parser.add_argument("--methods", nargs="+", choices=methods(), default=methods())
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side")
    arguments = parser.parse_args()
    for stream in arguments.streams:
        run(stream, arguments.methods, arguments.seeds, arguments.jobs)
    target = PROJECT / "benchmarks" / "METHODS.md"
    target.write_text(page(figures()), encoding="utf-8")
    print(target)


if __name__ == "__main__":
    main()
