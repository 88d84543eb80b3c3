"""What may be done to classes that a learner knows: refine them by more images, take over another learner's, forget them.

A method says by overriding that it can, and how; what is here refuses, with the reason.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, ClassVar

from torch import Tensor

from convs.heads import head_of_rows
from convs.network import IncrementalNet
from models.state import LearnerState
from utils.config import MethodSettings
from utils.data.stream import TaskStream
from utils.errors import UserError
from utils.run.monitor import Monitor

FORGETS = ("These can: slca and its kin, ncm, aper, fecam, methods that keep images, and those that keep nothing beside heads; with "
           "another method, train again without the class")


class KnownClasses(LearnerState):
    """A parent of `BaseLearner`, which has these attributes."""

    takes_known_classes: ClassVar[bool] = False  # learns from a task's images of known classes too, the split "again" of its data

    config: MethodSettings
    net: IncrementalNet
    stream: TaskStream

    def check_stream(self) -> None:
        """Raises UserError where the tasks' classes overlap, and the method cannot learn from images of classes that it knows."""
        if self.config.blurry is not None and not self.takes_known_classes:
            raise UserError(f"blurry: {self.config.model_name} cannot learn from more images of classes that it knows, which a blurry "
                            "stream holds; allowed: slca and its kin, which take them into their Gaussians, and replay")

    def refine(self, features: Tensor, labels: Tensor, monitor: Monitor) -> None:
        """Take more images of classes that are known into what is kept of them, as if all had been there at once.

        Args:
            features: (N, D), of `features` under the test transform; labels: (N,) new labels.

        Raises:
            UserError: the method keeps too little of its old images for that.
        """
        raise UserError(f"--update: a run of {self.config.model_name} does not keep of its old images what new ones could be joined with; "
                        "allowed: runs of slca and its kin, which keep a Gaussian per class with its number of images")

    def join_statistics(self, other: Any) -> None:
        """Take over what another learner of the same class keeps of its classes, which follow this one's; as if one run had learned all.

        Raises:
            UserError: the method's classes depend on one another, so that two runs are not one.
        """
        raise UserError(f"merge: two runs of {self.config.model_name} are not one run, because what it keeps of a class depends on the "
                        "classes before it. Exact are ncm, lda and fecam, and slca with bcb_lrscale 0 and a readout from its Gaussians")

    def forget(self, labels: Collection[int]) -> None:
        """Leave nothing of these classes (new labels): their statistics and their rows of the heads. The others are numbered anew.

        Raises:
            UserError: what the method keeps cannot be told apart by classes.
        """
        self.forget_statistics(labels)
        for task, head in enumerate(self.net.heads):
            classes = self.stream.classes_of(task)
            kept = [row for row, label in enumerate(classes) if label not in labels]
            if len(kept) < len(classes):
                self.net.heads[task] = head_of_rows(head, kept)
        self.stream = self.stream.without(labels)

    def forget_statistics(self, labels: Collection[int]) -> None:
        """Take these classes out of what `extra_state` holds; here there is nothing that could be. Raises UserError."""
        if self.extra_state():
            raise UserError(f"a run of {self.config.model_name} cannot forget single classes: what it keeps beside its heads is not kept "
                            f"class by class. {FORGETS}")
