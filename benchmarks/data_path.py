"""How fast batches come, beside a pipeline of PIL images and torchvision transforms with as many workers.

    python benchmarks/data_path.py [--workers 0 2] [--images 2000] [--rounds 3]

The network is left out: every batch is made and thrown away. Both sides get the same images, batch size and transforms,
and take turns, so that other work on the machine meets both. Reported: images per second (median of the rounds) and the
ratio, with its range over the rounds.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from common import save
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from utils.config import Config
from utils.data.data_manager import DataManager

BATCH = 128
BRIGHTNESS = 63 / 255
PHOTO = (320, 400)  # height, width of the JPEG files


class PerImage(Dataset):
    """The usual way: one PIL image, one chain of transforms, at a time."""

    def __init__(self, images: np.ndarray | list[Path], chain: Callable) -> None:
        self.images, self.chain = images, chain

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        image = self.images[i]
        pil = Image.open(image).convert("RGB") if isinstance(image, Path) else Image.fromarray(image.squeeze())
        return self.chain(pil), 0


def chain(name: str, size: int, channels: int) -> Callable:
    """The release's chain of PIL transforms for a recipe of utils/images/transforms.py."""
    bicubic, flip, jitter = InterpolationMode.BICUBIC, transforms.RandomHorizontalFlip(), transforms.ColorJitter(brightness=BRIGHTNESS)
    steps = {
        "crop32_jitter": [transforms.RandomCrop(size, padding=4), flip, jitter],
        "crop224_jitter": [transforms.RandomResizedCrop(size, interpolation=bicubic), flip, jitter],
        "crop224": [transforms.RandomResizedCrop(size, interpolation=bicubic), flip],
        "resize256_crop224": [transforms.Resize(size * 256 // 224, interpolation=bicubic), transforms.CenterCrop(size)],
        "none": [],
    }[name]
    return transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize((0.5,) * channels, (0.25,) * channels)])


def smooth_images(count: int, size: int, channels: int) -> np.ndarray:
    """(count, size, size, channels) uint8: blurred noise, since a JPEG of plain noise is no ordinary photo."""
    coarse = torch.rand(count, channels, size // 4 + 2, size // 4 + 2, generator=torch.Generator().manual_seed(0))
    fine = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic").clamp(0, 1)
    return (fine * 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def manager(dataset: dict, workers: int, cache: str = "auto") -> DataManager:
    config = Config(model_name="slca", convnet_type="none", epochs=1, init_cls=2, increment=0, num_workers=workers, cache=cache,
                    dataset=dataset)
    return DataManager(config, 0)


def seconds(batches: Iterable) -> float:
    start = time.perf_counter()
    for _ in batches:
        pass
    return time.perf_counter() - start


def compare(title: str, dataset: dict, images: np.ndarray | list[Path], workers: int, rounds: int, cache: str = "auto") -> dict:
    """One line of the table."""
    data = manager(dataset, workers, cache)
    info = data.info
    # persistent workers for both: the cost of starting processes is not what is compared
    usual = DataLoader(PerImage(images, chain(info.train_transform, info.image_size, info.channels)), BATCH, shuffle=True,
                       num_workers=workers, persistent_workers=workers > 0)

    def ours(i: int) -> Iterable:
        return data.batches("train", 0, batch_size=BATCH, augment=True, shuffle_seed=i)
    seconds(ours(0)), seconds(usual)  # start the workers, fill the caches of the system
    times = [(seconds(ours(i)), seconds(usual)) for i in range(1, rounds + 1)]
    rates = [[len(images) / t for t in side] for side in zip(*times, strict=True)]
    ratios = [theirs / ours for ours, theirs in times]
    line = {"case": title, "workers": workers, "images_per_second": statistics.median(rates[0]),
            "pil_images_per_second": statistics.median(rates[1]), "ratio": statistics.median(ratios),
            "ratio_low": min(ratios), "ratio_high": max(ratios)}
    print(f"{title:44} {workers:7d} {line['images_per_second']:10.0f} {line['pil_images_per_second']:10.0f} {line['ratio']:7.2f}x"
          f"  ({line['ratio_low']:.2f} - {line['ratio_high']:.2f})", flush=True)
    return line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--images", type=int, default=2000, help="images per pass at 28 to 64 px; half of them at 224")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    print(f"torch {torch.__version__}, {platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads; batch {BATCH}")
    print(f"{'case':44} {'workers':>7} {'images/s':>10} {'PIL':>10} {'ratio':>8}")
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        for workers in arguments.workers:
            for size, channels, source, recipe in ((28, 1, 28, "crop32_jitter"), (32, 3, 32, "crop32_jitter"), (64, 3, 64, "crop32_jitter"),
                                                   (32, 3, 32, "none"), (224, 3, 32, "crop224_jitter"), (224, 3, 32, "resize256_crop224")):
                images = smooth_images(arguments.images if size < 224 else arguments.images // 2, source, channels)
                file = Path(folder) / "data.npz"
                np.savez(file, x_train=images, x_test=images[:2], y_train=np.arange(len(images)) % 2, y_test=[0, 1])
                dataset = {"name": "b", "layout": "npz", "root": str(file), "image_size": size, "train_transform": recipe,
                           "mean": [0.5] * channels, "std": [0.25] * channels}
                title = f"{channels}x{source}x{source} -> {size}, {recipe}"
                lines.append(compare(title, dataset, images, workers, arguments.rounds))
            lines += photos(Path(folder) / "photos", arguments.images // 2, workers, arguments.rounds)
    save("8_data_path", {"batch": BATCH, "rounds": arguments.rounds, "lines": lines})


def photos(folder: Path, count: int, workers: int, rounds: int) -> list[dict]:
    """JPEG files at 224, decoded each time and kept in memory."""
    dataset = write_photos(folder, count)
    paths = sorted((folder / "train").rglob("*.jpg"))
    return [compare(f"JPEG {PHOTO[0]}x{PHOTO[1]} -> 224, crop224, cache {cache}", dataset, paths, workers, rounds, cache=cache)
            for cache in ("none", "ram")]


def write_photos(folder: Path, count: int) -> dict:
    """`count` JPEG files of two classes, where they are not there yet; the config's dataset."""
    if not folder.exists():
        for i, image in enumerate(smooth_images(count + 2, max(PHOTO), 3)[:, :PHOTO[0], :PHOTO[1]]):
            path = folder / ("train" if i < count else "val") / f"class{i % 2}" / f"{i}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path, quality=90)
    return {"name": "photos", "root": str(folder), "mean": [0.5] * 3, "std": [0.25] * 3}


if __name__ == "__main__":
    main()
