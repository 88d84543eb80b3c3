"""Shell completion: what argcomplete answers for words that a user has begun."""

import sys

import pytest

import main
from utils.completion import complete, config_keys, whole_parser

COMMANDS = {name: parse for name, (parse, _) in main.COMMANDS.items()}


def answers(words):
    """What argcomplete gives for the last word of `words`."""
    argcomplete = pytest.importorskip("argcomplete")
    finder = argcomplete.CompletionFinder(whole_parser(main.parse_arguments, COMMANDS))
    *before, begun = words.split(" ")
    return {word.strip() for word in finder._get_completions(["main.py", *before], begun, "", None)}


def test_commands_options_choices_and_keys_are_completed():
    assert {"predict", "prepare"} <= answers("pre")
    assert "--dry_run" in answers("--dr")
    assert "--unknown" in answers("predict --un")
    assert answers("list ba") == {"backbones"}
    assert {"ca_epochs=", "ca_samples="} <= answers("--set ca_")


def test_the_parsers_are_as_before_afterwards():
    whole_parser(main.parse_arguments, COMMANDS)
    assert COMMANDS["list"](["methods"]).what == "methods"


def test_settings_of_single_methods_are_completed_too():
    assert "lr=" in config_keys("lr") and "ranpac_dim=" in config_keys("ranpac")


def test_without_argcomplete_the_program_runs_as_ever(monkeypatch):
    monkeypatch.setitem(sys.modules, "argcomplete", None)
    assert complete(main.parse_arguments, COMMANDS) is None


def test_a_run_s_options_need_no_config_while_they_are_completed():
    assert not any(action.required for action in whole_parser(main.parse_arguments, COMMANDS)._actions)
