"""A config that is no JSON: the message names the habit that it came from, and the place."""

import os
import threading

import pytest

from utils.errors import UserError
from utils.json_files import json_text, read_json


@pytest.mark.parametrize(("text", "told"), [
    ('{"a": 1,\n}', r"line 1, column 8: a comma too many before '}'"),
    ('{"a": [1, 2,]}', r"column 12: a comma too many before '\]'"),
    ('{"a": 1,  \n\n  }', r"line 1, column 8: a comma too many"),
    ('{"a": 1,, "b": 2}', "a comma too many"),
    ("{,}", "a comma too many"),
    ('{"a": 1, // why\n "b": 2}', "a comment"),
    ('{"a": 1 # why\n}', "a comment"),
    ('/* why */ {"a": 1}', "a comment"),
    ("{'a': 1}", "double quotes"),
    ('{"a": \'x\'}', "double quotes"),
    ("{“a”: 1}", "double quotes"),
    ('{"a": True}', "write true"),
    ('{"a": [False]}', "write false"),
    ('{"a": None}', "write null"),
    ('{"a": yes}', "write true"),
    ('{"a": cpu}', 'write "cpu"'),
    ("{a: 1}", 'write "a"'),
    ('{"a": nan}', "not a number"),
    ('{"a": -Infinity}', "not a number"),
    ('{"a": .5}', "0.5"),
    ('{"a": 01}', "leading zeros"),
    ('{"a": 1_000}', "a number"),
    ('{"a": 10%}', "a number"),
    ('{"a": (1, 2)}', "round brackets"),
    ('{"a" = 1}', "':' belongs"),
    ('{"a": 1 "b": 2}', "a comma is missing"),
    ('{"a": }', "a value is missing before '}'"),
    ('{"a": 1', "ends too early; } is missing"),
    ('{"a": [{"b": "]}"}', r"ends too early; \] } is missing|',' or a closing bracket"),
    ('{"a": "x}', "no closing"),
    ('{"a": "x\n"}', "a line ends"),
    (r'{"a": "C:\data"}', "backslash"),
    ('{"a": 1}}', "too many"),
    ('{"a": 1}\n{"b": 2}', "line 2, column 1: the object is closed"),
    ("", "empty"),
    ("<!doctype html>", "web page"),
    ("version https://git-lfs.github.com/spec/v1", "git-lfs"),
    ("model_name: slca", "one object of settings"),
    ("null", "got null"),
    ('{"a": ' + "9" * 5000 + "}", "4,300 digits"),
])
def test_what_is_wrong_with_a_file_is_told_in_plain_words(text, told, tmp_path):
    path = tmp_path / "c.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=told) as error:
        read_json(path)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


@pytest.mark.parametrize(("data", "told"), [
    ('{"a": "é"}'.encode("latin-1"), "byte 0xe9 in line 1 is not UTF-8.*save it as UTF-8"),
    ('{\n"a": "€"}'.encode("cp1252"), "byte 0x80 in line 2 is not UTF-8"),
    ('{"a": 1}'.encode("utf-16"), "written in UTF-16; save it as UTF-8"),
    ('{"a": 1}'.encode("utf-16-be"), "written in UTF-16-BE; save it as UTF-8"),
    ('{"a": 1}'.encode("utf-32"), "written in UTF-32; save it as UTF-8"),
    (b" " * (2**24 + 1), "larger than 16 MiB"),
])
def test_a_file_that_is_not_utf8_is_told_how_to_save_it(data, told, tmp_path):
    (tmp_path / "c.json").write_bytes(data)
    with pytest.raises(UserError, match=told):
        read_json(tmp_path / "c.json")


def test_a_byte_order_mark_and_a_pipe_are_read(tmp_path):
    (tmp_path / "c.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(tmp_path / "c.json") == {"a": 1}
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_text, args=('{"a": 2}',))
    writer.start()
    assert read_json(tmp_path / "pipe") == {"a": 2}
    writer.join()


def test_a_missing_file_names_a_near_config_but_never_the_schema(tmp_path):
    (tmp_path / "schema.json").write_text("{}")
    with pytest.raises(UserError) as error:
        read_json(tmp_path / "shema.json")
    assert "did you mean" not in str(error.value)
    (tmp_path / "slca.json").write_text("{}")
    with pytest.raises(UserError, match=r"did you mean .*slca\.json"):
        read_json(tmp_path / "slcaa.json")


def test_a_folder_is_no_config(tmp_path):
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        read_json(tmp_path)


def test_names_that_are_not_utf8_read_back_as_they_were(tmp_path):
    value = {"root": os.fsdecode(b"caf\xe9"), "name": "名"}
    (tmp_path / "a.json").write_text(json_text(value), encoding="utf-8")
    assert read_json(tmp_path / "a.json") == value and "名" in json_text(value)
