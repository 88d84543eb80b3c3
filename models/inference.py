"""Use a trained run from Python, and let it go on learning: the public names."""

from models.continual_classifier import ContinualClassifier
from models.tools.predict import Predictions, TrainedLearner, load_learner

__all__ = ["ContinualClassifier", "Predictions", "TrainedLearner", "load_learner"]
