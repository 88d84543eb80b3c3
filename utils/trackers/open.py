"""Which trackers a config asks for, and whether they can be had, which is told before anything is trained."""

from __future__ import annotations

from utils.config import Config
from utils.run.events import Subscriber


def open_trackers(config: Config) -> list[Subscriber]:
    """The trackers of a run, which write nothing before its first event.

    Raises:
        UserError: a package is missing, or wandb has no key for "online".
    """
    trackers: list[Subscriber] = []
    if config.tensorboard:
        from utils.trackers.tensorboard import TensorBoard
        trackers.append(TensorBoard())
    if config.wandb is not None:
        from utils.trackers.wandb import WandB
        trackers.append(WandB(config.wandb))
    return trackers
