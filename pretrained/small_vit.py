"""Pre-train the small ViT that the laptop-sized streams start from: network, augmentation, recipe, file.

make_demo_backbone.py (glyphs) and make_far_backbone.py (clothing) bring the images. One CPU thread, seeds fixed, a fixed
number of steps.
"""

import json
import math
import os
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

SIZE = 28  # pixels, Fashion-MNIST's
MEAN, STD = 0.2860, 0.3530  # Fashion-MNIST's, so that the demo's own normalisation fits
BATCH, PEAK_LR, WEIGHT_DECAY, LABEL_SMOOTHING, WARMUP_STEPS = 128, 2e-3, 0.05, 0.1, 200
ARCH = dict(img_size=28, patch_size=7, in_chans=1, embed_dim=128, depth=5, num_heads=4, mlp_ratio=2, class_token=True)
Labelled = tuple[Tensor, Tensor]  # images (N, 1, 28, 28) float32 in [0, 1], labels (N,) int64


def augment(x: Tensor, gen: torch.Generator) -> Tensor:
    """Images (N, 1, 28, 28) in [0, 1], changed at random: stroke, affine map, resolution, contrast, shading, noise."""
    n = len(x)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, generator=gen)  # (N,)

    def sometimes(probability: float, changed: Tensor, x: Tensor) -> Tensor:
        return torch.where((torch.rand(n, generator=gen) < probability).view(n, 1, 1, 1), changed, x)

    x = sometimes(0.25, F.max_pool2d(x, 3, 1, 1), x)  # dilate
    x = sometimes(0.15, F.max_pool2d(x, 3, 1, 1), x)  # and once more
    x = sometimes(0.15, -F.max_pool2d(-x, 3, 1, 1), x)  # erode
    angle, shear = uniform(-0.30, 0.30), uniform(-0.25, 0.25)  # radians, ratio
    width, height = uniform(0.85, 1.35), uniform(0.85, 1.35)  # above 1 the glyph shrinks
    cos, sin = angle.cos(), angle.sin()
    rows = [cos * width, (shear * cos - sin) * height, uniform(-0.2, 0.2)]
    rows += [sin * width, (shear * sin + cos) * height, uniform(-0.2, 0.2)]
    grid = F.affine_grid(torch.stack(rows, 1).view(n, 2, 3), list(x.shape), align_corners=False)
    x = F.grid_sample(x, grid, align_corners=False)
    x = sometimes(0.25, F.interpolate(F.avg_pool2d(x, 2), scale_factor=2, mode="bilinear"), x)  # low resolution
    x = x.clamp(0, 1) ** uniform(0.6, 1.6).view(n, 1, 1, 1) * uniform(0.5, 1.0).view(n, 1, 1, 1)  # contrast
    shade = F.interpolate(0.4 + 0.6 * torch.rand(n, 1, 4, 4, generator=gen), size=(SIZE, SIZE), mode="bilinear")
    x = sometimes(0.5, x * shade, x)
    noise = torch.randn(x.shape, generator=gen) * uniform(0.0, 0.10).view(n, 1, 1, 1)
    return (x + noise).clamp(0, 1)


def normalise(x: Tensor) -> Tensor:
    return (x - MEAN) / STD


@torch.no_grad()
def accuracy(model: VisionTransformer, images: Tensor, labels: Tensor) -> float:
    """Top-1 accuracy, percent in [0, 100]."""
    model.eval()
    batches = zip(images.split(512), labels.split(512), strict=True)
    hits = sum((model(normalise(x)).argmax(1) == y).sum() for x, y in batches)
    model.train()
    return 100 * float(hits) / len(labels)


def save(model: VisionTransformer, path: Path, facts: dict[str, object]) -> None:
    """Write the backbone (final norm included, head left out) as float16, under timm's own names."""
    state = {k: v.half().contiguous() for k, v in model.state_dict().items() if not k.startswith("head.")}
    about = json.dumps(dict(arch=ARCH, input_mean=MEAN, input_std=STD, **facts))
    partial = path.with_name(path.name + ".partial")
    save_file(state, partial, {"about": about})  # one key: safetensors writes several in a random order
    partial.chmod(0o644)  # safetensors makes files that only their owner can read
    os.replace(partial, path)


def pretrain(train: Labelled, validation: Labelled, num_classes: int, data: str, steps: int, save_every: int, out: Path,
             augmented: bool = True) -> None:
    """Train the ViT to name `num_classes` classes and write it to `out` every `save_every` steps; `data` says what it saw."""
    torch.manual_seed(0)  # timm's initialisation
    gen = torch.Generator().manual_seed(0)  # batches and augmentation
    model = VisionTransformer(num_classes=num_classes, **ARCH)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]  # biases and norms are not decayed
    groups = [dict(params=matrices, weight_decay=WEIGHT_DECAY), dict(params=vectors, weight_decay=0.0)]
    optimizer = torch.optim.AdamW(groups, lr=PEAK_LR)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min((s + 1) / WARMUP_STEPS, 0.5 * (1 + math.cos(math.pi * s / max(steps, 1))))
    )
    images, labels = train
    start, order = time.time(), torch.empty(0, dtype=torch.long)
    for step in range(1, steps + 1):
        if len(order) < BATCH:
            order = torch.randperm(len(labels), generator=gen)
        batch, order = order[:BATCH], order[BATCH:]
        x = augment(images[batch], gen) if augmented else images[batch]
        logits = model(normalise(x))  # (128, num_classes)
        loss = F.cross_entropy(logits, labels[batch], label_smoothing=LABEL_SMOOTHING)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        if step % 100 == 0:
            print(f"step {step}/{steps}  {time.time() - start:.0f} s  loss {loss.item():.3f}", flush=True)
        if step % save_every == 0 or step == steps:
            val = round(accuracy(model, *validation), 2)
            save(model, out, dict(data=data, steps=step, planned_steps=steps, batch=BATCH, val_accuracy=val))
            print(f"step {step}/{steps}  {time.time() - start:.0f} s  validation {val:.2f}%  -> {out}", flush=True)
