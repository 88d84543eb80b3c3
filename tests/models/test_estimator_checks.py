"""scikit-learn's own checks of an estimator, as far as they make sense where a sample is an image.

The checks hand over tables of numbers; `OfRows` makes a small grey picture of each row.
"""

import numpy as np
import pytest
from sklearn.utils import estimator_checks
from sklearn.utils.validation import check_array

import trainer
from models.inference import ContinualClassifier
from tests.photos import SIZE, config_of

pytest.importorskip("sklearn", minversion="1.6")

NO_TABLE = "about tables of numbers: their layout in memory, sparse ones, their columns, lists of rows"
EXCLUDED = {
    **dict.fromkeys(("check_estimator_sparse", "check_f_contiguous_array_estimator", "check_array_api_input", "check_positive_only",
                     "check_n_features_in_after_fitting", "check_fit2d_1feature", "check_fit2d_1sample", "check_pipeline_consistency",
                     "check_classifier_data_not_an_array"), NO_TABLE),
    "check_classifiers_classes": "labels of text and numbers have tests of their own, with fewer images",
    "check_estimators_partial_fit_n_features": "an image of another size is no mistake, it is resized",
    "check_estimators_dtypes": "images are uint8; the rows of all types would become the same pictures",
    "readonly_memmap": "pixels are copied into files whatever holds them; the same check runs without",
}


class OfRows(ContinualClassifier):
    """Rows (N, F) of numbers as grey images: each number a part of the picture."""

    def partial_fit(self, X, y, classes=None):
        return super().partial_fit(pictures(X), y, classes)

    def predict_proba(self, X):
        return super().predict_proba(pictures(X))

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = True
        return tags


def pictures(rows) -> np.ndarray:
    grey = (255 / (1 + np.exp(-check_array(rows)))).astype(np.uint8)
    return np.stack([np.repeat(row, -(-SIZE * SIZE // len(row)))[:SIZE * SIZE].reshape(SIZE, SIZE) for row in grey])


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A method that refines known classes, as a second `partial_fit` does."""
    return config_of(tmp_path_factory.mktemp("images"), "slca", [["yak"]], bcb_lrscale=0.0, readout="rgda", epochs=1, batch_size=100)


CHECKS = {str(check): check for _, check in estimator_checks.estimator_checks_generator(OfRows("a run"))
          if not any(name in str(check) for name in EXCLUDED)}


@pytest.mark.parametrize("check", CHECKS.values(), ids=lambda check: check.func.__name__)
def test_it_keeps_to_the_conventions_of_scikit_learn(check, config, monkeypatch):
    monkeypatch.setattr(trainer, "write_report", lambda result, folder: None)
    check(OfRows(config, device="cpu"))


def test_what_is_excluded_is_there_to_be_excluded():
    names = [str(check) for _, check in estimator_checks.estimator_checks_generator(OfRows("a run"))]
    assert all(any(excluded in name for name in names) for excluded in EXCLUDED) and len(CHECKS) >= 20
