"""What a dry run looks at: it finds what a run would find wrong with the data set and its tasks, and tells all of it at once."""

from __future__ import annotations

from dataclasses import dataclass

from utils.config import Config
from utils.data.data_manager import DataManager, even_labels
from utils.data.held_out import validation_notes
from utils.data.notes import tell, together
from utils.data.protocols import planned_counts, protocol_of
from utils.data.registry import dataset_info, load_dataset, registered
from utils.data.stream import TaskStream
from utils.data.types import DataMissing, Splits
from utils.errors import UserError


@dataclass(frozen=True)
class CheckedData:
    """A data set and its tasks, as far as they are known without reading an image."""

    stream: TaskStream  # of the first seed
    train_images: int | None  # that the protocol takes; None: not known while the data are not there
    test_images: int | None
    missing: str = ""  # why the data are not on this machine; "" if they are


def check_data(config: Config) -> CheckedData:
    """Read the data set if it is on this machine, and plan its tasks; nothing is downloaded.

    Raises:
        UserError: everything that a run would refuse, in one message.
    """
    problems: list[str] = []
    splits, missing, stream, info, taken = None, "", None, None, None
    try:
        splits = _load_if_there(config)
        if splits is not None:
            tell(f"data set {config.dataset_name}", validation_notes(config, splits[0]))
    except DataMissing as error:
        missing = str(error)
    except UserError as error:
        problems.append(str(error))
    try:
        info = dataset_info(config.dataset)
        labels = even_labels(info) if splits is None else splits[0].labels
        stream = DataManager.plan(config, config.seeds[0], labels)
        if labels is not None and protocol_of(config):
            taken = int(planned_counts(config, config.seeds[0], stream, labels).sum())
    except UserError as error:
        if str(error) not in problems:
            problems += [missing] if missing else []
            problems.append(str(error))
    if problems:
        raise UserError(together(problems))
    assert stream is not None and info is not None, "told above"
    counts = (info.train_count, info.test_count) if splits is None else (len(splits[0]), len(splits[1]))
    return CheckedData(stream, counts[0] if taken is None else taken, counts[1], missing)


def _load_if_there(config: Config) -> Splits | None:
    """The data set, if it is one of image files or described by the config; torchvision's would be downloaded."""
    if isinstance(config.dataset, str):
        entry = registered(config.dataset)
        if entry.entries is None and not entry.info.domains:
            return None
    elif config.dataset.layout == "synthetic":
        return None  # as many as the config says; no need to make them
    return load_dataset(config.dataset, config.data_root)
