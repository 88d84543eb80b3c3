"""Features as points in the plane: UMAP (McInnes et al. 2018, arXiv 1802.03426) where umap-learn is installed, else PCA."""

from __future__ import annotations

import logging
import warnings

import numpy as np

from utils.errors import UserError
from utils.extras import extra

log = logging.getLogger("slca")
NEIGHBOURS = 15  # UMAP's own default
FEWEST = 4 * NEIGHBOURS  # points that UMAP has neighbourhoods of


def embedding_method(points: int) -> str:
    """ "UMAP" or "PCA"; why it is PCA is told."""
    if points < FEWEST:
        log.info(f"map: by PCA, since UMAP needs {FEWEST} test images or more and there are {points}")
        return "PCA"
    try:
        extra("umap", "umap", "a map by UMAP")
    except UserError as missing:
        log.info(f"map: by PCA. {missing}")
        return "PCA"
    return "UMAP"


def embed(features: np.ndarray, method: str) -> list[tuple[float, float]]:
    """Features (N, D) -> N points; the same for the same features."""
    if method == "UMAP":
        from umap import UMAP

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a fixed seed allows one thread
            points = UMAP(n_components=2, n_neighbors=NEIGHBOURS, random_state=0, n_jobs=1).fit_transform(features)
    else:
        from sklearn.decomposition import PCA

        points = PCA(n_components=2, random_state=0).fit_transform(features)
    return [(float(x), float(y)) for x, y in points]
