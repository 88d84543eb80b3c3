"""Use a trained run from Python: the public names of `models.tools.predict`."""

from models.tools.predict import Predictions, TrainedLearner, load_learner

__all__ = ["Predictions", "TrainedLearner", "load_learner"]
