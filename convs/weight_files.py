"""Files of weights -> tensors by dotted names, whatever wraps them; no code in a file is ever executed.

What a file is, its first bytes say, not its name. Dictionaries inside dictionaries become one flat dictionary:
{"teacher": {"backbone.cls_token": t}} gives "teacher.backbone.cls_token". Choosing among them is `convs/weights.py`'s work.
"""

from __future__ import annotations

import argparse
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from utils.errors import UserError

LONGEST_NAME = 1000  # characters of a tensor's dotted name; longer ones are no parameter's
MOST_HEADER = 100_000_000  # bytes of a safetensors header, the format's own limit
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"7z\xbc\xaf": "7z", b"Rar!": "rar", b"\x28\xb5\x2f\xfd": "zstd"}
OTHER_FORMATS = {b"\x89HDF": "an HDF5 file (of Keras?)", b"GGUF": "a GGUF file of a language model", b"\x93NUMPY": "a single numpy array",
                 b"\x89PNG": "a PNG image", b"\xff\xd8\xff": "a JPEG image", b"%PDF": "a PDF document"}
CONTAINERS = (Tensor, Mapping, argparse.Namespace, list, tuple)  # of tensors, or a tensor itself
HOW_TO_CONVERT = ("Where you trust the file, load it once with the program that made it and save the model's state_dict() alone, best as "
                  ".safetensors")
ESCAPE_CODES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
REFUSED_NAME = re.compile(r"GLOBAL (\S+) (?:was not|whose)|but got <class '([^']+)'|function <[\w -]*?(?:function|class) '?([\w.]+)")


class Unread:
    """Stands for a harmless object that a checkpoint carries beside its weights: made of anything, keeps nothing, does nothing."""

    def __new__(cls, *_: Any) -> Unread:
        return super().__new__(cls)

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


# What training scripts leave beside the weights (a best accuracy, a random state, paths of the run). torch would run the named
# class or function; it is given `Unread` under that name instead. A Namespace of argparse holds plain values and runs nothing.
_NUMPY = ("dtype", "ndarray", *(f"{core}.{name}" for core in ("core", "_core") for name in
                                ("multiarray.scalar", "multiarray._reconstruct", "numeric._frombuffer")))
_PATHS = tuple(f"{module}.{kind}{system}Path" for module in ("pathlib", "pathlib._local") for kind in ("", "Pure")
               for system in ("", "Posix", "Windows"))
HARMLESS = [argparse.Namespace, *((Unread, f"numpy.{name}") for name in _NUMPY), *((Unread, name) for name in _PATHS)]


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file by dotted name, in the file's order. JAX's names, with slashes, get dots too.

    Raises:
        UserError: the file is no file of weights, is damaged, or holds objects that could run code.
    """
    kind = kind_of(path)
    if kind not in READERS:
        raise UserError(f"{path}: not a readable file of weights, it is {kind}; name a .safetensors, .npz, .pth, .pt or .bin file")
    try:
        content = READERS[kind](path)
    except pickle.UnpicklingError as error:
        raise UserError(f"{path}: refused, because it holds {_refused(error)}, not only tensors and plain values (or is damaged), and "
                        f"loading that could run code. {HOW_TO_CONVERT}.") from None
    except MemoryError:
        raise UserError(f"{path}: reading it takes more memory than there is, though it has {path.stat().st_size:,} bytes; it is "
                        "damaged, or too large for this machine") from None
    except Exception as error:  # a damaged file can make any part of a reader stumble
        raise UserError(f"{path}: not a readable file of weights (truncated or damaged?): {_first_line(error)}. "
                        "Download it again.") from None
    tensors = flatten(content)
    if not tensors:
        raise UserError(f"{path}: holds no tensors by name, at no depth; it is {kind} that holds {_contents(content)}. {HOW_TO_CONVERT}.")
    return tensors


def flatten(content: Any) -> dict[str, Tensor]:
    """Tensors at any depth of dictionaries, lists and namespaces, by their dotted names; a container met twice is read once."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    waiting: list[tuple[str, Any]] = [("", content)]
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, Tensor) and name:
            found.setdefault(name.replace("/", "."), value)
            continue
        items = _items(value)
        if not items or id(value) in seen:
            continue
        seen.add(id(value))
        longer = [(f"{name}.{key}" if name else str(key), item) for key, item in items if isinstance(item, CONTAINERS)]
        waiting += reversed([(key, item) for key, item in longer if len(key) <= LONGEST_NAME])
    return found


def kind_of(path: Path) -> str:
    """What the first bytes say that a file is: a key of READERS, or words for what cannot be read. Raises UserError."""
    try:
        with path.open("rb") as stream:
            start = stream.read(512)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); name a file of weights that can") from None
    if not start:
        return "an empty file"
    if start.startswith(b"PK"):
        return _kind_of_zip(path)
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= MOST_HEADER:
        return "a safetensors file"
    if start[:1] == b"\x80" and start[1] <= pickle.HIGHEST_PROTOCOL:
        return "a pickle"
    if start[257:262] == b"ustar":
        return "a tar archive; unpack it and name the file of weights in it"
    for magic, name in COMPRESSED.items():
        if start.startswith(magic):
            return f"a {name} archive; unpack it and name the file of weights in it"
    for magic, words in OTHER_FORMATS.items():
        if start.startswith(magic):
            return words
    return _kind_of_text(start)


def _kind_of_zip(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except NotImplementedError as error:  # zipfile's, for a version of the format that it does not know
        return f"a zip archive that cannot be read ({error}); unpack it with the program that made it and name the file of weights in it"
    except (OSError, zipfile.BadZipFile, ValueError):
        return "a zip archive that was cut short (truncated?); download it again"
    inner = {name.partition("/")[2] for name in names}
    if any(name.endswith("constants.pkl") for name in names):
        return "a TorchScript program; save the model's state_dict() instead"
    if "data.pkl" in inner:
        return "a torch file"
    if names and all(name.endswith(".npy") for name in names):
        return "an npz file"
    listing = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"a zip archive ({listing or 'empty'}); unpack it and name the file of weights in it"


def _kind_of_text(start: bytes) -> str:
    text = start.decode("utf-8", errors="replace").lstrip("\ufeff \t\r\n")
    if text.startswith("version https://git-lfs"):
        return "a git-lfs pointer, which only says where the weights are; fetch them with git lfs pull"
    if re.match(r"<(!doctype html|html|head|body)", text, re.IGNORECASE):
        return "an HTML page, so the download got a web page instead of the file; download it again"
    if text.startswith("<"):
        return "an XML or HTML text, so the download got an answer of the server instead of the file; download it again"
    if text.startswith(("{", "[")):
        shards = "the JSON index of weights that are spread over several files; join them into one"
        return shards if '"weight_map"' in text else "a JSON text (a configuration or an error of the server?)"
    whole = text.rstrip("\ufffd")  # the last letter may be cut
    if "\ufffd" not in whole and all(letter.isprintable() or letter in "\r\n\t" for letter in whole):
        return f"a text that begins {whole[:40]!r}"
    return f"of no known kind (its first bytes are {start[:4].hex(' ')})"


def _read_npz(path: Path) -> dict[str, Tensor]:
    with np.load(path, allow_pickle=False) as arrays:
        return {name: torch.from_numpy(array) for name, array in arrays.items() if array.dtype.kind in "fi" and array.dtype.isnative}


def _read_torch(path: Path) -> Any:
    with torch.serialization.safe_globals(HARMLESS), warnings.catch_warnings(), path.open("rb") as stream:  # given a path, torch
        warnings.simplefilter("ignore")  # goes by its name; it warns of pickle protocols, but what it cannot read is told anyway
        return torch.load(stream, map_location="cpu", weights_only=True)


READERS: dict[str, Callable[[Path], Any]] = {
    "a safetensors file": load_file,
    "an npz file": _read_npz,
    "a torch file": _read_torch,
    "a pickle": _read_torch,
}


def _items(value: Any) -> list[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        return list(value.items())
    if isinstance(value, argparse.Namespace):
        return list(vars(value).items())
    return list(enumerate(value)) if isinstance(value, (list, tuple)) else []


def _refused(error: Exception) -> str:
    """torch's long advice in a few words: what it refused."""
    text = ESCAPE_CODES.sub("", str(error))
    found = REFUSED_NAME.search(text)
    if found:
        return f"the Python class or function {next(filter(None, found.groups()))}"
    reason = text.rpartition("WeightsUnpickler error:")[2].strip().split("\n")[0][:120]
    return f"what torch does not read ({reason or 'it does not say what'})"


def _first_line(error: Exception) -> str:
    lines = ESCAPE_CODES.sub("", str(error)).strip().splitlines()
    return lines[0][:200].rstrip(".") if lines else type(error).__name__


def _contents(content: Any) -> str:
    items = _items(content)
    if not items:
        return f"one {type(content).__name__}"
    return ", ".join(f"{key} ({type(value).__name__})" for key, value in items[:5]) + (", ..." if len(items) > 5 else "")
