"""Experience replay: fine-tuning on the new images and a herded memory together, nothing else.

The plain rehearsal baseline of PyCIL ("Replay"; Ratcliff, Psychological Review 1990; Chaudhry et al., arXiv 1902.10486
as "ER"): cross-entropy over all classes seen so far on the union of both.

Differs from ER: several epochs per task and a memory by herding instead of one pass and a reservoir.
"""

from __future__ import annotations

from models.registry import learner
from models.rehearsal.memory import Rehearsal


@learner("replay")
class Replay(Rehearsal):
    title = "Replay"
