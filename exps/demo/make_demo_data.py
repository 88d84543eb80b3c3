"""Pack the demo's images: the first 300 training and 200 test images of each Fashion-MNIST class, in file order.

    apt-get install dataset-fashion-mnist      # or let torchvision download the same four files
    python exps/demo/make_demo_data.py /usr/share/datasets/fashion-mnist

The argument is the folder with the four *-ubyte.gz files; the result is fashion_mnist_demo.npz beside this script.
"""

import argparse
import gzip
from pathlib import Path

import numpy as np

CLASS_NAMES = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
TRAIN_PER_CLASS, TEST_PER_CLASS = 300, 200
IMAGE_HEADER, LABEL_HEADER = 16, 8  # bytes before the data in an idx file


def first_of_each_class(folder: Path, part: str, per_class: int) -> tuple[np.ndarray, np.ndarray]:
    """Images (10 * per_class, 28, 28) uint8 and labels (10 * per_class,) int64, in file order; part: train or t10k."""
    with gzip.open(folder / f"{part}-images-idx3-ubyte.gz") as file:
        images = np.frombuffer(file.read(), np.uint8, offset=IMAGE_HEADER).reshape(-1, 28, 28)
    with gzip.open(folder / f"{part}-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(), np.uint8, offset=LABEL_HEADER)
    chosen = np.sort(np.concatenate([np.flatnonzero(labels == c)[:per_class] for c in range(len(CLASS_NAMES))]))
    return images[chosen], labels[chosen].astype(np.int64)


def main() -> None:
    parser = argparse.ArgumentParser(description="Fashion-MNIST idx files -> exps/demo/fashion_mnist_demo.npz")
    parser.add_argument("folder", type=Path, help="folder with the four *-ubyte.gz files")
    folder = parser.parse_args().folder
    x_train, y_train = first_of_each_class(folder, "train", TRAIN_PER_CLASS)
    x_test, y_test = first_of_each_class(folder, "t10k", TEST_PER_CLASS)
    out = Path(__file__).resolve().parent / "fashion_mnist_demo.npz"
    np.savez_compressed(out, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test, class_names=np.array(CLASS_NAMES))
    print(f"{out}: {len(y_train)} training and {len(y_test)} test images, {out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
