"""Make the demo's backbone: Debian fonts -> renderings of glyphs -> a small ViT trained to name them.

The demo needs what ImageNet-21K pre-training is for the paper: a backbone that saw related images, but none of the
stream's classes. It learns 300 glyph classes (Greek, Cyrillic, punctuation, currency, maths and other symbols, IPA;
no clothing, no digits, no ASCII letters) in up to 150 font families each, drawn bright on black at 28 x 28.

    python pretrained/make_demo_backbone.py --install_fonts    # Debian, as root; else install demo_fonts.txt yourself

needs fontTools and Pillow besides torch and timm. One CPU thread, seeds fixed, a fixed number of steps. The card
with what was measured is vit_demo_glyphs.md.
"""

import argparse
import collections
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from fontTools.ttLib import TTFont
from PIL import Image, ImageFont
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

HERE = Path(__file__).resolve().parent
# One character per class; most look-alikes of ASCII letters, of digits and of one another are left out.
GLYPHS = {
    "greek": "ΓΔΘΛΞΠΣΦΨΩαβγδεζηθικλμξπρςστυφχψωΐάέήίόύώϊϋΰϑ",
    "cyrillic": "БДЖИЙЛЦЧШЩЪЫЬЭЮЯбёЂђЃЄЇЉЊЋћЌЎЏѢѣҐҒҖҚҜҢҤҰҲҶҸӘӜӞӢӦӪӮӴӸҠҪҘ",
    "punctuation": "!\"#%&'()*+,-./:;<=>?@[\\]^{|}~¡¦§¨©«¬®°´¶»¿‘“”„†‡…‰‹›‼ˇ˘˚˛˜˝¸",
    "currency": "$¢£¤¥€₣₧₩₫₹₱",
    "maths": "±×÷∂∅√∞∩∫≈≠≡≤≥∟⌐⌠⌡◊←↑→↓↔↕↗↘↨ℓ№™℮℅⌂",
    "symbols": "■□▲►▼◄○☺☻☼♀♂♠♣♥♦♪♫",
    "ipa and other latin": "ɐɑɒɓɔɕɖɗɘəɛɜɞɟɠɣɤɥɦɧɨɫɬɭɮɯɰɱɲɳɵɸɹɻɽɾʁʂʃʄʈʉʊʋʌʍʎʐʑʒʔʕʘʛʝʡʢɚʧæðþßøŋœłÆŒÐÞƎƕƠƯǂ",
}
CLASSES = "".join(GLYPHS.values())
assert len(CLASSES) == len(set(CLASSES)) == 300, f"{len(CLASSES)} classes, {len(set(CLASSES))} distinct"

PER_CLASS = 150
MIN_CLASSES = 40  # a family with fewer of the glyphs is a decorative or single-script font
SIZE = 28  # pixels, Fashion-MNIST's
EM, INK = 96, 24  # pixels: drawn at 96 per em, then fitted so that the longer side takes 24
MIN_EXTENT = 0.35  # em; a glyph whose longer side is shorter (a full stop) is not magnified further
HOLD_OUT = 0.05  # of the renderings, by font family
MEAN, STD = 0.2860, 0.3530  # Fashion-MNIST's, so that the stream's own normalisation fits
BATCH, PEAK_LR, WEIGHT_DECAY, LABEL_SMOOTHING, WARMUP_STEPS = 128, 2e-3, 0.05, 0.1, 200
ARCH = dict(img_size=28, patch_size=7, in_chans=1, embed_dim=128, depth=5, num_heads=4, mlp_ratio=2, class_token=True)


# --- fonts -> renderings -------------------------------------------------------------------------------------------


def font_families(packages: list[str]) -> dict[str, list[str]]:
    """Family name -> its font files, the regular one first; only families with MIN_CLASSES or more of the glyphs."""
    listing = subprocess.run(["dpkg", "-L", *packages], capture_output=True, text=True)
    if listing.returncode:
        missing = listing.stderr.count("is not installed")
        sys.exit(f"{missing} of the {len(packages)} packages in demo_fonts.txt are not installed: use --install_fonts")
    families: dict[str, list[tuple[bool, str]]] = collections.defaultdict(list)
    for path in sorted({p for p in listing.stdout.split("\n") if p.lower().endswith((".ttf", ".otf"))}):
        try:
            font = TTFont(path, lazy=True)
            name, style = font["name"].getDebugName(1), font["name"].getDebugName(2)
            count = sum(ord(c) in (font.getBestCmap() or {}) for c in CLASSES)
        except Exception as error:  # fontTools raises many kinds on a broken font; one font more or less is nothing
            print(f"skipped {path}: {error}")
            continue
        if name and count >= MIN_CLASSES:
            families[name].append((style != "Regular", path))
    return {name: [path for _, path in sorted(files)] for name, files in sorted(families.items())}


def render(font: ImageFont.FreeTypeFont, char: str) -> np.ndarray | None:
    """One glyph, bright on black, centred and fitted: (28, 28) uint8, or None if the font draws nothing for it."""
    mask = font.getmask(char, mode="L")
    glyph = Image.frombytes("L", mask.size, bytes(mask)) if min(mask.size) > 0 else None
    box = glyph.getbbox() if glyph else None
    if not box or max(box[2] - box[0], box[3] - box[1]) > 4 * EM:
        return None
    glyph = glyph.crop(box)
    scale = INK / max(*glyph.size, MIN_EXTENT * EM)
    glyph = glyph.resize(tuple(max(1, round(side * scale)) for side in glyph.size), Image.Resampling.BOX)
    canvas = Image.new("L", (SIZE, SIZE))
    canvas.paste(glyph, ((SIZE - glyph.width) // 2, (SIZE - glyph.height) // 2))
    return np.asarray(canvas) if np.asarray(canvas).max() >= 64 else None


def render_font(path: str, chars: str) -> dict[str, bytes]:
    """Character -> its rendering, for those of `chars` that the font really draws."""
    try:
        present = TTFont(path, lazy=True).getBestCmap()
        font = ImageFont.truetype(path, EM)
        images = {c: image.tobytes() for c in chars if ord(c) in present and (image := render(font, c)) is not None}
    except (OSError, ValueError) as error:  # a font that FreeType cannot read or draw
        print(f"skipped {path}: {error}")
        return {}
    times = collections.Counter(images.values())
    return {c: image for c, image in images.items() if times[image] == 1}  # one picture for several is a placeholder


def make_renderings(packages: list[str], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """images (N, 28, 28) uint8, labels (N,) int64 in [0, 300), families (N,) unicode; N at most 300 x 150.

    Each class takes one rendering from each of 150 families; where fewer have the glyph, bold and italic faces fill up.
    """
    families = font_families(packages)
    regular = [(family, files[0]) for family, files in families.items()]
    others = [(family, path) for family, files in families.items() for path in files[1:]]
    drawn: dict[str, dict[bytes, str]] = {c: {} for c in CLASSES}  # per class: distinct image -> family
    for faces in (regular, others):
        lacking = "".join(c for c in CLASSES if len(drawn[c]) < PER_CLASS)
        found: dict[str, dict[bytes, str]] = {c: {} for c in lacking}
        for family, path in faces:
            for c, image in render_font(path, lacking).items():
                if image not in drawn[c]:
                    found[c].setdefault(image, family)
        for c, pictures in found.items():
            order = rng.permutation(len(pictures))[: PER_CLASS - len(drawn[c])]
            drawn[c] |= dict(list(pictures.items())[i] for i in order)
    samples = [(image, family, y) for y, c in enumerate(CLASSES) for image, family in drawn[c].items()]
    return {
        "images": np.frombuffer(b"".join(image for image, _, _ in samples), np.uint8).reshape(-1, SIZE, SIZE),
        "labels": np.array([y for _, _, y in samples]),
        "families": np.array([family for _, family, _ in samples]),
    }


def held_out(families: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Mask (N,) of the validation renderings; families with one first word (Noto Sans, Noto Serif) stay together."""
    groups = np.array([family.split()[0] for family in families])
    sizes = collections.Counter(groups.tolist())
    chosen: set[str] = set()
    for group in rng.permutation(sorted(sizes)):
        if sum(sizes[g] for g in chosen) + sizes[group] <= HOLD_OUT * len(families):
            chosen.add(str(group))
    return np.isin(groups, sorted(chosen))


# --- renderings -> checkpoint --------------------------------------------------------------------------------------


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


def pretrain(data: dict[str, np.ndarray], steps: int, save_every: int, out: Path) -> None:
    validation = held_out(data["families"], np.random.default_rng(1))
    images, labels = torch.from_numpy(data["images"])[:, None].float() / 255, torch.from_numpy(data["labels"])
    train_x, train_y = images[~validation], labels[~validation]
    val_x, val_y = images[validation], labels[validation]
    families = len(np.unique(data["families"]))
    print(f"{len(train_y)} training and {len(val_y)} validation renderings, {families} families")

    torch.manual_seed(0)  # timm's initialisation
    gen = torch.Generator().manual_seed(0)  # batches and augmentation
    model = VisionTransformer(num_classes=len(CLASSES), **ARCH)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]  # biases and norms are not decayed
    groups = [dict(params=matrices, weight_decay=WEIGHT_DECAY), dict(params=vectors, weight_decay=0.0)]
    optimizer = torch.optim.AdamW(groups, lr=PEAK_LR)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min((s + 1) / WARMUP_STEPS, 0.5 * (1 + math.cos(math.pi * s / max(steps, 1))))
    )
    start, order = time.time(), torch.empty(0, dtype=torch.long)
    for step in range(1, steps + 1):
        if len(order) < BATCH:
            order = torch.randperm(len(train_y), generator=gen)
        batch, order = order[:BATCH], order[BATCH:]
        logits = model(normalise(augment(train_x[batch], gen)))  # (128, 300)
        loss = F.cross_entropy(logits, train_y[batch], label_smoothing=LABEL_SMOOTHING)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        if step % 100 == 0:
            print(f"step {step}/{steps}  {time.time() - start:.0f} s  loss {loss.item():.3f}", flush=True)
        if step % save_every == 0 or step == steps:
            val = round(accuracy(model, val_x, val_y), 2)
            drawn = f"{len(labels)} glyph renderings, {len(CLASSES)} classes"
            save(model, out, dict(data=drawn, steps=step, planned_steps=steps, batch=BATCH, val_accuracy=val))
            print(f"step {step}/{steps}  {time.time() - start:.0f} s  validation {val:.2f}%  -> {out}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Debian fonts -> renderings -> pretrained/vit_demo_glyphs.safetensors")
    parser.add_argument("--install_fonts", action="store_true", help="apt-get install the packages of demo_fonts.txt")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()), help="folder for the renderings")
    parser.add_argument("--out", type=Path, default=HERE / "vit_demo_glyphs.safetensors")
    parser.add_argument("--steps", type=int, default=10000, help="batches of 128 (default 10000)")
    parser.add_argument("--save_every", type=int, default=1000, help="steps between checkpoints")
    args = parser.parse_args()
    torch.set_num_threads(1)

    renderings = args.cache / "demo_glyphs.npz"
    if not renderings.exists():
        packages = (HERE / "demo_fonts.txt").read_text().split()
        if args.install_fonts:
            subprocess.run(["apt-get", "install", "-y", "--no-install-recommends", *packages], check=True)
        data = make_renderings(packages, np.random.default_rng(0))
        args.cache.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(renderings, **data)
    with np.load(renderings) as stored:
        data = dict(stored)
    print(f"{len(data['labels'])} renderings in {renderings}", flush=True)
    pretrain(data, args.steps, args.save_every, args.out)


if __name__ == "__main__":
    main()
