"""Joint training: all classes at once, the upper bound of every table.

The same loop over a stream of one task that holds every class (`all_at_once`, which utils/data/tasks.py reads and any
method may set); one learning rate unless the config says otherwise. It needs every image at once, and says so.
"""

from __future__ import annotations

from typing import ClassVar

from models.base import BaseLearner
from models.registry import learner


@learner("joint")
class Joint(BaseLearner):
    title = "Joint"
    not_extended: ClassVar = "it learns all classes at once, so a new class means to train again"
    rehearsal_free = False
    defaults: ClassVar = {"bcb_lrscale": 1.0, "all_at_once": True}

    def memory_bytes(self) -> dict[str, int]:
        """All training images count: an equal memory would let a learner train again whenever a class comes in."""
        every_task = range(self.stream.num_tasks)
        return {**super().memory_bytes(), "images": self.data.images_bytes(self.data.task_indices("train", every_task))}
