"""Joint training: all classes at once, the upper bound of every table.

The same loop over one task that holds every class; one learning rate unless the config says otherwise.
"""

from __future__ import annotations

from models.base import BaseLearner


class Joint(BaseLearner):
    title = "Joint"
    rehearsal_free = False
    all_at_once = True
    defaults = {"bcb_lrscale": 1.0}
