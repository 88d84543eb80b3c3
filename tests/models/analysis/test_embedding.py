"""Maps by UMAP where it is installed, by PCA otherwise, and what is said of it."""

from __future__ import annotations

import logging
import sys
from types import ModuleType

import numpy as np
import pytest

from models.analysis.embedding import FEWEST, embed, embedding_method

FEATURES = np.random.default_rng(0).normal(size=(FEWEST, 5))


@pytest.fixture(autouse=True)
def told(caplog):
    caplog.set_level(logging.INFO, logger="slca")


def test_without_umap_the_map_is_by_pca_and_the_log_says_what_to_install(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "umap", None)
    assert embedding_method(FEWEST) == "PCA" and "pip install" in caplog.text and "umap-learn" in caplog.text
    points = np.array(embed(FEATURES, "PCA"))
    assert points.shape == (FEWEST, 2) and points[:, 0].std() >= points[:, 1].std()


def test_with_umap_it_is_asked_for_the_same_points_every_time(monkeypatch):
    asked = {}

    class UMAP:
        def __init__(self, **settings):
            asked.update(settings)

        def fit_transform(self, features):
            return features[:, :2]

    monkeypatch.setitem(sys.modules, "umap", ModuleType("umap"))
    sys.modules["umap"].UMAP = UMAP
    assert embedding_method(FEWEST) == "UMAP"
    assert embed(FEATURES, "UMAP") == [tuple(point) for point in FEATURES[:, :2].tolist()] and asked["random_state"] == 0


def test_a_handful_of_images_has_no_neighbourhoods(caplog):
    assert embedding_method(FEWEST - 1) == "PCA" and f"needs {FEWEST} test images" in caplog.text
