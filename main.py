"""Command line. Everything it does is one call elsewhere; see README.md.

    python main.py --config exps/slca_demo.json          train
    python main.py list methods|datasets|backbones       what there is
    python main.py compare logs/slca_demo logs/...       one table and picture of several runs
    python main.py prepare NAME --source ARCHIVE         arrange a downloaded data set
    python main.py predict logs/slca_demo FOLDER         classify images with a trained run
    python main.py export logs/slca_demo model.pt2       the aligned model as one torch.export program (or .onnx)
"""

from __future__ import annotations

import argparse
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from utils.errors import RunFailed, UserError
from utils.run.interrupt import INTERRUPTED, TERMINATED, Terminated, how_to_resume, sigterm_raises

if TYPE_CHECKING:
    from utils.config import Config


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="main.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", nargs="+", type=Path, required=True, metavar="FILE", help="JSON files, one experiment each")
    parser.add_argument("--set", nargs="+", default=[], metavar="key=value", action="extend",
                        help="settings that win over the file, values in JSON")
    parser.add_argument("--device", help="auto, cpu, cuda, cuda:1 or GPU numbers such as 0,1; wins over the file")
    parser.add_argument("--out", type=Path, default=Path("logs"), metavar="DIR", help="where runs are written (default: logs)")
    parser.add_argument("--resume", action="store_true", help="continue the newest unfinished run")
    parser.add_argument("--test_only", action="store_true", help="evaluate a run from its checkpoints")
    parser.add_argument("--profile", action="store_true", help="trace every stage once and write where the time went")
    parser.add_argument("--after_task", type=int, metavar="N", help="with --test_only: the checkpoint after task N instead of the newest")
    parser.add_argument("--dry_run", action="store_true", help="print what would run, and stop")
    return parser.parse_args(argv)


def run_experiments(arguments: argparse.Namespace) -> None:
    """Train, test or describe each config."""
    from models import load_experiment
    from utils.config import parse_overrides
    from utils.machine.distributed import several_processes

    overrides = parse_overrides(arguments.set)
    if arguments.device is not None:
        overrides["device"] = arguments.device
    configs = [(path, load_experiment(path, overrides)) for path in arguments.config]  # every mistake is told before the first run
    failed = []
    for path, config in configs:
        try:
            run_experiment(config, path.stem, arguments)
        except Exception as error:  # the other experiments are not lost with this one
            if len(configs) == 1 or several_processes():  # of several processes some may be waiting for this one
                raise
            failed.append(path)
            if not isinstance(error, UserError):
                traceback.print_exc()
            print(f"error: {path}: {error}", file=sys.stderr)
    if failed:
        raise RunFailed(f"{len(failed)} of {len(configs)} experiments failed: {', '.join(map(str, failed))} (see above); the others "
                        "are done")


def run_experiment(config: Config, name: str, arguments: argparse.Namespace) -> None:
    if arguments.dry_run:
        from models.tools.dry_run import describe_run
        from models.tools.timing import estimate_time
        print(describe_run(config, name=name))
        print(estimate_time(config))
    elif arguments.test_only:
        from trainer import test
        test(config, arguments.out, name=name, after_task=arguments.after_task)
    else:
        from trainer import train
        train(config, arguments.out, name=name, resume=arguments.resume, profile=arguments.profile)


def list_what(arguments: argparse.Namespace) -> None:
    """Print the names that a config may use."""
    if arguments.what == "methods":
        from models import list_methods as lister
    elif arguments.what == "datasets":
        from utils.report.tables import datasets_table as lister
    else:
        from convs.backbones import list_backbones as lister
    print(lister())


def list_arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="main.py list")
    parser.add_argument("what", choices=["methods", "datasets", "backbones"])
    return parser.parse_args(argv)


def compare_runs(arguments: argparse.Namespace) -> None:
    """Print and write one table, one picture and one page for several runs."""
    from utils.report.compare import compare

    compare(arguments.runs, arguments.out, sort=arguments.sort)


def compare_arguments(argv: list[str]) -> argparse.Namespace:
    from utils.report.compare_tables import SORTABLE
    parser = argparse.ArgumentParser(prog="main.py compare")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders, or experiments (logs/slca_demo: its newest run)")
    parser.add_argument("--out", type=Path, default=Path("logs/compare"), metavar="DIR", help="where the comparison is written")
    parser.add_argument("--sort", choices=SORTABLE, help="best first by this column (default: in the order given)")
    return parser.parse_args(argv)


def prepare_data(arguments: argparse.Namespace) -> None:
    """Arrange a downloaded benchmark as a run reads it."""
    from utils.data.prepare import prepare

    print(f"{arguments.name}: {prepare(arguments.name, arguments.source, arguments.root)}")


def prepare_arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="main.py prepare", epilog="docs/datasets.md says where to get each data set")
    parser.add_argument("name", metavar="NAME", help="as in python main.py list datasets")
    parser.add_argument("--source", type=Path, required=True, metavar="ARCHIVE_OR_FOLDER", help="what you downloaded; it is only read")
    parser.add_argument("--root", type=Path, default=Path("data"), metavar="DIR", help="data_root of the configs (default: data)")
    return parser.parse_args(argv)


def predict_arguments(argv: list[str]) -> argparse.Namespace:
    from models.tools.predict import predict_arguments as parse
    return parse(argv)


def predict(arguments: argparse.Namespace) -> None:
    """Classify a folder of images with a trained run."""
    from models.tools.predict import predict_folder
    predict_folder(arguments)


def export_arguments(argv: list[str]) -> argparse.Namespace:
    from models.tools.export import export_arguments as parse
    return parse(argv)


def export(arguments: argparse.Namespace) -> None:
    """Write a trained run as one program."""
    from models.tools.export import export_run
    export_run(arguments)


def schema_arguments(argv: list[str]) -> argparse.Namespace:
    about = "Write exps/schema.json, which editors check configs with."
    return argparse.ArgumentParser(prog="main.py schema", description=about).parse_args(argv)


def schema(arguments: argparse.Namespace) -> None:
    """Write exps/schema.json from the settings of all methods."""
    from models.tools.schema import write_schema
    print(write_schema())


COMMANDS = {"schema": (schema_arguments, schema), "list": (list_arguments, list_what), "compare": (compare_arguments, compare_runs),
            "predict": (predict_arguments, predict), "export": (export_arguments, export),
            "prepare": (prepare_arguments, prepare_data)}


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    parse, act = COMMANDS[argv[0]] if argv and argv[0] in COMMANDS else (parse_arguments, run_experiments)
    arguments = parse(argv[1:] if act is not run_experiments else argv)
    try:
        with sigterm_raises():
            act(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1 if isinstance(error, RunFailed) else 2
    except (KeyboardInterrupt, Terminated) as stop:
        interrupted = isinstance(stop, KeyboardInterrupt)
        print(f"\nstopped; {how_to_resume(argv)}" if act is run_experiments else "\nstopped", file=sys.stderr)
        return INTERRUPTED if interrupted else TERMINATED
    return 0


if __name__ == "__main__":
    sys.exit(main())
