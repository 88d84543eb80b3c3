"""Make the *far* backbone: Fashion-MNIST's clothes -> the demo's small ViT, trained to name them.

The streams in exps/streams are drawings of apples, cameras and keys; the demo's backbone knows glyphs, which are drawings
too. This one knows clothes alone, so a method on it has to learn representations and not only to read them. Its 40
classes are the ten kinds of clothes, each upright or turned by 90, 180 or 270 degrees.

    apt-get install dataset-fashion-mnist
    python pretrained/make_far_backbone.py /usr/share/datasets/fashion-mnist

One CPU thread, seeds fixed, a fixed number of steps. The card with what was measured is vit_demo_clothing.md.
"""

import argparse
import gzip
from pathlib import Path

import numpy as np
import torch
from small_vit import SIZE, Labelled, pretrain

HERE = Path(__file__).resolve().parent
CLOTHES, TURNS = 10, 4
IMAGE_HEADER, LABEL_HEADER = 16, 8  # bytes before the data in an idx file


def turned_clothes(folder: Path, part: str) -> Labelled:
    """Every picture of `part` (train or t10k) in its four turns, the class 10 * turn + kind of clothes."""
    with gzip.open(folder / f"{part}-images-idx3-ubyte.gz") as file:
        pixels = np.frombuffer(file.read(), np.uint8, offset=IMAGE_HEADER).reshape(-1, 1, SIZE, SIZE)
    with gzip.open(folder / f"{part}-labels-idx1-ubyte.gz") as file:
        kinds = torch.from_numpy(np.frombuffer(file.read(), np.uint8, offset=LABEL_HEADER).astype(np.int64))
    images = torch.from_numpy(pixels.copy()).float() / 255
    return (torch.cat([images.rot90(turn, (2, 3)) for turn in range(TURNS)]),
            torch.cat([CLOTHES * turn + kinds for turn in range(TURNS)]))


def main() -> None:
    parser = argparse.ArgumentParser(description="Fashion-MNIST idx files -> pretrained/vit_demo_clothing.safetensors")
    parser.add_argument("folder", type=Path, help="folder with the four *-ubyte.gz files")
    parser.add_argument("--out", type=Path, default=HERE / "vit_demo_clothing.safetensors")
    parser.add_argument("--steps", type=int, default=4000, help="batches of 128 (default 4000)")
    parser.add_argument("--save_every", type=int, default=1000, help="steps between checkpoints")
    args = parser.parse_args()
    torch.set_num_threads(1)

    train, test = turned_clothes(args.folder, "train"), turned_clothes(args.folder, "t10k")
    seen = f"{len(train[1])} Fashion-MNIST pictures, turned copies included, {CLOTHES * TURNS} classes"
    pretrain(train, test, CLOTHES * TURNS, seen, args.steps, args.save_every, args.out)


if __name__ == "__main__":
    main()
