# PYTHON_ARGCOMPLETE_OK
"""Command line. Everything it does is one call elsewhere; see README.md.

    python main.py --config exps/slca_demo.json          train
    python main.py sweep --config FILE --set key=[a,b]   many runs side by side or on a cluster, and the best settings
    python main.py status [FOLDER]                       which runs wait, run, are done or failed
    python main.py list methods|datasets|backbones       what there is
    python main.py compare logs/slca_demo logs/...       one table and picture of several runs
    python main.py analyze logs/slca_demo                why it forgets, from its checkpoints
    python main.py report logs/slca_demo logs/...        tables, pictures and pages anew, from results.json alone
    python main.py prepare NAME --source ARCHIVE         arrange a downloaded data set
    python main.py extend logs/slca_demo --data FOLDER   learn new classes after those of a finished run
    python main.py forget logs/slca_demo CLASS ...       a run that does not know some classes any more
    python main.py merge RUN_A RUN_B                     one run of two with other classes, where that is exact
    python main.py predict logs/slca_demo FOLDER         classify images with a trained run
    python main.py serve logs/slca_demo                  answer over HTTP with a trained run, and a page to drop images on
    python main.py export logs/slca_demo model.pt2       the aligned model as one torch.export program (or .onnx)
    python main.py doctor                                what works on this machine, what is there, and a self-test
    python main.py cache [clear]                         decoded images and features that runs keep
    python main.py order --config FILE --by similar ...  an order of classes by how alike the backbone finds them
    python main.py schema                                write exps/schema.json, which editors check configs with

python main.py COMMAND --help has the options of a command. Every command takes --plugin FILE, a Python file that adds methods,
backbones or data sets (docs/add_a_method.md).
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from utils import command_line, completion
from utils.errors import RunFailed, UserError
from utils.last_resort import refused_path, told
from utils.machine.cores import prepare_openmp
from utils.run.interrupt import INTERRUPTED, TERMINATED, Terminated, how_to_resume, signals_stop
from utils.terminal import quiet_terminal, show, steady_terminal, verbose_terminal

if TYPE_CHECKING:
    from trainer import Edit
    from utils.config import Config
    from utils.doctor.check import Check
    from utils.run.parent import Parent


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    return command_line.run_arguments(argv, list(COMMANDS), __doc__ or "")


def run_experiments(arguments: argparse.Namespace) -> None:
    """Train, test or describe each config."""
    from models import load_experiment
    from utils.overrides import parse_overrides

    overrides = parse_overrides(arguments.set)
    if arguments.device is not None:
        overrides["device"] = arguments.device
    configs = [(path, load_experiment(path, overrides)) for path in arguments.config]  # every mistake is told before the first run

    if arguments.on is not None:
        from utils.sweep.side_by_side import run_side_by_side
        run_side_by_side(arguments, configs)
        return

    from utils.machine.distributed import several_processes  # imports torch, which takes seconds

    if len(configs) > 1 and not (arguments.dry_run or arguments.test_only or several_processes()):
        from trainer import listeners_of
        for _, config in configs:
            listeners_of(config)

    failed = []
    for path, config in configs:
        try:
            run_experiment(config, path.stem, arguments)
        except Exception as error:  # the other experiments are not lost with this one
            if len(configs) == 1 or several_processes():  # of several processes some may be waiting for this one
                raise
            failed.append(path)
            show(f"{path}: {error if isinstance(error, UserError) else told(error)}", error=True, label="error:", style="red")
    if failed:
        raise RunFailed(f"{len(failed)} of {len(configs)} experiments failed: {', '.join(map(str, failed))} (see above); the others "
                        "are done")


def sweep(arguments: argparse.Namespace) -> None:
    """Run many points of some settings, and choose the best by validation accuracy."""
    from models.tools.sweep import sweep as run_sweep
    run_sweep(arguments)


def status(arguments: argparse.Namespace) -> None:
    """Print what became of the runs in a folder."""
    from utils.sweep.status import status as print_status
    print_status(arguments.folder)


def run_experiment(config: Config, name: str, arguments: argparse.Namespace) -> None:
    if arguments.dry_run:
        from models.tools.dry_run import describe_run
        from models.tools.timing import estimate_time
        from utils.machine.out_of_memory import out_of_memory_as_user_error
        with out_of_memory_as_user_error(config):
            show(describe_run(config, name=name))
            show(estimate_time(config))
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
        from convs.backbone_entries import list_backbones as lister
    show(lister())


def compare_runs(arguments: argparse.Namespace) -> None:
    """Print and write one table, one picture and one page for several runs."""
    from utils.report.compare import compare
    from utils.report.compare_streams import compare_streams
    run = compare_streams if arguments.streams else compare
    run(arguments.runs, arguments.out, labels=arguments.labels, sort=arguments.sort, highlight=arguments.highlight,
        pool=arguments.pool)


def prepare_data(arguments: argparse.Namespace) -> None:
    """Arrange a downloaded benchmark as a run reads it."""
    from utils.data.downloads import download
    from utils.data.prepare import prepare
    source = download(arguments.name, arguments.root) if arguments.download else arguments.source
    show(f"{arguments.name}: {prepare(arguments.name, source, arguments.root)}")


def extend(arguments: argparse.Namespace) -> None:
    """Learn new classes after those of a finished run, or refine known ones."""
    if arguments.update:
        from models.tools.update import updating
        _write_changed(arguments, *updating(arguments.run, Path(arguments.data), arguments.device))
        return
    from models.tools.extend import extended
    from trainer import train
    from utils.overrides import parse_overrides

    overrides = parse_overrides(arguments.set) | ({} if arguments.device is None else {"device": arguments.device})
    config, parent = extended(arguments.run, arguments.data, arguments.test, overrides)
    train(config, arguments.out or parent.path.parent.parent, name=arguments.name or parent.path.parent.name, resume=arguments.resume,
          parent=parent)


def forget(arguments: argparse.Namespace) -> None:
    """Write a run that does not know some classes any more."""
    from models.tools.forget import forgetting

    _write_changed(arguments, *forgetting(arguments.run, arguments.classes, arguments.device))


def merge(arguments: argparse.Namespace) -> None:
    """Write a run that knows the classes of two."""
    from models.tools.merge import merging

    _write_changed(arguments, *merging(arguments.run, arguments.other, arguments.device))


def _write_changed(arguments: argparse.Namespace, config: Config, parent: Parent, edit: Edit) -> None:
    from trainer import train
    train(config, arguments.out or parent.path.parent.parent, name=arguments.name or parent.path.parent.name, parent=parent, edit=edit)


def predict(arguments: argparse.Namespace) -> None:
    """Classify a folder of images with a trained run."""
    from models.tools.predict import predict_folder
    predict_folder(arguments)


def serve(arguments: argparse.Namespace) -> None:
    """Answer over HTTP with a trained run."""
    from models.serve.command import serve_run
    serve_run(arguments)


def export(arguments: argparse.Namespace) -> None:
    """Write a trained run as one program."""
    from models.tools.export import export_run
    export_run(arguments)


def analyze(arguments: argparse.Namespace) -> None:
    """Say from a run's checkpoints why it forgets."""
    from models.tools.analyze import analyze_run
    analyze_run(arguments)


def doctor(arguments: argparse.Namespace) -> None:
    """Say what works on this machine and what is there."""
    from utils.doctor.report import examine

    def project_checks(given: argparse.Namespace) -> list[Check]:
        from models.tools.doctor import project_checks as checks  # needs packages, and it is the doctor who tells that one is missing
        return checks(given)

    examine(arguments, project_checks)


def cache(arguments: argparse.Namespace) -> None:
    """Show or delete what runs keep under data_root/cache."""
    from utils.data.cache_folder import KINDS, clear, kept, table
    from utils.data.places import home_expanded

    root = home_expanded(arguments.data_root) / "cache"
    kinds = [arguments.only] if arguments.only else KINDS
    if arguments.what == "clear":
        gone = clear(root, kinds)
        show(f"deleted: {sum(each.bytes for each in gone) / 1e6:,.1f} MB of {' and '.join(kinds)} in {root}")
    else:
        show(table(kept(root, kinds), root, kinds))


def order(arguments: argparse.Namespace) -> None:
    """Write an order of classes by how alike the backbone finds them."""
    from models import load_experiment
    from models.tools.order import write_order
    from utils.overrides import parse_overrides
    config = load_experiment(arguments.config, parse_overrides(arguments.set))
    show(write_order(config, arguments.by, arguments.out, arguments.images, arguments.device))


def report(arguments: argparse.Namespace) -> None:
    """Make the pages of runs anew from their results."""
    from utils.report.rebuild import rebuild
    rebuild(arguments.runs)


def schema(arguments: argparse.Namespace) -> None:
    """Write exps/schema.json from the settings of all methods."""
    from models.tools.schema import write_schema
    show(str(write_schema()))


COMMANDS = {"sweep": (command_line.sweep_arguments, sweep), "status": (command_line.status_arguments, status),
            "extend": (command_line.extend_arguments, extend), "forget": (command_line.forget_arguments, forget),
            "merge": (command_line.merge_arguments, merge), "list": (command_line.list_arguments, list_what),
            "compare": (command_line.compare_arguments, compare_runs),
            "analyze": (command_line.analyze_arguments, analyze), "report": (command_line.report_arguments, report),
            "predict": (command_line.predict_arguments, predict),
            "serve": (command_line.serve_arguments, serve),
            "export": (command_line.export_arguments, export), "prepare": (command_line.prepare_arguments, prepare_data),
            "doctor": (command_line.doctor_arguments, doctor), "cache": (command_line.cache_arguments, cache),
            "order": (command_line.order_arguments, order), "schema": (command_line.schema_arguments, schema)}


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code (docs/checkpoints.md lists them)."""
    argv = sys.argv[1:] if argv is None else argv
    if completion.ASKED in os.environ:
        completion.complete(parse_arguments, {name: parse for name, (parse, _) in COMMANDS.items()})
    with steady_terminal():
        hint, verbose = "", False
        try:
            words, plugins = command_line.take_plugins(argv)
            parse, act = COMMANDS[words[0]] if words and words[0] in COMMANDS else (parse_arguments, run_experiments)
            arguments = parse(words if act is run_experiments else words[1:])
            arguments.plugins = plugins
            if getattr(arguments, "on", None) is None:  # else every run counts its own share of the cores, and would inherit ours
                prepare_openmp()
            if plugins:
                from models.registry import load_plugin  # and with it pydantic; what needs no package runs without any
                for plugin in plugins:
                    load_plugin(plugin)
            if act is extend or (act is run_experiments and not (arguments.dry_run or arguments.test_only)):
                hint = f"; {how_to_resume(argv)}"
            verbose = getattr(arguments, "verbose", False)
            with signals_stop(), ExitStack() as terminal:
                if getattr(arguments, "quiet", False):
                    terminal.enter_context(quiet_terminal())
                if verbose:
                    terminal.enter_context(verbose_terminal())
                act(arguments)
        except UserError as error:
            show(str(error), error=True, label="error:", style="red")
            return 1 if isinstance(error, RunFailed) else 2
        except Exception as error:  # nobody foresaw it
            if verbose:
                show(traceback.format_exc(), error=True)
            refused = refused_path(error)
            show(refused or f"{told(error)}{hint}", error=True, label="error:", style="red")
            return 2 if refused else 1
        except (KeyboardInterrupt, Terminated) as stop:
            show(f"\nstopped{hint}", error=True)
            return INTERRUPTED if isinstance(stop, KeyboardInterrupt) else TERMINATED
    return 0


if __name__ == "__main__":
    sys.exit(main())
