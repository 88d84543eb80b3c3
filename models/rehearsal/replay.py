"""Experience replay: fine-tuning on the new images and a herded memory together, nothing else.

The plain rehearsal baseline of PyCIL ("Replay"; Ratcliff, Psychological Review 1990; Chaudhry et al., arXiv 1902.10486
as "ER"): cross-entropy over all classes seen so far on the union of both.

Differs from ER: several epochs per task and a memory by herding instead of one pass and a reservoir.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from models.registry import learner
from models.rehearsal.memory import Rehearsal


@learner("replay")
class Replay(Rehearsal):
    title = "Replay"
    takes_known_classes: ClassVar = True

    def training_indices(self, task: int) -> np.ndarray:
        """With the task's images of known classes, in a blurry stream."""
        new = super().training_indices(task)
        return new if self.config.blurry is None else np.concatenate([new, self.data.task_indices("again", task)])
