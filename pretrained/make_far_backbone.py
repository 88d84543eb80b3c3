"""Make the *far* backbone: Fashion-MNIST's clothes -> the demo's small ViT, trained for a short time to name them.

The streams in exps/streams are drawings of cameras, keys and leaves. The demo's backbone knows glyphs, which are drawings too;
this one knows clothes alone, ten kinds of them, and not for long. It is weak on purpose: on it a method has to learn
representations and not only to read them.

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
CLOTHES = 10
IMAGE_HEADER, LABEL_HEADER = 16, 8  # bytes before the data in an idx file


def clothes(folder: Path, part: str) -> Labelled:
    """The pictures of `part` (train or t10k) and their kinds."""
    with gzip.open(folder / f"{part}-images-idx3-ubyte.gz") as file:
        pixels = np.frombuffer(file.read(), np.uint8, offset=IMAGE_HEADER).reshape(-1, 1, SIZE, SIZE)
    with gzip.open(folder / f"{part}-labels-idx1-ubyte.gz") as file:
        kinds = np.frombuffer(file.read(), np.uint8, offset=LABEL_HEADER)
    return torch.from_numpy(pixels.astype(np.float32) / 255), torch.from_numpy(kinds.astype(np.int64))


def main() -> None:
    parser = argparse.ArgumentParser(description="Fashion-MNIST idx files -> pretrained/vit_demo_clothing.safetensors")
    parser.add_argument("folder", type=Path, help="folder with the four *-ubyte.gz files")
    parser.add_argument("--out", type=Path, default=HERE / "vit_demo_clothing.safetensors")
    parser.add_argument("--steps", type=int, default=400, help="batches of 128 (default 400)")
    parser.add_argument("--save_every", type=int, default=200, help="steps between checkpoints")
    args = parser.parse_args()
    torch.set_num_threads(1)

    train, test = clothes(args.folder, "train"), clothes(args.folder, "t10k")
    seen = f"{len(train[1])} Fashion-MNIST pictures, {CLOTHES} classes"
    pretrain(train, test, CLOTHES, seen, args.steps, args.save_every, args.out, augmented=False)


if __name__ == "__main__":
    main()
