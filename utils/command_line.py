"""The options of every command. Nothing is imported here that takes time, so that --help and a mistyped option answer at once."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.terminal import show


class ShowVersions(argparse.Action):
    """Print the versions that a result depends on, and stop."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from utils.machine.environment import versions
        show("\n".join(f"{name} {version}" for name, version in versions().items() if version))
        parser.exit()


def run_arguments(argv: list[str], commands: Sequence[str] = (), description: str = "") -> argparse.Namespace:
    """Options of a run: train, test or describe configs.

    Raises:
        UserError: a word that is no command, or options that contradict each other.
    """
    parser = argparse.ArgumentParser(prog="main.py", description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", nargs="+", type=Path, required=True, metavar="FILE", help="JSON files, one experiment each")
    parser.add_argument("--set", nargs="+", default=[], metavar="key=value", action="extend",
                        help="settings that win over the file, values in JSON; dataset.image_size=32 is a key inside an object")
    parser.add_argument("--device", help="auto, cpu, cuda, cuda:1 or GPU numbers such as 0,1; wins over the file")
    parser.add_argument("--out", type=Path, default=Path("logs"), metavar="DIR", help="where runs are written (default: logs)")
    parser.add_argument("--resume", action="store_true", help="continue the newest unfinished run")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--test_only", action="store_true", help="evaluate a run from its checkpoints")
    instead.add_argument("--dry_run", action="store_true", help="print what would run, and stop")
    parser.add_argument("--after_task", type=int, metavar="N", help="with --test_only: the checkpoint after task N instead of the newest")
    _add_place(parser, None)
    parser.add_argument("--profile", action="store_true", help="trace every stage once and write where the time went")
    parser.add_argument("--quiet", action="store_true", help="show warnings and errors only; log.txt in the run's folder has everything")
    parser.add_argument("-v", "--verbose", action="store_true", help="show each line's time and origin, and tracebacks")
    parser.add_argument("--version", action=ShowVersions, nargs=0, help="print the versions that a result depends on, and stop")
    if argv and not argv[0].startswith("-"):
        raise UserError(_no_command(argv[0], commands))
    arguments = parser.parse_args(argv)
    if arguments.after_task is not None and not arguments.test_only:
        raise UserError("--after_task: belongs to --test_only, which evaluates a checkpoint; add --test_only or leave it out")
    _check_task(arguments.after_task)
    _check_place(arguments)
    return arguments


def sweep_arguments(argv: list[str]) -> argparse.Namespace:
    """Options of a sweep. Raises UserError: options that contradict each other, or numbers that are none."""
    parser = argparse.ArgumentParser(prog="main.py sweep", description="Many runs of some configs, and the settings that are best by "
                                     "validation accuracy (val_fraction).", epilog="docs/distributed.md has examples")
    parser.add_argument("--config", nargs="+", type=Path, required=True, metavar="FILE", help="JSON files to start from")
    parser.add_argument("--set", nargs="+", default=[], metavar="key=value", action="extend",
                        help="a list holds the values to try, lr=[0.01,0.1]; with --search also a range, "
                             "'lr={\"low\":1e-4,\"high\":0.1,\"log\":true}'; any other value is the same in every run")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="SEED", help="every point runs with these (default: the configs' own)")
    parser.add_argument("--search", type=int, metavar="N", help="let Optuna choose N points instead of trying all")
    parser.add_argument("--storage", metavar="URL", help="where Optuna keeps the search, for several machines at once: sqlite:///FILE, "
                                                         "postgresql://..., mysql://..., journal:///FILE, redis://... (default: a file)")
    parser.add_argument("--device", help="auto, cpu, cuda, or GPU numbers such as 0,1; wins over the files")
    parser.add_argument("--out", type=Path, metavar="DIR", help="the sweep's folder (default: a new one in logs/sweeps, found again by the "
                                                                "same command)")
    _add_place(parser, "local")
    arguments = parser.parse_args(argv)
    _check_place(arguments)
    _check_count("--search", arguments.search)
    if arguments.storage is not None and arguments.search is None:
        raise UserError("--storage: belongs to --search N, a grid needs none; add --search or leave it out")
    return arguments


def status_arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="main.py status", description="What became of the runs and sweeps in a folder.")
    parser.add_argument("folder", nargs="?", type=Path, default=Path("logs"), metavar="FOLDER", help="default: logs")
    return parser.parse_args(argv)


def _add_place(parser: argparse.ArgumentParser, default: str | None) -> None:
    """Where several runs go."""
    group = parser.add_argument_group("where the runs go")
    group.add_argument("--on", choices=["local", "slurm"], default=default,
                       help="local: side by side on this machine; slurm: jobs of a cluster" + ("" if default else
                            " (default: one after another in this process)"))
    group.add_argument("--jobs", type=int, metavar="N", help="at most N at once (default: as many as GPUs, without GPUs as cores; on a "
                                                             "cluster all)")
    group.add_argument("--gpus-per-run", "--gpus_per_run", type=int, metavar="K", help="default: 1, where there are GPUs")
    group.add_argument("--cpus-per-run", "--cpus_per_run", type=int, metavar="K",
                       help="cores of each run (default: an equal share; on a cluster what it gives)")
    group.add_argument("--time", metavar="H:M:S", help="after which a run is stopped, queued again and resumed (default: none; on a "
                                                       "cluster 12:00:00)")
    group.add_argument("--slurm", nargs="+", default=[], metavar="option=value", action="extend",
                       help="more of sbatch's options, e.g. partition=gpu account=vision mem=32G")


def _check_place(arguments: argparse.Namespace) -> None:
    if arguments.on is None:
        given = [name for name in ("jobs", "gpus_per_run", "cpus_per_run", "time", "slurm") if getattr(arguments, name) not in (None, [])]
        if given:
            raise UserError(f"--{given[0].replace('_', '-')}: says how runs go side by side; add --on local or --on slurm, or leave it out")
    elif getattr(arguments, "dry_run", False) or getattr(arguments, "test_only", False):
        raise UserError("--on: belongs to training; --dry_run and --test_only answer here and at once, leave it out")
    if arguments.slurm and arguments.on != "slurm":
        raise UserError("--slurm: belongs to --on slurm; add that, or leave it out")
    _check_count("--jobs", arguments.jobs)
    _check_count("--cpus-per-run", arguments.cpus_per_run)
    _check_count("--gpus-per-run", arguments.gpus_per_run, least=0)


def _check_count(option: str, number: int | None, least: int = 1) -> None:
    if number is not None and number < least:
        raise UserError(f"{option}: got {number}, allowed: {least} or more")


def _no_command(word: str, commands: Sequence[str]) -> str:
    if word.endswith(".json"):
        return f"{word}: a config is named with --config, as in: python main.py --config {word}"
    near = difflib.get_close_matches(word, commands, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"there is no command {word!r}; {hint}there are {', '.join(commands)}, and --config FILE to train (python main.py --help)"


def _check_task(after_task: int | None) -> None:
    if after_task is not None and after_task < 1:
        raise UserError(f"--after_task: got {after_task}, allowed: 1 or more (tasks are counted from 1)")


def list_arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="main.py list", description="Print the names that a config may use.")
    parser.add_argument("what", choices=["methods", "datasets", "backbones"])
    return parser.parse_args(argv)


def compare_arguments(argv: list[str]) -> argparse.Namespace:
    from utils.report.compare_tables import SORTABLE
    parser = argparse.ArgumentParser(prog="main.py compare", description="One table, one picture and one page for several runs.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders, or experiments (logs/slca_demo: its newest run)")
    parser.add_argument("--out", type=Path, default=Path("logs/compare"), metavar="DIR",
                        help="where the comparison is written (default: logs/compare); another one that is there is kept in DIR/older-N")
    parser.add_argument("--sort", choices=SORTABLE, help="best first by this column (default: in the order given)")
    parser.add_argument("--labels", nargs="+", metavar="NAME", help="a name for each run, in their order (default: the methods' titles)")
    parser.add_argument("--highlight", nargs="+", default=[], metavar="NAME",
                        help="runs, by their names in the table, that are coloured beside the best five where there are many")
    parser.add_argument("--pool", action="store_true", help="runs that are alike but for torch_seed are one row")
    parser.add_argument("--streams", action="store_true",
                        help="runs of several data sets or splits: a comparison of each, and average ranks with the Friedman test")
    return parser.parse_args(argv)


def prepare_arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="main.py prepare", description="Arrange a downloaded data set as a run reads it.",
                                     epilog="docs/datasets.md says where to get each data set")
    parser.add_argument("name", metavar="NAME", help="as in python main.py list datasets")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--source", type=Path, metavar="ARCHIVE_OR_FOLDER", help="what you downloaded; it is only read")
    where.add_argument("--download", action="store_true", help="download it first, where its source allows; says before what and how large")
    parser.add_argument("--root", type=Path, default=Path("data"), metavar="DIR", help="data_root of the configs (default: data)")
    return parser.parse_args(argv)


def predict_arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="main.py predict", description="Classify a folder of images with a trained run.")
    _add_run(parser)
    parser.add_argument("images", type=Path, metavar="FOLDER", help="folder of images (sub-folders too), or one image")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:1")
    parser.add_argument("--top", type=int, default=5, metavar="K", help="classes per image (default: 5)")
    parser.add_argument("--unknown", type=float, nargs="?", const=0.95, metavar="SHARE",
                        help="also tell which images are of no known class, keeping this share of the known ones (default: 0.95)")
    parser.add_argument("--unknown_score", default="distance", metavar="SCORE",
                        help="by which with --unknown: distance, from the classes' Gaussians, or energy, of the logits (default: distance)")
    parser.add_argument("--csv", type=Path, metavar="FILE",
                        help="where the table goes; a file of that name is replaced (default: predictions.csv in RUN, or the first free "
                             "name of predictions_2.csv, predictions_3.csv, ...)")
    return _checked(parser.parse_args(argv))


def serve_arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="main.py serve", description="Answer over HTTP with a trained run, on this machine alone unless "
                                     "--host says otherwise.", epilog="docs/use_it.md has the requests, and an example")
    _add_run(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, which only this machine reaches)")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one (default: 8000)")
    parser.add_argument("--allow_host", nargs="+", default=[], metavar="NAME", action="extend",
                        help="names that others may call this server by, such as that of a proxy before it (default: addresses alone)")
    parser.add_argument("--collect", type=Path, metavar="FOLDER",
                        help="let the page collect images of new classes, which are kept in FOLDER, and learn them (default: it may not)")
    parser.add_argument("--unknown", type=float, default=0.95, metavar="SHARE",
                        help="share of the known classes' images that is not called unknown (default: 0.95)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:1")
    for name, default, what in (("megabytes", 32, "MiB of one request"), ("images", 256, "images of one request"),
                                ("megapixels", 50, "million pixels of one image")):
        parser.add_argument(f"--max_{name}", type=int, default=default, metavar="N", help=f"most {what} (default: {default})")
    arguments = _checked(parser.parse_args(argv))
    if not 0 < arguments.unknown < 1:
        raise UserError(f"--unknown: got {arguments.unknown:g}, allowed: above 0 and below 1, such as 0.95")
    if not 0 <= arguments.port < 2**16:
        raise UserError(f"--port: got {arguments.port}, allowed: 0 to 65535")
    for key in ("max_megabytes", "max_images", "max_megapixels"):
        _check_count(f"--{key}", getattr(arguments, key))
    return arguments


def export_arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="main.py export",
                                     description="Write a trained run as one program: FILE.pt2 (torch.export) or FILE.onnx.")
    _add_run(parser)
    parser.add_argument("file", type=Path, metavar="FILE", help="ends in .pt2 or .onnx")
    return _checked(parser.parse_args(argv))


def extend_arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="main.py extend", description="Learn one task more: new classes, without the old images.",
                                     epilog="docs/use_it.md has an example from the first photo on")
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a finished run, or of an experiment (its newest finished run)")
    parser.add_argument("--data", required=True, metavar="FOLDER",
                        help="one sub-folder of images per new class, an npz file, or a list file of 'path label' lines")
    parser.add_argument("--test", metavar="FOLDER",
                        help="test images of the same classes, for a list file another (default: none, their accuracy is not measured)")
    parser.add_argument("--set", nargs="+", default=[], metavar="key=value", action="extend",
                        help="settings of training for the new task, values in JSON (default: those of the run)")
    parser.add_argument("--update", action="store_true",
                        help="the images are of classes that the model knows: refine these instead of learning a task")
    _add_new_run(parser)
    parser.add_argument("--resume", action="store_true", help="continue an extension that was interrupted")
    arguments = parser.parse_args(argv)
    unused = [f"--{key}" for key in ("test", "set", "resume") if getattr(arguments, key)]
    if arguments.update and unused:
        raise UserError(f"{unused[0]}: belongs to learning a task, and --update trains nothing and measures what was measured before; "
                        "leave one of them out")
    return arguments


def forget_arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="main.py forget", description="Make a run that does not know some classes any more.")
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a finished run, or of an experiment (its newest finished run)")
    parser.add_argument("classes", nargs="+", metavar="CLASS", help="names of the classes")
    _add_new_run(parser)
    return parser.parse_args(argv)


def merge_arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="main.py merge", description="Make one run of two with other classes, where that is exact.")
    for name in ("run", "other"):
        parser.add_argument(name, type=Path, metavar="RUN", help="folder of a finished run, or of an experiment (its newest finished run)")
    _add_new_run(parser)
    return parser.parse_args(argv)


def _add_new_run(parser: argparse.ArgumentParser) -> None:
    """Where a run made of another one goes."""
    parser.add_argument("--device", help="auto, cpu, cuda, cuda:1 or GPU numbers such as 0,1 (default: as the run)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the new run is written (default: beside RUN)")
    parser.add_argument("--name", help="name of its experiment (default: that of RUN)")
    parser.add_argument("--quiet", action="store_true", help="show warnings and errors only")
    parser.add_argument("-v", "--verbose", action="store_true", help="show each line's time and origin, and tracebacks")


def analyze_arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="main.py analyze", description="Why a run forgets, from its checkpoints: analysis.json, "
                                     "pictures and analysis.html in the run's folder (docs/analysis.md).")
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run, or of an experiment (its newest run)")
    parser.add_argument("--seed", type=int, help="which of the run's seeds (default: the first)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:1")
    parser.add_argument("--images", type=int, default=500, metavar="N",
                        help="training images per class for probes and means (default: 500)")
    return parser.parse_args(argv)


def order_arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="main.py order", description="Write an order of classes for \"class_order\": similar classes in "
                                     "one task, or in different ones, by the pre-trained backbone's class means (docs/protocols.md).")
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="names data set, backbone and sizes of the tasks")
    parser.add_argument("--set", nargs="+", default=[], metavar="key=value", action="extend", help="settings that win over the file")
    parser.add_argument("--by", required=True, choices=["similar", "dissimilar"], help="which classes come together")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="JSON file to write; a file of that name is replaced")
    parser.add_argument("--images", type=int, default=100, metavar="N", help="training images per class to look at (default: 100)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:1")
    arguments = parser.parse_args(argv)
    _check_count("--images", arguments.images)
    return arguments


def report_arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="main.py report", description="Make the tables, pictures and pages of runs anew, from "
                                     "results.json (and analysis.json) alone.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders, or experiments (logs/slca_demo: its newest run)")
    return parser.parse_args(argv)


def schema_arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="main.py schema", description="Write exps/schema.json, which editors check configs with.")
    return parser.parse_args(argv)


def doctor_arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="main.py doctor", description="What works on this machine, which weights and data sets are "
                                     "there, what they enable, and a self-test. Exit code 0 where all that a run needs works, else 1.")
    parser.add_argument("--data_root", default="data", metavar="DIR", help="folder of registered data sets (default: data)")
    parser.add_argument("--device", default="auto", help="where the self-test runs: auto, cpu, cuda or cuda:1")
    parser.add_argument("--no_self_test", action="store_true", help="look only: torch is not even imported")
    parser.add_argument("--json", action="store_true", help="print JSON instead of lines")
    return parser.parse_args(argv)


def cache_arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="main.py cache", description="Show or delete what runs keep under data_root/cache.")
    parser.add_argument("what", nargs="?", choices=["list", "clear"], default="list", help="show it, or delete it (default: list)")
    parser.add_argument("--only", choices=["images", "features", "lists"],
                        help="decoded images, features, or the lists of large sets' files alone (default: all)")
    parser.add_argument("--data_root", type=Path, default=Path("data"), metavar="DIR", help="data_root of the configs (default: data)")
    return parser.parse_args(argv)


def take_plugins(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The arguments without `--plugin FILE`, which any command takes, and the files.

    Raises:
        UserError: `--plugin` without a file.
    """
    rest, plugins, words = [], [], iter(argv)
    for word in words:
        if word == "--plugin" or word.startswith("--plugin="):
            file = word.partition("=")[2] or next(words, "")
            if not file or file.startswith("-"):
                raise UserError("--plugin: expected a Python file, e.g. --plugin mine.py (docs/add_a_method.md)")
            plugins.append(file)
        else:
            rest.append(word)
    return rest, plugins


def _add_run(parser: argparse.ArgumentParser) -> None:
    """RUN and which of its checkpoints."""
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run, or of an experiment (its newest run)")
    parser.add_argument("--seed", type=int, help="which of the run's seeds (default: the first)")
    parser.add_argument("--after_task", type=int, metavar="N", help="the checkpoint after task N instead of the newest")


def _checked(arguments: argparse.Namespace) -> argparse.Namespace:
    _check_task(arguments.after_task)
    return arguments
