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

NO_TABLE = "images are no table of numbers: sparse, complex, infinite or missing values and names of columns do not occur"
OF_TABLES = (
    "check_estimator_sparse_tag", "check_estimator_sparse_array", "check_estimator_sparse_matrix", "check_complex_data",
    "check_estimators_nan_inf", "check_dtype_object", "check_estimators_dtypes", "check_n_features_in", "check_n_features_in_after_fitting",
    "check_estimators_partial_fit_n_features", "check_estimators_empty_data_messages", "check_fit1d", "check_fit2d_predict1d",
    "check_fit2d_1sample", "check_fit2d_1feature", "check_f_contiguous_array_estimator", "check_positive_only_tag_during_fit",
    "check_array_api_input")
EXCLUDED = {
    **dict.fromkeys(OF_TABLES, NO_TABLE),
    "check_estimators_pickle": "a model that learned is a run's folder: `save` and open it, nothing in a file is executed",
    "check_readonly_memmap_input": "the same as check_classifiers_train with readonly_memmap, which is run",
    "check_parameters_default_constructible": "there is no model by default: a run's folder or a config is named",
    "check_supervised_y_2d": "a column of labels is refused with a message instead of a warning",
}


class OfRows(ContinualClassifier):
    """Rows (N, F) of numbers as grey images: each number a part of the picture."""

    def partial_fit(self, X, y, classes=None):
        return super().partial_fit(pictures(X), y, classes)

    def fit(self, X, y):
        return super().fit(X, y)

    def predict(self, X):
        return self.classes_[self.predict_proba(X).argmax(axis=1)]

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
    return config_of(tmp_path_factory.mktemp("images"), "ncm", [["yak"]], keep_checkpoints="last")


def checks() -> list:
    generated = estimator_checks._yield_all_checks(OfRows("a run"), legacy=True)
    return [pytest.param(check, id=repr(check)) for check in generated]


@pytest.mark.parametrize("check", checks())
def test_it(check, config, monkeypatch):
    monkeypatch.setattr(trainer, "write_report", lambda result, folder: None)
    check("ContinualClassifier", OfRows(config, device="cpu"))
