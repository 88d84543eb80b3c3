"""Sequential fine-tuning: the lower bound of every table.

One linear head per task, cross-entropy over the new task's own logits, no alignment. With one learning rate for
everything (`bcb_lrscale` 1, the default here) it is "Seq FT"; with `bcb_lrscale` 0.01 it is "Seq FT with SL",
the Slow Learner without Classifier Alignment (SLCA, tables 1 and 2).
"""

from __future__ import annotations

from typing import ClassVar

from models.base import BaseLearner
from models.registry import learner
from utils.config import Config


@learner("finetune")
class Finetune(BaseLearner):
    title = "Seq FT"
    trains_on_features = True
    defaults: ClassVar = {"bcb_lrscale": 1.0}

    @classmethod
    def title_of(cls, config: Config) -> str:
        return {0.0: f"Frozen {cls.title}", 1.0: cls.title}.get(config.bcb_lrscale, "Seq FT with SL")
