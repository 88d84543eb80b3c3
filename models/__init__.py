"""The methods, one file each, in a folder per family; what they share stands here, `registry.py` finds them by name.
A new method is one file in one of the folders, or a plugin: docs/add_a_method.md."""

from models.registry import learner, learner_class, load_experiment, load_plugin, resolve_config
from utils.methods import catalogue, list_methods, resolve_name

LEARNERS = tuple(catalogue().methods)  # names of the project's own methods

__all__ = ["LEARNERS", "learner", "learner_class", "list_methods", "load_experiment", "load_plugin", "resolve_config", "resolve_name"]
