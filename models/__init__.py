"""The learners, by name. A new method is one file here and one line in `LEARNERS`."""

from __future__ import annotations

import difflib
from importlib import import_module

from models.base import BaseLearner
from utils.config import Config
from utils.errors import UserError

LEARNERS: dict[str, str] = {  # model_name -> module:class
    "slca": "models.slca.slca:SLCA",
    "slca_pp": "models.slca.slca_pp:SLCAPlusPlus",
    "finetune": "models.finetuned.finetune:Finetune",
    "joint": "models.finetuned.joint:Joint",
    "linear_probe": "models.frozen.linear_probe:LinearProbe",
    "ncm": "models.frozen.ncm:NCM",
    "lda": "models.frozen.lda:LDA",
    "fecam": "models.frozen.fecam:FeCAM",
    "ranpac": "models.frozen.ranpac:RanPAC",
    "l2p": "models.prompts.l2p:L2P",
    "dualprompt": "models.prompts.dualprompt:DualPrompt",
    "coda_prompt": "models.prompts.coda_prompt:CODAPrompt",
    "replay": "models.rehearsal.replay:Replay",
    "icarl": "models.rehearsal.icarl:ICaRL",
    "ewc": "models.finetuned.ewc:EWC",
    "lwf": "models.finetuned.lwf:LwF",
    "gdumb": "models.rehearsal.gdumb:GDumb",
    "derpp": "models.rehearsal.derpp:DERpp",
    "bic": "models.rehearsal.bic:BiC",
    "gem": "models.rehearsal.gem:GEM",
    "coil": "models.rehearsal.coil:COIL",
}
ALIASES = {"slcapp": "slca_pp", "slca++": "slca_pp", "simplecil": "ncm"}


def resolve_name(model_name: str) -> str:
    """The learner that `model_name` means: exactly, else as the release does it ("slcapp..." then "slca...").

    Raises:
        UserError: no learner of that name.
    """
    name = model_name.lower()
    name = ALIASES.get(name, name)
    if name in LEARNERS:
        return name
    for prefix, learner in (("slcapp", "slca_pp"), ("slca", "slca")):
        if name.startswith(prefix) and learner in LEARNERS:
            return learner
    near = difflib.get_close_matches(name, LEARNERS, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise UserError(f"model_name: got {model_name!r}; {hint}allowed: {', '.join(LEARNERS)}, or a name that begins with "
                    "'slcapp' (SLCA++) or 'slca' (SLCA)")


def learner_class(model_name: str) -> type[BaseLearner]:
    """The class of a learner; only its own module is imported. Raises UserError."""
    module, _, name = LEARNERS[resolve_name(model_name)].partition(":")
    return getattr(import_module(module), name)


def resolve_config(config: Config) -> Config:
    """Fill in the defaults that depend on the method (settings that are None).

    Raises:
        UserError: no such method, or it freezes the backbone and the config gives that a learning rate.
    """
    learner = learner_class(config.model_name)
    defaults = {**learner.defaults, **({"bcb_lrscale": 0.0} if learner.frozen_backbone else {})}
    resolved = config.model_copy(update={key: value for key, value in defaults.items() if getattr(config, key) is None})
    if learner.frozen_backbone and resolved.bcb_lrscale:
        raise UserError(f"bcb_lrscale: got {resolved.bcb_lrscale:g}, allowed: 0, because {learner.title} freezes the backbone; leave the "
                        "key out, or choose a method that trains the backbone (finetune, slca)")
    return resolved


def list_methods() -> str:
    """One line per method: name, title, whether it keeps old images, first line of its docstring."""
    lines = []
    for name, target in LEARNERS.items():
        module = import_module(target.partition(":")[0])
        learner = learner_class(name)
        kept = "" if learner.rehearsal_free else " [keeps old images]"
        lines.append(f"{name:14} {learner.title:14} {(module.__doc__ or '').splitlines()[0]}{kept}")
    return "\n".join(lines)
