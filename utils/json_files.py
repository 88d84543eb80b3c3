"""JSON that a person wrote: read strictly, and what is wrong with it told in words for people."""

from __future__ import annotations

import difflib
import json
import re
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.terminal import visible_name

MOST_BYTES = 2**24  # of a file that a person wrote
WORDS = {"true": "true", "yes": "true", "on": "true", "false": "false", "no": "false", "off": "false", "none": "null", "nil": "null",
         "null": "null", "undefined": "null", "nan": None, "inf": None, "infinity": None}
CLOSING = {"{": "}", "[": "]"}


class _Told(ValueError):
    """A finding that is already in words for people."""


def read_json(path: Path) -> dict[str, Any]:
    """The one JSON object in a config file.

    Raises:
        UserError: the file is missing, is not UTF-8 or no strict JSON, names a key twice, or holds no object.
    """
    values = read_value(path)
    if not isinstance(values, dict):
        kind = {list: "a list", str: "a text", bool: "true or false", type(None): "null"}.get(type(values), "a number")
        raise UserError(f"{path}: expected one JSON object of settings, {{ ... }}, got {kind}")
    return values


def read_value(path: Path) -> Any:
    """Whatever a JSON file holds. Raises UserError: it is missing, is not UTF-8 or no strict JSON, or names a key twice."""
    text = _read_text(path)
    try:
        return json.loads(text, object_pairs_hook=_unique_keys, parse_constant=refuse_constant)
    except json.JSONDecodeError as error:
        place, cause = explain_json(text, error)
        line, column = text.count("\n", 0, place) + 1, place - text.rfind("\n", 0, place)
        raise UserError(f"{path}: not valid JSON at line {line}, column {column}: {cause}") from None
    except RecursionError:
        raise UserError(f"{path}: nested too deeply; settings are flat, at most an object inside a key") from None
    except _Told as error:
        raise UserError(f"{path}: {error}") from None
    except ValueError:  # python's own limit
        raise UserError(f"{path}: a number has more than 4,300 digits; no setting is that large") from None


def json_text(value: Any) -> str:
    """A value as indented JSON; halves of surrogate pairs (names that are not UTF-8) as escapes, so that they read back the same."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    return re.sub("[\ud800-\udfff]", lambda found: f"\\u{ord(found[0]):04x}", text)


def refuse_constant(name: str) -> Any:
    """For json.loads: NaN and the infinities are no JSON."""
    raise _Told(f"{name} is not a number that a setting can have; write a finite one")


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except FileNotFoundError:
        others = [other.name for other in path.parent.glob("*.json") if other.name != "schema.json"]
        near = difflib.get_close_matches(path.name, others, n=1)
        hint = f"; did you mean {path.parent / near[0]}?" if near else ""
        raise UserError(f"config file {path} does not exist{hint}") from None
    except OSError as error:
        raise UserError(f"config file {path} cannot be read: {error.strerror or error}") from None
    if len(data) > MOST_BYTES:
        raise UserError(f"{path} is larger than {MOST_BYTES // 2**20} MiB, so it is no config; name a JSON file of settings")
    encoding = json.detect_encoding(data)
    if not encoding.startswith("utf-8") and b"\0" in data:
        raise UserError(f"{path} is written in {encoding.upper()}; save it as UTF-8 (in the editor: Save as, Encoding)")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}: byte 0x{data[error.start]:02x} in line {line} is not UTF-8, as of an accented letter in Latin-1; save it "
                        "as UTF-8 (in the editor: Save as, Encoding)") from None


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise _Told(f"key {twice!r} appears twice; keep one")
    return values


def explain_json(text: str, error: json.JSONDecodeError) -> tuple[int, str]:
    """Where in `text` the mistake is, and what it is; most are habits from python, JavaScript or YAML."""
    at = error.pos + len(text[error.pos:]) - len(text[error.pos:].lstrip())
    before, rest = text[:at].rstrip(), text[at:]
    last, here = before[-1:], rest[:1]
    if here == "," and re.match(r",\s*[}\]]", rest):  # newer pythons point at the comma
        return at, _comma_too_many(rest[1:].lstrip()[0])
    if last == "," and here in ("}", "]"):
        return len(before) - 1, _comma_too_many(here)
    return at, _cause(error.msg, text, at, last, rest)


def _comma_too_many(bracket: str) -> str:
    return f"a comma too many before {bracket!r}; JSON has none after the last entry, take it out"


def _cause(message: str, text: str, at: int, last: str, rest: str) -> str:
    here, word = rest[:1], re.match(r"[^\W\d]\w*", rest)
    if not text.strip():
        return "the file is empty; a config is one object of settings, { ... }"
    if text.lstrip().startswith("<") or text.startswith("version https://git-lfs"):
        return "this is no JSON but " + ("a web page or XML" if text.lstrip().startswith("<") else "a git-lfs pointer; run git lfs pull")
    if rest.startswith(("//", "/*", "#")):
        return 'a comment; JSON has none, put the words into the key "notes"'
    if here in "'‘’“”„«»`" and here:
        return f'text stands between straight double quotes in JSON, "like this"; got {here}'
    if "escape" in message:
        return r'a backslash that JSON does not know; write "\\" for one, or "/" in paths'
    if "control character" in message:
        return 'a line ends, or a tab stands, inside a text; close the text with ", or write \\n or \\t'
    if "Unterminated" in message:
        return 'the text that begins here has no closing "'
    if not rest:
        return _ends_too_early(text)
    if word and "property name" in message:
        return f'the key {word[0]} stands without quotes; write "{word[0]}"'
    if not last:
        return f"one object of settings, {{ ... }}, belongs here, got {visible_name(rest[:20])!r}"
    if word and not last.isdigit():
        return _bare_word(word[0])
    if "Extra data" in message:
        return _after_the_end(here)
    return _misplaced(message, last, here)


def _misplaced(message: str, last: str, here: str) -> str:
    if here == ",":
        return "a comma too many" if last in ",[{" else f"a value is missing before the comma, after {last!r}"
    if (last.isdigit() and here in "0123456789._%xXeE") or here in "+-.":
        return "a number that JSON does not know; write it plainly, such as 0.5, 10 or 1e-4 (no leading zeros, +, _ or %)"
    if here in "()":
        return "round brackets are no JSON; a list stands between [ and ]"
    if "':' delimiter" in message:
        return f"':' belongs between a key and its value, got {here!r}"
    if "',' delimiter" in message:
        return (f"a comma is missing before {here!r}" if here in '"{[' or here.isdigit() else f"',' or a closing bracket belongs here, "
                f"got {visible_name(here)!r}")
    if "property name" in message:
        return f"a key between double quotes belongs here, got {visible_name(here)!r}"
    return f"a value is missing before {visible_name(here)!r}"


def _bare_word(word: str) -> str:
    known = WORDS.get(word.lower(), "")
    if known is None:
        return f"{word} is not a number that a setting can have; write a finite one"
    return f"{word} is no JSON; write {known}" if known else f'the text {word[:40]} stands without quotes; write "{word[:40]}"'


def _after_the_end(here: str) -> str:
    if here in "}]":
        return f"{here!r} too many, the object is closed already"
    return "the object is closed already and something follows; one file is one object of settings"


def _ends_too_early(text: str) -> str:
    open_brackets: list[str] = []
    for token in re.findall(r'"(?:[^"\\]|\\.)*"|[{}\[\]]', text):
        if token in CLOSING:
            open_brackets.append(CLOSING[token])
        elif token in "}]" and open_brackets:
            open_brackets.pop()
    return f"the file ends too early; {' '.join(reversed(open_brackets[:20])) or 'a value'} is missing at the end"
