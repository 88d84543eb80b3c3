"""From a method's name to its class and settings. Imports a method's file when it is asked for, and torch only with it."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from utils.config import Config, MethodSettings, load_config, parse_config
from utils.errors import UserError
from utils.files import PROJECT
from utils.json_files import read_json
from utils.machine.speed import fast_defaults
from utils.methods import add_source, catalogue, resolve_name
from utils.overrides import with_overrides

if TYPE_CHECKING:
    from models.base import BaseLearner

L = TypeVar("L", bound="type[BaseLearner]")
log = logging.getLogger("slca")
_classes: dict[str, type[BaseLearner]] = {}  # filled by `learner` as files are imported


def learner(name: str) -> Callable[[L], L]:
    """Class decorator: the class is the method that `model_name: name` asks for."""
    def register(found: L) -> L:
        _classes[name] = found
        return found
    return register


def learner_class(model_name: str) -> type[BaseLearner]:
    """The class of a method; only its own file is imported, with what it imports. Raises UserError."""
    name = resolve_name(model_name)
    if name not in _classes:
        file = catalogue().methods[name].file
        import_module(".".join(file.relative_to(PROJECT).with_suffix("").parts))
    return _classes[name]


def resolve_config(config: Config) -> MethodSettings:
    """The method's own settings checked, and the defaults that depend on the method filled in.

    A null where a setting has a default that is not null means the default, as in the authors' files.

    Raises:
        UserError: a setting of the method is wrong, or it freezes the backbone and the config gives that a learning rate.
    """
    method = learner_class(config.model_name)
    fields = method.Settings.model_fields
    given = {key: value for key, value in config.model_dump(exclude_unset=True).items()
             if value is not None or key not in fields or fields[key].default is None}
    defaults = {**method.defaults, **({"bcb_lrscale": 0.0} if method.frozen_backbone else {})}
    if config.speed == "fast":
        from utils.data.registry import dataset_info  # these two import torch
        from utils.machine.device import names_gpu

        images = dataset_info(config.dataset).train_count
        defaults |= fast_defaults(given, names_gpu(config.device), images)
    defaults = {key: value for key, value in defaults.items() if given.get(key) is None}
    resolved = parse_config({**given, **defaults}, config.source, method.Settings)
    if method.frozen_backbone and resolved.bcb_lrscale:
        raise UserError(f"bcb_lrscale: got {resolved.bcb_lrscale:g}, allowed: 0, because {method.title} freezes the backbone; leave the "
                        "key out, or choose a method that trains the backbone (finetune, slca)")
    return resolved


def load_experiment(path: str | Path, overrides: Mapping[str, Any] | None = None) -> MethodSettings:
    """A config file with `overrides`, every key checked and the method's defaults filled in. Raises UserError."""
    return resolve_config(load_given(path, overrides))


def load_given(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Config:
    """What a config file and `overrides` say, before the method's defaults.

    Where `overrides` choose another method than the file's, settings of the file that the new method does not have are left
    out, with one warning. Raises UserError.
    """
    overrides = dict(overrides or {})
    dropped: dict[str, Any] = {}
    if "model_name" in overrides and isinstance(overrides["model_name"], str):
        own = catalogue().methods[resolve_name(overrides["model_name"])].keys
        dropped = {key: value for key, value in read_json(Path(path)).items()
                   if key not in own and key not in overrides and catalogue().owners(key)}
    if not dropped:
        return load_config(path, overrides)
    kept = {key: value for key, value in read_json(Path(path)).items() if key not in dropped}
    log.warning(f"{path}: {', '.join(dropped)} left out, {overrides['model_name']} does not have "
                f"{'this setting' if len(dropped) == 1 else 'these settings'}")
    return parse_config(with_overrides(kept, overrides), str(path))


def load_plugin(path: str | Path) -> None:
    """Run a Python file of the user's that registers methods, backbones or data sets (`--plugin`).

    Raises:
        UserError: the file is not there or fails.
    """
    file = Path(os.path.realpath(os.path.expanduser(path)))  # unlike resolve(), of a loop of links too
    if not file.is_file():
        raise UserError(f"--plugin: {file} does not exist; name a Python file")
    name = f"plugin_{file.stem}"
    if name in sys.modules and sys.modules[name].__file__ == str(file):
        return
    spec = spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise UserError(f"--plugin: {file} is no Python file; name one that ends in .py")
    add_source(file)
    module = sys.modules[name] = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except UserError:
        raise
    except Exception as error:  # whatever the user's own file does wrong
        del sys.modules[name]
        raise UserError(f"--plugin: {file} cannot be loaded: {type(error).__name__}: {error}") from error
