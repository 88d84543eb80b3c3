"""Linear probe: a frozen backbone and one linear classifier over all classes seen; the simplest baseline.

Cross-entropy over the logits of all classes on the new task's images moves all heads, old ones too, so that what is
forgotten is forgotten by the classifier alone. The variant whose old heads stay as they were (the loss over the new
task's logits) is `finetune` with `bcb_lrscale` 0.
"""

from __future__ import annotations

from models.all_heads import AllHeads
from models.registry import learner


@learner("linear_probe")
class LinearProbe(AllHeads):
    title = "Linear probe"
    frozen_backbone = True
    trains_on_features = True
