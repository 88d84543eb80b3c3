"""The example's images."""

import pytest
from PIL import Image

from benchmarks.icon_folders import write_folders


def test_classes_of_the_stream_become_folders_of_grey_images(tmp_path):
    write_folders(tmp_path, ["apple", "key"])
    assert {path.name for path in (tmp_path / "train").iterdir()} == {"apple", "key"}
    assert len(list((tmp_path / "train" / "apple").iterdir())) == 39
    with Image.open(tmp_path / "test" / "key" / "000.png") as image:
        assert image.size == (28, 28) and image.mode == "L"


def test_a_class_that_the_stream_does_not_have_is_told(tmp_path):
    with pytest.raises(SystemExit, match="'cow' is no class"):
        write_folders(tmp_path, ["cow"])
