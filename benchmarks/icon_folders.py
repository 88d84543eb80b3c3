"""Write some classes of exps/streams/icons50.npz as folders of PNG files, for the example of docs/use_it.md.

    python benchmarks/icon_folders.py six apple book bus camera car clock     # six/train/apple/000.png, ..., six/test/...
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

STREAM = Path(__file__).resolve().parent.parent / "exps" / "streams" / "icons50.npz"


def write_folders(folder: Path, classes: list[str]) -> None:
    """`folder`/{train,test}/<class>/<number>.png of each class. Raises SystemExit for a class that the stream does not have."""
    with np.load(STREAM) as stream:
        names = stream["class_names"].tolist()
        unknown = [name for name in classes if name not in names]
        if unknown:
            raise SystemExit(f"{unknown[0]!r} is no class of {STREAM.name}, allowed: {', '.join(names)}")
        for split in ("train", "test"):
            images, labels = stream[f"x_{split}"], stream[f"y_{split}"]
            for name in classes:
                place = folder / split / name
                place.mkdir(parents=True, exist_ok=True)
                for number, image in enumerate(images[labels == names.index(name)]):
                    Image.fromarray(image).save(place / f"{number:03d}.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("classes", nargs="+")
    arguments = parser.parse_args()
    write_folders(arguments.folder, arguments.classes)
