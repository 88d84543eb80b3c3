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
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from fontTools.ttLib import TTFont
from PIL import Image, ImageFont
from small_vit import SIZE, pretrain

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
EM, INK = 96, 24  # pixels: drawn at 96 per em, then fitted so that the longer side takes 24
MIN_EXTENT = 0.35  # em; a glyph whose longer side is shorter (a full stop) is not magnified further
HOLD_OUT = 0.05  # of the renderings, by font family


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
    validation = held_out(data["families"], np.random.default_rng(1))
    families = len(np.unique(data["families"]))
    print(f"{(~validation).sum()} training and {validation.sum()} validation renderings, {families} families")
    images, labels = torch.from_numpy(data["images"])[:, None].float() / 255, torch.from_numpy(data["labels"])
    drawn = f"{len(labels)} glyph renderings, {len(CLASSES)} classes"
    train = (images[~validation], labels[~validation])
    pretrain(train, (images[validation], labels[validation]), len(CLASSES), drawn, args.steps, args.save_every, args.out)


if __name__ == "__main__":
    main()
