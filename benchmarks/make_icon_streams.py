"""Make the streams of real drawings: @iconify/json (npm) -> exps/streams/icons50.npz, icons_styles.npz and README.md.

A class is a concept ("apple", "camera"), an image one icon set's drawing of it: 28 x 28 grey, ink bright. The test images come
from designers who give no training image.

- icons50: 50 concepts, meant as 10 tasks of 5.
- icons_styles: the concepts that are drawn in all of six styles (outline, filled, duotone, ...), each style a domain.

    pip install resvg-py                                       # 0.5.0
    python benchmarks/make_icon_streams.py                     # npm pack fetches the package, 100 MB; about 2 minutes
    python benchmarks/make_icon_streams.py --package FOLDER    # the unpacked package, no network

The seed is fixed: one version of the package gives the same arrays. README.md lists the icon sets, their authors and licences.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import tarfile
import tempfile
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

OUT = Path(__file__).resolve().parent.parent / "exps" / "streams"
PACKAGE = "@iconify/json@2.2.535"
CONCEPTS = [
    "alarm", "apple", "bluetooth", "book", "bookmark", "briefcase", "building", "bus", "calculator", "calendar", "camera", "car",
    "check", "clock", "code", "comment", "copy", "crown", "database", "file", "gift", "home", "key", "layers", "leaf", "lock", "mail",
    "map", "mouse", "music", "paperclip", "pause", "pin", "play", "refresh", "rocket", "save", "scissors", "shield", "shopping-bag",
    "stopwatch", "sun", "tag", "terminal", "thermometer", "ticket", "trophy", "umbrella", "user", "wallet",
]
LICENCES = {"MIT", "Apache-2.0", "ISC", "CC0-1.0", "OFL-1.1", "CC-BY-3.0", "CC-BY-4.0"}
# The first frame of an animation is empty; sets of brands and of file types hold trademarks.
LEFT_OUT = {"line-md", "svg-spinners", "fa-brands", "fa6-brands", "file-icons", "devicon-plain"}
# Authors whose sets go on with another author's, or coincide with them in many drawings: one designer for the split.
SAME_DESIGNER = {"Material Design Authors": "Google", "Pictogrammers": "Google", "MDI Community": "Google", "Family": "Ben Sperry",
                 "Lucide Contributors": "Cole Bemis", "Icons8": "Dave Gandy", "Andri Soone": "Refactoring UI Inc",
                 "Keyline Icons": "Praveen Juge", "REICON": "480 Design"}

STYLES = ("outline", "filled", "duotone", "rounded", "sharp", "thin")
# Words of an icon's name that speak of its style; where a name has several, the first one in this order counts.
STYLE_WORDS = {"sharp": "sharp", "rounded": "rounded", "round": "rounded",
               **dict.fromkeys(("duotone", "twotone", "duo", "tone", "bulk", "remix"), "duotone"), "thin": "thin", "light": "thin",
               "bold": "",  # heavy strokes in some sets, filled shapes in others
               **dict.fromkeys(("filled", "fill", "solid", "f", "flat", "baseline"), "filled"),
               **dict.fromkeys(("outline", "outlined", "line", "linear", "stroke", "regular", "o", "broken"), "outline")}
NUMBER_WORDS = {"one", "two", "three", "four", "16px", "24px"}
# Sets that are drawn in one style throughout, whatever the names say; "": not one of STYLES.
STYLE_OF_SET = {"streamline-sharp": "sharp", "streamline-plump": "rounded", "hugeicons": "rounded",
                **dict.fromkeys(("icon-park-twotone", "duo-icons", "uim"), "duotone"), **dict.fromkeys(("mdi-light", "uit"), "thin"),
                **dict.fromkeys(("icon-park-solid", "heroicons-solid", "bxs", "uis", "fa-solid", "fa6-solid", "fa7-solid"), "filled"),
                **dict.fromkeys(("pixelarticons", "pixel", "memory", "dinkie-icons"), "")}
# What the names without a style word mean in a set.
PLAIN_STYLE = {
    **dict.fromkeys((
        "akar-icons", "at-icons", "bi", "boxicons", "bx", "bytesize", "carbon", "charm", "ci", "cil", "fa-regular", "fa6-regular",
        "fa7-regular", "feather", "gravity-ui", "griddy-icons", "heroicons", "heroicons-outline", "humbleicons", "icon-park-outline",
        "iconamoon", "iconoir", "keyline-icons", "lets-icons", "lucide", "mage", "meteor-icons", "mynaui", "ph", "prime", "proicons",
        "reicon", "simple-line-icons", "streamline", "streamline-flex", "tabler", "tdesign", "uil", "vadivam"), "outline"),
    **dict.fromkeys(("mdi", "material-symbols", "material-symbols-light", "ion", "famicons", "majesticons"), "filled"),
}

SEED = 0
MAX_VARIANTS = 3  # per icon set and class
NEAR = 0.08  # two images whose `difference` is at most this are one drawing
TEST_EVERY = 3  # of the designers, sorted by their number of images, every third gives the test images,
FIRST_TEST = {"icons50": 0, "icons_styles": 2}  # from this one on: in icons_styles so that the small styles have both splits
LEAST_TRAIN = 2  # training images of a concept in each style
SIZE, INK, LARGE = 28, 24, 96  # pixels: of an image, of the drawing's longer side in it, and the height it is first drawn at
LEAST_INK, MOST_INK = 0.02, 0.80  # mean brightness; beyond them a drawing is blank or a plain block


@dataclass(frozen=True)
class Drawing:
    icon_set: str  # prefix in the package: "tabler"
    name: str  # in the set: "home-filled"
    concept: str
    style: str  # one of STYLES, or "" where neither name nor set tells
    svg: str


# Names and files -> drawings -----------------------------------------------------------------------------------------

def read_name(icon_set: str, name: str) -> tuple[str, str]:
    """Concept and style of an icon: ("tabler", "home-2-filled") -> ("home", "filled")."""
    words = name.split("-")
    concept = "-".join(w for w in words if w not in STYLE_WORDS and w not in NUMBER_WORDS and not w.isdigit())
    told = next((style for word, style in STYLE_WORDS.items() if word in words), PLAIN_STYLE.get(icon_set, ""))
    return concept, STYLE_OF_SET.get(icon_set, told)


def usable(icon_set: str, info: dict[str, Any]) -> bool:
    """Whether a set is under a licence of LICENCES, of one colour, and neither of brands nor left out."""
    return (info["license"].get("spdx") in LICENCES and not info.get("palette") and info.get("category") != "Logos"
            and icon_set not in LEFT_OUT)


def find_drawings(package: Path, sets: Sequence[str]) -> Iterator[Drawing]:
    """Every drawing of a concept in `sets`."""
    for icon_set in sets:
        data = json.loads((package / "json" / f"{icon_set}.json").read_text(encoding="utf-8"))
        icons = data["icons"] | {name: data["icons"].get(alias["parent"]) for name, alias in data.get("aliases", {}).items()
                                 if set(alias) == {"parent"}}  # not those that turn or mirror their parent
        for name, icon in sorted(icons.items()):
            concept, style = read_name(icon_set, name)
            if icon and concept in CONCEPTS:
                sides = (("left", 0), ("top", 0), ("width", 16), ("height", 16))  # the format's defaults
                box = [icon.get(key, data.get(key, default)) for key, default in sides]
                yield Drawing(icon_set, name, concept, style, '<svg xmlns="http://www.w3.org/2000/svg" '
                              f'viewBox="{" ".join(map(str, box))}" width="{box[2]}" height="{box[3]}">{icon["body"]}</svg>')


def rasterise(svg: str) -> np.ndarray | None:
    """How much of each pixel is covered, fitted so that the longer side takes 24: (28, 28) uint8; None if blank or a plain block."""
    import resvg_py

    png = resvg_py.svg_to_bytes(svg_string=svg, height=LARGE, skip_system_fonts=True)
    ink = Image.open(io.BytesIO(png)).convert("RGBA").getchannel("A")  # whatever its colour
    box = ink.getbbox()
    if not box:
        return None
    ink = ink.crop(box)
    scale = INK / max(ink.size)
    ink = ink.resize((max(1, round(ink.width * scale)), max(1, round(ink.height * scale))), Image.Resampling.BOX)
    canvas = Image.new("L", (SIZE, SIZE))
    canvas.paste(ink, ((SIZE - ink.width) // 2, (SIZE - ink.height) // 2))
    image = np.asarray(canvas)
    return image if LEAST_INK <= image.mean() / 255 <= MOST_INK else None


# Drawings -> streams -------------------------------------------------------------------------------------------------

def difference(image: np.ndarray, others: np.ndarray) -> np.ndarray:
    """From `image` (H, W) to each of `others` (N, H, W), uint8: sum |a - b| / sum max(a, b), (N,) in [0, 1]; 0 for equal ones."""
    a, b = image.astype(np.int16), others.astype(np.int16)
    return np.abs(a - b).sum((1, 2)) / np.maximum(np.maximum(a, b).sum((1, 2)), 1)


def select(images: np.ndarray, groups: Sequence[Hashable], order: Sequence[int]) -> np.ndarray:
    """Positions of the images (N, H, W) to keep, ascending; they are gone through in `order`.

    One that nearly equals (NEAR) an image kept before, of whatever class or set, is dropped; so is a group's fourth.
    """
    total = images.reshape(len(images), -1).sum(1, dtype=np.int64)
    kept = np.zeros(len(images), dtype=bool)
    taken: Counter[Hashable] = Counter()
    for i in order:
        if taken[groups[i]] == MAX_VARIANTS:
            continue
        # the sums bound the difference from below: only these can be near
        near = np.flatnonzero(kept & (np.abs(total - total[i]) <= NEAR * np.maximum(total, total[i])))
        if not (difference(images[i], images[near]) <= NEAR).any():
            kept[i] = True
            taken[groups[i]] += 1
    return np.flatnonzero(kept)


def choose_test_designers(designers: Sequence[str], first: int) -> set[str]:
    """Every third designer by number of images, from the `first` largest (0: the largest) on: both sides get large and small ones."""
    count = Counter(designers)
    return set(sorted(count, key=lambda designer: (-count[designer], designer))[first::TEST_EVERY])


def concepts_in_all_styles(drawings: Sequence[Drawing], is_test: np.ndarray) -> list[str]:
    """The concepts that have LEAST_TRAIN or more training images in each of STYLES; `is_test` (N,) bool."""
    trained = Counter((d.concept, d.style) for d, test in zip(drawings, is_test, strict=True) if not test)
    return [concept for concept in CONCEPTS if all(trained[concept, style] >= LEAST_TRAIN for style in STYLES)]


def pack(drawings: Sequence[Drawing], images: np.ndarray, is_test: np.ndarray, concepts: Sequence[str],
         styles: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """The arrays of one npz file; with `styles` only those, each a domain."""
    used = [i for i, d in enumerate(drawings) if d.concept in concepts and (not styles or d.style in styles)]
    set_names = sorted({drawings[i].icon_set for i in used})
    arrays = {"class_names": np.array(concepts), "set_names": np.array(set_names)} | ({"domain_names": np.array(styles)} if styles else {})
    for split, test in (("train", False), ("test", True)):
        part = [i for i in used if is_test[i] == test]
        arrays[f"x_{split}"] = images[part]
        arrays[f"y_{split}"] = np.array([concepts.index(drawings[i].concept) for i in part], dtype=np.int64)
        arrays[f"sets_{split}"] = np.array([set_names.index(drawings[i].icon_set) for i in part], dtype=np.int64)
        arrays[f"icons_{split}"] = np.array([drawings[i].name for i in part])
        if styles:
            arrays[f"domains_{split}"] = np.array([styles.index(drawings[i].style) for i in part], dtype=np.int64)
    return arrays


def make_streams(package: Path) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, dict[str, Any]]]:
    """Stream name -> arrays, and what the package says about each set that is used."""
    about = {icon_set: info for icon_set, info in json.loads((package / "collections.json").read_text(encoding="utf-8")).items()
             if usable(icon_set, info)}
    drawn = [(drawing, image) for drawing in find_drawings(package, list(about)) if (image := rasterise(drawing.svg)) is not None]
    drawings, images = [drawing for drawing, _ in drawn], np.stack([image for _, image in drawn])
    designers = [SAME_DESIGNER.get(name, name) for name in (about[d.icon_set]["author"]["name"] for d in drawings)]
    groups = [(d.icon_set, d.concept) for d in drawings]
    order = np.random.default_rng(SEED).permutation(len(drawings)).tolist()

    count = Counter(d.style for d in drawings)
    rare_first = sorted((i for i in order if drawings[i].style), key=lambda i: count[drawings[i].style])

    streams = {}
    for name, chosen_order, styles in (("icons50", order, ()), ("icons_styles", rare_first, STYLES)):
        kept = select(images, groups, chosen_order)
        test_designers = choose_test_designers([designers[i] for i in kept], FIRST_TEST[name])
        part, is_test = [drawings[i] for i in kept], np.array([designers[i] in test_designers for i in kept])
        streams[name] = pack(part, images[kept], is_test, concepts_in_all_styles(part, is_test) if styles else CONCEPTS, styles)
    return streams, about


# Files ---------------------------------------------------------------------------------------------------------------

README = """# Streams of real drawings

Written by `benchmarks/make_icon_streams.py` from the npm package `{package}`, seed {seed}. A class is a concept, an image one icon set's
drawing of it, 28 x 28 grey uint8, ink bright, cropped and fitted so that its longer side takes 24 pixels. The test images come from
designers who give no training image. Two images whose summed absolute difference is at most {near:.0%} of the sum of their pixelwise
maxima count as one drawing: one of them stays. Each set gives at most {variants} drawings of a class.

{facts}

| array | what |
|---|---|
| `x_train`, `x_test` | (N, 28, 28) uint8 |
| `y_train`, `y_test` | (N,) int64, positions in `class_names` |
| `sets_train`, `sets_test`, `icons_train`, `icons_test` | which set (positions in `set_names`) and which of its icons |
| `domains_train`, `domains_test` | `icons_styles` alone: (N,) int64, positions in `domain_names` |

The styles are what the icons' names, or their sets, call them; nothing was sorted by hand. Some drawings are odd ("apple" is the
fruit in one set and the company's sign in another; "mouse" is an animal or a device), as in any collection of other people's pictures.

## The icon sets and their licences

The drawings are their authors', under the licences named here; they were rasterised, and nothing else was changed. The numbers are
training images; those in **bold** are test images.

| set | name | author | licence | icons50 | icons_styles |
|---|---|---|---|---:|---:|
{sets}
"""


def write_readme(streams: dict[str, dict[str, np.ndarray]], about: dict[str, dict[str, Any]]) -> str:
    facts: list[str] = []
    numbers: dict[tuple[str, str], str] = {}  # stream and set -> how many images, bold for the test
    for name, arrays in streams.items():
        line = (f"`{name}.npz`: {len(arrays['y_train']):,} training and {len(arrays['y_test']):,} test images of "
                f"{len(arrays['class_names'])} classes")
        for k, style in enumerate(arrays.get("domain_names", ())):
            line += f"{', ' if k else '; training / test images per domain: '}{style} {(arrays['domains_train'] == k).sum()} / " \
                    f"{(arrays['domains_test'] == k).sum()}"
        facts.append(line + ".")
        for split, number in (("train", "{}"), ("test", "**{}**")):
            for icon_set, count in Counter(arrays["set_names"][arrays[f"sets_{split}"]].tolist()).items():
                numbers[name, icon_set] = number.format(count)
    rows = []
    for icon_set in sorted({icon_set for _, icon_set in numbers}):
        info = about[icon_set]
        author, licence = (f"[{entry.get('spdx') or entry['name']}]({entry['url']})" if entry.get("url") else
                           entry.get("spdx") or entry["name"] for entry in (info["author"], info["license"]))
        columns = [f"`{icon_set}`", info["name"], author, licence, *(numbers.get((name, icon_set), "") for name in streams)]
        rows.append(f"| {' | '.join(columns)} |")
    return README.format(package=PACKAGE, seed=SEED, near=NEAR, variants=MAX_VARIANTS, facts="\n\n".join(facts), sets="\n".join(rows))


def fetch(folder: Path) -> Path:
    """The unpacked package, by npm."""
    done = subprocess.run(["npm", "pack", PACKAGE, "--silent"], cwd=folder, check=True, capture_output=True, text=True)
    with tarfile.open(folder / done.stdout.split()[-1]) as archive:
        archive.extractall(folder, filter="data")
    return folder / "package"


def main() -> None:
    parser = argparse.ArgumentParser(description=f"{PACKAGE} -> exps/streams/icons50.npz, icons_styles.npz, README.md")
    parser.add_argument("--package", type=Path, help="folder of the unpacked package; without it npm fetches it")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        streams, about = make_streams(args.package or fetch(Path(folder)))
    args.out.mkdir(parents=True, exist_ok=True)
    for name, arrays in streams.items():
        path = args.out / f"{name}.npz"
        np.savez_compressed(path, **arrays)
        print(f"{path}: {len(arrays['y_train'])} training and {len(arrays['y_test'])} test images, {path.stat().st_size} bytes")
    (args.out / "README.md").write_text(write_readme(streams, about), encoding="utf-8")


if __name__ == "__main__":
    main()
