"""What pydantic found wrong with settings, in words for people: the key, what was got, all that is allowed, the nearest key."""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

MOST_FINDINGS = 5  # in one message
NOUNS = {int: ("an integer", "integers"), float: ("a number", "numbers"), str: ("a text", "texts"),
         bool: ("true or false", "true or false"), dict: ("an object", "objects"), type(None): ("null", "null"),
         Any: ("anything", "anything")}


@dataclass(frozen=True)
class Place:
    """Where in a user's settings a finding is."""

    path: tuple[str, ...]  # keys and list positions; pydantic's names of a union's branches are left out
    allowed: str  # all that may stand there; "" where pydantic's own words say it
    field: FieldInfo | None  # the innermost setting
    siblings: tuple[str, ...]  # keys of the object that it is in
    deep: bool  # inside an object that the user wrote for one branch of a union
    whole: bool  # the input of this finding is what the user wrote at `path`

    @property
    def key(self) -> str:
        return ".".join(self.path) or "config"


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """All findings about settings of `model` as one line, at most MOST_FINDINGS of them spelled out."""
    problems = [_sentence(details, place, model) for details, place in _one_per_place(error, model)]
    more = len(problems) - MOST_FINDINGS
    return "; ".join([*problems[:MOST_FINDINGS], *([f"and {more} more"] if more > 0 else [])])


def _one_per_place(error: ValidationError, model: type[BaseModel]) -> list[tuple[dict[str, Any], Place]]:
    """Of a union pydantic tells every branch; kept is one finding, or those inside the object that the user wrote."""
    findings = [(dict(details), _place(model, details["loc"])) for details in error.errors(include_url=False)]
    deep = {place.path[0] for _, place in findings if place.deep}
    best: dict[tuple[str, ...], tuple[dict[str, Any], Place]] = {}
    for details, place in findings:
        if place.path and place.path[0] in deep and not place.deep:
            continue
        if place.path not in best or (place.whole and not best[place.path][1].whole):
            best[place.path] = (details, place)
    return list(best.values())


def _place(model: type[BaseModel], location: Sequence[str | int]) -> Place:
    """Follow pydantic's location through the types; it stops at the first union of plain values, where the user chose one."""
    annotation: Any = model
    metadata: Sequence[Any] = ()
    field, siblings, deep, path = None, tuple(model.model_fields), False, []
    rest = list(location)
    while rest:
        annotation, metadata = _bare(annotation, metadata)
        members = [member for member in _members(annotation) if member is not type(None)]
        if len(members) > 1:
            named = [member for member in members if _is_model(member) and member.__name__ == rest[0]]
            if not named or len(rest) == 1:
                return Place(tuple(path), words(annotation, metadata), field, siblings, deep, whole=len(rest) == 1)
            annotation, deep = named[0], True
            rest.pop(0)
        elif members and _is_model(members[0]):
            siblings = tuple(members[0].model_fields)
            path.append(str(rest.pop(0)))
            field = members[0].model_fields.get(path[-1])
            annotation, metadata = (field.annotation, field.metadata) if field else (Any, ())
        else:
            path.append(str(rest.pop(0)))
            annotation, metadata = next(iter(get_args(members[0])[-1:] if members else ()), Any), ()
    bare, metadata = _bare(annotation, metadata)
    several = len(_members(bare)) > 1
    return Place(tuple(path), words(bare, metadata) if several else "", field, siblings, deep, whole=True)


def _sentence(details: dict[str, Any], place: Place, model: type[BaseModel]) -> str:
    if details["type"] == "extra_forbidden":
        return f"unknown key {short(place.key)}; {_where_it_belongs(place, model)}"
    meaning = f" ({place.field.description})" if place.field and place.field.description else ""
    if details["type"] == "missing":
        return f"key {place.key!r} is missing{meaning}"
    own_words = details["type"] in ("value_error", "assertion_error") or not place.allowed
    allowed = details["msg"].removeprefix("Value error, ").removeprefix("Input should be ") if own_words else place.allowed
    return f"key {short(place.key)}: got {short(details['input'])}, allowed: {allowed}{meaning}"


def hint_for(name: str, model: type[BaseModel]) -> str | None:
    """Where an unknown key at the top level belongs: inside an object of `model`'s; None where no object has such a key."""
    nested = {key: [member for member in _members(field.annotation) if _is_model(member)] for key, field in model.model_fields.items()}
    outer, _, inner = name.partition(".")
    if inner and nested.get(outer):
        return f'write {inner!r} inside the object {outer!r}: "{outer}": {{"{inner}": ...}}'
    for key, members in nested.items():
        if any(name in member.model_fields for member in members):
            return f"{name!r} belongs inside the object {key!r}"
    return None


def _where_it_belongs(place: Place, model: type[BaseModel]) -> str:
    """The nearest key, or the object that has a key of this name."""
    name = place.path[-1]
    if len(place.path) == 1 and (hint := hint_for(name, model)):
        return hint
    if len(place.path) > 1 and name in model.model_fields:
        return f"{name!r} belongs outside of {place.path[0]!r}, at the top level"
    near = difflib.get_close_matches(name, list(place.siblings), n=1, cutoff=0.6)
    if near:
        return f"did you mean {near[0]!r}?"
    return "see exps/schema.json for all keys"


# What may stand somewhere ----------------------------------------------------------------------------------------


def words(annotation: Any, metadata: Iterable[Any] = (), *, plural: bool = False) -> str:
    """All that a type allows: "'auto' or an integer from 0 to 256"; `metadata` are the bounds of its numbers."""
    annotation, metadata = _bare(annotation, metadata)
    members = _members(annotation)
    if len(members) > 1 or get_origin(annotation) is Literal:
        return _joined([choice for member in members for choice in
                        (map(_literal, get_args(member)) if get_origin(member) is Literal else [words(member, metadata, plural=plural)])])
    if get_origin(annotation) in (list, tuple):
        items = words(*get_args(annotation)[:1], plural=True) if get_args(annotation) else "values"
        filled = "non-empty " if any(isinstance(bound, MinLen) and bound.min_length for bound in metadata) else ""
        return f"{filled}lists of {items}" if plural else f"a {filled}list of {items}"
    if _is_model(annotation):
        return "objects" if plural else f"an object with the keys {', '.join(annotation.model_fields)}"
    noun = NOUNS.get(get_origin(annotation) or annotation, (str(annotation),) * 2)[plural]
    return noun + _bounds(metadata) if annotation in (int, float) else noun


def _literal(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)


def _bounds(metadata: Iterable[Any]) -> str:
    """" from 0 to 256", " above 0 and below 1", " of at least 1", or nothing."""
    found = {type(bound): bound for bound in metadata}
    if Ge in found and Le in found:
        return f" from {found[Ge].ge} to {found[Le].le}"
    texts = [f"{word} {getattr(found[kind], kind.__name__.lower()):g}" for kind, word in
             ((Ge, "of at least"), (Gt, "above"), (Le, "at most"), (Lt, "below")) if kind in found]
    return f" {' and '.join(texts)}" if texts else ""


def _bare(annotation: Any, metadata: Iterable[Any] = ()) -> tuple[Any, list[Any]]:
    """A type without Annotated, and all its bounds."""
    found = list(metadata)
    while get_origin(annotation) is Annotated:
        annotation, *more = get_args(annotation)
        found += more
    return annotation, [bound for item in found for bound in (item.metadata if isinstance(item, FieldInfo) else [item])]


def _members(annotation: Any) -> list[Any]:
    """The types of a union (nested ones too), null last; of another type itself."""
    if get_origin(annotation) not in (Union, types.UnionType):
        return [annotation]
    members = [inner for member in get_args(annotation) for inner in _members(member)]
    return sorted(members, key=lambda member: member is type(None))


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _joined(texts: Sequence[str]) -> str:
    texts = list(dict.fromkeys(texts))
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} or {texts[-1]}"


def short(value: Any, limit: int = 80) -> str:
    """`repr` of what a user wrote, cut after `limit` characters."""
    try:
        text = repr(value)
    except RecursionError:
        return "a deeply nested value"
    return text if len(text) <= limit else text[: limit - 3] + "..."
