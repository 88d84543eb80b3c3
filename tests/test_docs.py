"""README and docs: every link leads somewhere, every code block is what it says, every command exists."""

import ast
import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

import main
from utils import command_line
from utils.files import PROJECT

PAGES = [PROJECT / "README.md", PROJECT / "CONTRIBUTING.md", PROJECT / "CHANGELOG.md", *sorted((PROJECT / "docs").glob("*.md")),
         *sorted((PROJECT / "benchmarks").glob("*.md")), *sorted((PROJECT / "pretrained").glob("*.md")),
         *sorted((PROJECT / "exps").glob("*/README.md"))]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
FLAG = re.compile(r"(?<![\w-])--[a-z][\w-]*")


def anchors(page: Path) -> set[str]:
    """The names that headings of a page have in a link, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", BLOCK.sub("", page.read_text(encoding="utf-8")), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def blocks(*languages: str) -> list[tuple[str, str]]:
    """(page, text) of every code block in one of `languages`."""
    return [(str(page.relative_to(PROJECT)), text) for page in PAGES
            for language, text in BLOCK.findall(page.read_text(encoding="utf-8")) if language in languages]


def commands() -> list[tuple[str, list[str]]]:
    """(page, words) of every `python main.py ...` line in a shell block; what stands for something else is left out."""
    found = []
    for page, text in blocks("sh", "bash", ""):
        for line in text.replace("\\\n", " ").splitlines():
            match = re.search(r"python3? main\.py (.*)", line)
            if match and not re.search(r"[\[\]|<>]|\.\.\.", match[1].split("#")[0]):
                found.append((page, shlex.split(match[1], comments=True)))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT)))
def test_every_link_of_a_page_leads_to_a_file_and_to_a_heading_that_is_there(page):
    missing = []
    for target in LINK.findall(BLOCK.sub("", page.read_text(encoding="utf-8"))):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        file, _, anchor = target.partition("#")
        found = (page.parent / file).resolve() if file else page
        if not found.exists() or (anchor and found.suffix == ".md" and anchor not in anchors(found)):
            missing.append(target)
    assert not missing


def test_every_json_block_is_json_and_every_python_block_is_python():
    for page, text in blocks("json"):
        whole = text if text.lstrip().startswith("{") else "{" + text.rstrip().rstrip(",") + "}"
        try:
            json.loads(whole)
        except json.JSONDecodeError as error:
            pytest.fail(f"{page}: {error}\n{text}")
    for page, text in blocks("python"):
        try:
            ast.parse(text)
        except SyntaxError as error:
            pytest.fail(f"{page}: {error}\n{text}")


def test_every_command_has_a_name_that_there_is_and_options_that_it_takes(capsys):
    assert len(commands()) > 20
    helps = {}
    for page, words in commands():
        name = "" if words[0].startswith("-") else words[0]
        assert not name or name in main.COMMANDS, f"{page}: there is no command {name}"
        if name not in helps:
            with pytest.raises(SystemExit):
                main.COMMANDS[name][0](["--help"]) if name else command_line.run_arguments(["--help"])
            helps[name] = set(FLAG.findall(capsys.readouterr().out)) | {"--plugin", "--help"}
        unknown = {word.partition("=")[0] for word in words if word.startswith("--")} - helps[name]
        assert not unknown, f"{page}: python main.py {name} has no {unknown}"


def test_every_config_that_a_page_names_is_there():
    for page in PAGES:
        named = set(re.findall(r"(?<![\w/])exps/\w+\.json", page.read_text(encoding="utf-8")))
        assert not {name for name in named if not (PROJECT / name).exists()}, page


def test_every_page_of_the_docs_is_in_the_site():
    nav = yaml.safe_load((PROJECT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    listed = {page for entry in nav for value in entry.values() for page in ([value] if isinstance(value, str) else
                                                                              [file for item in value for file in item.values()])}
    assert {f"docs/{page.name}" for page in (PROJECT / "docs").glob("*.md")} <= listed
    assert all((PROJECT / page).exists() for page in listed)


def test_the_readme_is_short_enough_to_be_read():
    assert (PROJECT / "README.md").stat().st_size <= 6000
