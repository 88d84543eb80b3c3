"""Shell completion of commands, options, config keys and files by argcomplete, where that is installed; else nothing happens.

    pip install argcomplete
    activate-global-python-argcomplete      # once; then a new shell completes "python main.py ..."

argcomplete starts the program with _ARGCOMPLETE set and asks one parser for all words. Each command here has a parser of its own, made
when it is called, so that nothing is built for commands that were not asked for; for completion they are gathered as sub-parsers.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

ASKED = "_ARGCOMPLETE"  # set by the shell's part of argcomplete

Parse = Callable[[list[str]], argparse.Namespace]


class _Made(Exception):
    """Carries a parser out of the function that would use it."""


def complete(run: Parse, commands: Mapping[str, Parse]) -> None:
    """Answer the shell and end the program; returns where argcomplete is not installed."""
    try:
        import argcomplete
    except ImportError:
        return
    argcomplete.autocomplete(whole_parser(run, commands))


def whole_parser(run: Parse, commands: Mapping[str, Parse]) -> argparse.ArgumentParser:
    """The parser of a run's options, with every command as a sub-parser.

    Args:
        run: parses the options of a run; commands: those of each command.
    """
    parser = made_parser(run)
    for action in parser._actions:  # a command needs no config
        action.required = False
    choices = parser.add_subparsers()
    for name, parse in commands.items():
        choices._name_parser_map[name] = made_parser(parse)
    for each in (parser, *choices.choices.values()):
        for action in each._actions:
            if action.dest == "set":
                action.completer = config_keys  # type: ignore[attr-defined]
    return parser


def made_parser(parse: Parse) -> argparse.ArgumentParser:
    """The parser that `parse` makes, before it is used."""
    def give(self: argparse.ArgumentParser, *_: Any, **__: Any) -> NoReturn:
        raise _Made(self)

    used = argparse.ArgumentParser.parse_args
    argparse.ArgumentParser.parse_args = give  # type: ignore[method-assign]
    try:
        parse([])
    except _Made as made:
        return made.args[0]
    finally:
        argparse.ArgumentParser.parse_args = used  # type: ignore[method-assign]
    raise AssertionError(f"{parse} makes no parser")


def config_keys(prefix: str, **_: Any) -> list[str]:
    """"lr=" and all other settings that begin like `prefix`, those of single methods too."""
    from utils.config import Config
    from utils.methods import catalogue

    own = (key for method in catalogue().methods.values() for key in method.keys)
    return sorted({f"{key}=" for key in (*Config.model_fields, *own) if key.startswith(prefix)})
