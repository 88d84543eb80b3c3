"""Which methods there are, what they are called and which settings are theirs, read from their source without importing it.

A method is a class decorated with `@learner("name")` in a file below models/ (or in a plugin); its settings are the annotated
fields of the class that it names as `Settings`, and of that class's parents. Nothing is imported, so a misspelt method or
key is told at once, before torch is loaded. `models.learner_class` imports what is needed.
"""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from utils.errors import UserError
from utils.files import PROJECT

MODELS = PROJECT / "models"
DECORATOR = "learner"
SHOWN = 5  # problems that a message names
ALIASES = {"simplecil": "ncm"}
NO_MEMORY = {"memory_size": 0, "memory_per_class": 0, "fixed_memory": False}  # PyCIL's files say so of every method


@dataclass(frozen=True)
class _Class:
    """What is read of one class statement."""

    file: Path
    bases: list[str]
    fields: list[str]  # annotated names but ClassVars, in order
    constants: dict[str, object]  # assigned literals, and names (`Settings = X` gives "X")
    registered: str | None  # the method's name
    summary: str  # first line of the file's docstring


@dataclass(frozen=True)
class Method:
    """One method as its source describes it."""

    name: str  # model_name
    class_name: str
    file: Path
    title: str
    summary: str
    rehearsal_free: bool
    keys: list[str]  # settings of its own, beside those that all methods share


@dataclass
class Catalogue:
    """All methods found in some files."""

    files: list[Path] = field(default_factory=list)

    @cached_property
    def classes(self) -> dict[str, _Class]:
        return {name: found for file in self.files for name, found in _classes_of(file)}

    @cached_property
    def methods(self) -> dict[str, Method]:
        found = {}
        for name, c in self.classes.items():
            if c.registered is not None:
                settings = self._constant(name, "Settings")
                found[c.registered] = Method(c.registered, name, c.file, str(self._constant(name, "title") or c.registered), c.summary,
                                             self._constant(name, "rehearsal_free") is not False,
                                             list(dict.fromkeys(self._fields(settings))) if isinstance(settings, str) else [])
        return found

    def owners(self, key: str) -> list[str]:
        """Names of the methods that have the setting `key`."""
        return [name for name, method in self.methods.items() if key in method.keys]

    def _constant(self, class_name: str, attribute: str) -> object:
        """A class attribute, its own or the first one inherited; None where no class in these files has it."""
        return next((c.constants[attribute] for c in self._lineage(class_name) if attribute in c.constants), None)

    def _fields(self, class_name: str) -> Iterator[str]:
        for c in self._lineage(class_name):
            yield from c.fields

    def _lineage(self, class_name: str) -> list[_Class]:
        """The class and its parents as far as they are in these files, in the order in which python looks attributes up."""
        found: list[str] = []

        def visit(name: str) -> None:
            if name in self.classes:
                found.append(name)
                for base in self.classes[name].bases:
                    visit(base)

        visit(class_name)
        last = {name: place for place, name in enumerate(found)}  # a parent shared by several comes after all of them
        return [self.classes[name] for name in sorted(last, key=last.__getitem__)]


def _papers_first(file: Path) -> tuple[bool, bool, Path]:
    return file.parent.name != "slca", not file.stem.startswith("slca"), file


_catalogue = Catalogue(sorted(MODELS.rglob("*.py"), key=_papers_first))


def catalogue() -> Catalogue:
    """The project's methods and those of plugins."""
    return _catalogue


def add_source(file: Path) -> None:
    """Look for methods in `file` too (a plugin)."""
    if file not in _catalogue.files:
        _catalogue.files.append(file)
        for cached in ("classes", "methods"):
            _catalogue.__dict__.pop(cached, None)


def resolve_name(model_name: str) -> str:
    """The method that `model_name` means: exactly, else as the release does it ("slcapp..." is SLCA++, "slca_..." is SLCA).

    Whatever looks like SLCA++ ("SLCA-PP", "slca++_cifar", "slca_plus_plus") is SLCA++.

    Raises:
        UserError: no method of that name.
    """
    methods = catalogue().methods
    name = model_name.lower().replace("-", "_")
    name = ALIASES.get(name, name)
    if name in methods:
        return name
    plain = re.sub(r"[^a-z0-9]", "", name.replace("+", "p").replace("plus", "p"))
    if plain.startswith("slcapp"):
        return "slca_pp"
    family = [known for known in methods if known.startswith("slca") and re.match(rf"{known}[_. ]", name)]
    if family and not plain.startswith("slcap"):
        return max(family, key=len)
    near = difflib.get_close_matches(name, methods, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise UserError(f"model_name: got {model_name!r}; {hint}allowed: {', '.join(methods)}, or a name that begins with "
                    "'slcapp' (SLCA++) or 'slca_' (SLCA)")


def check_keys(model_name: str, keys: Iterable[str], common: Iterable[str], source: str,
               hint_for: Callable[[str], str | None] = lambda key: None) -> None:
    """Raises UserError for settings that neither all methods share (`common`) nor this one has, naming the one that has them.

    Args:
        source: names the settings in the message.
        hint_for: says of an unknown key where else it could belong.
    """
    own = catalogue().methods[resolve_name(model_name)]
    allowed = [*common, *own.keys]
    problems = [_why_not(key, own.name, allowed, hint_for(key)) for key in keys if key not in allowed]
    if problems:
        more = [f"and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
        raise UserError(f"{source}: " + "; ".join([*problems[:SHOWN], *more]))


def says_nothing(model_name: object, key: str, value: object) -> bool:
    """Whether a setting only says that a method without stored images stores none, as the authors' files do."""
    try:
        own = catalogue().methods[resolve_name(model_name)].keys if isinstance(model_name, str) else []
    except UserError:  # told where the name is checked
        own = []
    return key not in own and key in NO_MEMORY and value == NO_MEMORY[key] and type(value) is type(NO_MEMORY[key])


def _why_not(key: str, method: str, allowed: list[str], hint: str | None) -> str:
    owners = catalogue().owners(key)
    if owners:
        return (f"key {key!r} belongs to {', '.join(owners[:6])}{', ...' if len(owners) > 6 else ''} and means nothing to {method}; "
                "remove it, or choose another model_name")
    near = difflib.get_close_matches(key, allowed, n=1, cutoff=0.6)
    elsewhere = difflib.get_close_matches(key, [k for m in catalogue().methods.values() for k in m.keys], n=1, cutoff=0.8)
    if hint is not None:
        pass
    elif near:
        hint = f"did you mean {near[0]!r}?"
    elif elsewhere:
        hint = f"{elsewhere[0]!r} belongs to {', '.join(catalogue().owners(elsewhere[0])[:6])}"
    else:
        hint = "exps/schema.json has all keys"
    return f"unknown key {key[:80]!r}; {hint}"


def list_methods() -> str:
    """One line per method: name, title, first line of its docstring, whether it keeps old images."""
    return "\n".join(f"{m.name:14} {m.title:18} {m.summary}{'' if m.rehearsal_free else ' [keeps old images]'}"
                     for m in catalogue().methods.values())


def _classes_of(file: Path) -> Iterator[tuple[str, _Class]]:
    """The top-level classes of one file. A file that is no Python is told when it is imported, not here."""
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return
    summary = (ast.get_docstring(tree) or "").partition("\n")[0]
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            fields, constants = [], {}
            for item in node.body:
                target = item.target if isinstance(item, ast.AnnAssign) else item.targets[0] if isinstance(item, ast.Assign) else None
                if not isinstance(target, ast.Name):
                    continue
                if isinstance(item.value, ast.Constant):
                    constants[target.id] = item.value.value
                elif isinstance(item.value, ast.Name):
                    constants[target.id] = item.value.id
                if isinstance(item, ast.AnnAssign) and "ClassVar" not in ast.unparse(item.annotation) and not target.id.startswith("_"):
                    fields.append(target.id)
            bases = [base.id for base in node.bases if isinstance(base, ast.Name)]
            yield node.name, _Class(file, bases, fields, constants, _registered(node), summary)


def _registered(node: ast.ClassDef) -> str | None:
    """"ewc" of `@learner("ewc")`."""
    for decorator in node.decorator_list:
        if isinstance(decorator, ast.Call) and isinstance(decorator.func, ast.Name) and decorator.func.id == DECORATOR:
            return str(ast.literal_eval(decorator.args[0]))
    return None
