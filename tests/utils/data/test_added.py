"""utils/data/added.py: what is still there of images that a run has learned."""

from __future__ import annotations

import shutil

import numpy as np
from PIL import Image

from tests.utils.data.test_data_manager import config, manager, synthetic
from utils.data.added import Learned, load_parts


def test_old_test_images_under_the_home_folder_are_found_without_the_training_images(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for i, split in enumerate(("train", "test")):
        (tmp_path / split / "ant").mkdir(parents=True)
        Image.fromarray(np.full((16, 16, 3), i, dtype=np.uint8)).save(tmp_path / split / "ant" / "0.png")
    added = [{"train": "~/train", "test": "~/test"}]
    data = manager(added=added, cache="none")
    shutil.rmtree(tmp_path / "train")
    parts = load_parts(config(synthetic(), added=added), Learned(data.stored, data.fingerprint, extended=False))
    assert len(parts[1].test) == 1 and parts[1].names == ["ant"]
