"""Random settings on tiny data and a micro ViT: each config ends in one sentence, or in a run that is done; no traceback, no hang.

    python -m tests.soak configs --count 2000 --seed 0
    python -m tests.soak configs --seed 0 --only 17      config 17 again; printed with what the run said

The values come from the settings' JSON Schema (exps/schema.json): small ones, the ends of each range, and far beyond where there is no
end. Settings that would only make a run long (WORK) stay small. Not drawn: `compile`, which takes minutes, and several processes.
"""

from __future__ import annotations

import json
import random
import resource
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.soak.children import Ended, in_parts, run_main, stub_slow_parts

FINE = ("done", "refused", "stopped")
SECONDS = 180.0  # of one config; alone most take less than one
MORE_MEMORY = 3 * 2**30  # bytes that a child may ask for beyond what it starts with
WORK = {"epochs": 3, "ca_epochs": 3, "later_epochs": 2, "sldc_steps": 50, "sldc_moment_samples": 3, "ca_samples": 64, "num_workers": 2,
        "accumulate": 50, "ranpac_dim": 3000, "prompt_length": 50, "g_prompt_length": 50, "prompt_pool": 200, "vpt_tokens": 200}
SMALL_WORK = {"ca_epochs": 1, "ca_samples": 8, "ranpac_dim": 20, "memory_size": 20}
DEVICES = ["auto", "cpu", -1, "-1", ["cpu"], [], "cuda", "cuda:7", 0, [0, 1], "gpu", ""]
GIVEN = {"model_name", "dataset", "convnet_type", "compile", "device", "data_root", "seed", "init_cls", "increment", "task_sizes", "tasks"}
CLASSES = 4  # of the data in files
TEXTS = ["", "auto", "cls", "mean", "std", "naïve ✓ 日本語", "\x00", "../..", "1e999"]
WHOLE_EVERY = 8  # configs; the others leave out what takes longest: the dry run's measuring and the drawing of pictures


class Drawer:
    """Draws configs, each from its own seed."""

    def __init__(self, folder: Path) -> None:
        from models import learner_class
        from utils.config import Config
        from utils.methods import catalogue

        self.methods = catalogue().methods
        schemas = {name: learner_class(name).Settings.model_json_schema() for name in self.methods}
        self.properties = {name: schema["properties"] for name, schema in schemas.items()}
        self.parts = {name: part for schema in schemas.values() for name, part in schema["$defs"].items()}  # settings within settings
        self.common = [key for key in Config.model_fields if key not in GIVEN]
        self.folder = folder
        make_data(folder)

    def config(self, seed: str) -> dict[str, Any]:
        """A method on tiny data with one to six settings drawn."""
        from tests.support import SMALL

        draw = random.Random(seed)
        method = draw.choice(list(self.methods))
        size = draw.choice([16, 16, 8])
        dataset, classes = self.dataset(draw, size)
        config = {"model_name": method, "dataset": dataset, "convnet_type": self.backbone(draw, size), "pretrained": False, "device": "cpu",
                  "epochs": draw.randint(1, 2), "batch_size": draw.choice([1, 3, 8]), "seed": draw.choice([0, 0, [1, 2]]),
                  "init_cls": draw.randint(1, classes), "increment": draw.randint(1, 3), "bad_images": "skip", **SMALL.get(method, {})}
        own = self.methods[method].keys
        config |= {key: value for key, value in SMALL_WORK.items() if key in own}
        for _ in range(draw.randint(1, 6)):
            key = draw.choice(own if own and draw.random() < 0.5 else self.common)
            config[key] = self.value(draw, key, self.properties[method][key])
        if draw.random() < 0.05:
            config["device"] = draw.choice(DEVICES)
        if draw.random() < 0.01:
            config["task_sizes"] = [draw.randint(1, classes) for _ in range(draw.randint(1, 3))]
        return config

    def dataset(self, draw: random.Random, size: int) -> tuple[dict[str, Any], int]:
        """A description of tiny data, and its number of classes."""
        kind = draw.choice(["synthetic", "synthetic", "synthetic", "npz", "folders"])
        common: dict[str, Any] = {"name": "tiny", "layout": kind, "image_size": size}
        if draw.random() < 0.2:
            common["train_transform"] = draw.choice(["none", "crop32", "crop224", "resize300_crop224", [["RandomHorizontalFlip", {}]]])
        if kind == "npz":
            return {**common, "root": str(self.folder / "tiny.npz")}, CLASSES
        if kind == "folders":
            return {**common, "root": str(self.folder / "images"), "split": {"test_fraction": 0.4}}, CLASSES
        classes = draw.randint(1, 6)
        return {**common, "num_classes": classes, "channels": draw.choice([3, 3, 1]), "train_per_class": draw.choice([1, 2, 7]),
                "test_per_class": draw.choice([1, 3]), "num_domains": draw.choice([1, 1, 1, 2])}, classes

    def backbone(self, draw: random.Random, size: int) -> dict[str, Any]:
        from tests.support import MICRO_VIT

        changes = [{}, {}, {}, {"img_size": 24}, {"depth": 1}, {"num_heads": 1}, {"class_token": False, "global_pool": "avg"},
                   {"global_pool": "avg"}, {"in_chans": 1}, {"reg_tokens": 2}, {"qkv_bias": False}, {"mlp_ratio": 1}]
        return {"timm": "vit_tiny_patch16_224", "args": {**MICRO_VIT, "img_size": size, **draw.choice(changes)}}

    def value(self, draw: random.Random, key: str, schema: dict[str, Any]) -> Any:
        """One value that the schema of `key` allows."""
        if "anyOf" in schema:
            return self.value(draw, key, draw.choice(schema["anyOf"]))
        if "const" in schema or "enum" in schema:
            return draw.choice(schema.get("enum", [schema.get("const")]))
        if "$ref" in schema:
            part = self.parts[schema["$ref"].removeprefix("#/$defs/")]
            needed = part.get("required", [])
            return {name: self.value(draw, name, inner) for name, inner in part["properties"].items()
                    if name in needed or draw.random() < 0.5}
        kind = schema["type"]
        if kind == "integer":
            low = schema.get("minimum", -2)
            high = WORK.get(key, schema.get("maximum", 10**12))
            return min(high, draw.choice([low, low + draw.randint(0, 3), draw.randint(low, low + 40), draw.choice([high, 1000, 10**6])]))
        if kind == "number":
            low, high = schema.get("minimum", schema.get("exclusiveMinimum", -1e300)), schema.get("maximum", schema.get("exclusiveMaximum"))
            wide = [low, 1e-300, 1e-30, 10 ** draw.uniform(-6, 2), draw.random(), 1.0, 1e30 if high is None else high,
                    1e300 if high is None else high]
            value = draw.choice(wide)
            return value if low < value and (high is None or value < high) else draw.random() * (1.0 if high is None else high) + 1e-9
        if kind == "array":
            return [self.value(draw, key, schema["items"]) for _ in range(draw.randint(schema.get("minItems", 0), 3))]
        return {"boolean": draw.random() < 0.5, "null": None, "string": draw.choice(TEXTS)}[kind]


def make_data(folder: Path) -> None:
    """CLASSES classes as an npz file, and as folders of images, one of which is no image."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 255, (24, 16, 16, 3), dtype=np.uint8), np.arange(24) % CLASSES
    np.savez(folder / "tiny.npz", x_train=images, y_train=labels, x_test=images[:8], y_test=labels[:8])
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = folder / "images" / f"class {label}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    (folder / "images" / "class 0" / "bad.png").write_bytes(b"no image")


def run_config(folder: Path, config: dict[str, Any], whole: bool) -> Ended:
    """The dry run and, where that passes, the run itself, in one forked child of bounded memory."""
    import main
    from models.tools import timing

    file = folder / "fuzzed.json"
    file.write_text(json.dumps(config))

    def prepare() -> None:
        if not whole:
            stub_slow_parts()
            timing.estimate_time = lambda config: ""
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + MORE_MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        code = main.main(["--config", str(file), "--dry_run"])
        if code:
            sys.exit(code)

    return run_main(["--config", str(file), "--out", str(folder / "out")], folder / "output.txt", SECONDS, prepare)


def outcome(ended: Ended, out: Path) -> str:
    """"done", "refused" by the dry run, "stopped" by the run with one sentence, or what is wrong."""
    logs = "".join(log.read_text(errors="replace") for log in out.rglob("log.txt"))
    if "Traceback" in logs or "could not be made" in logs:
        return "a traceback in log.txt, or no page"
    if ended.code == 1 and " seeds failed, " in ended.output and len(ended.errors) == 1 and "Traceback" not in ended.output:
        return "stopped"
    return ended.problem() or ("done" if not ended.code else "stopped" if "training time" in ended.output or logs else "refused")


def soak(folder: Path, numbers: Iterable[int], seed: int, jobs: int = 1, minutes: float = 30, shown: bool = False) -> int:
    """Run the configs of these numbers and print how they ended; returns the number of problems.

    Args:
        shown: print each config and its output too.
    """
    drawer = Drawer(folder)

    def check(number: int) -> str:
        config = drawer.config(f"{seed} {number}")
        with tempfile.TemporaryDirectory(dir=folder) as own:
            ended = run_config(Path(own), config, whole=number % WHOLE_EVERY == 0)
            found = outcome(ended, Path(own) / "out")
        if shown:
            print(json.dumps(config, indent=2), ended.output, sep="\n")
        return found if found in FINE else f"config {number} of seed {seed}: {found}\n{json.dumps(config)}\n{ended.output[-1500:]}"

    ends = Counter(end if end in FINE else "problems" for end in in_parts(list(numbers), jobs, check, FINE, minutes))
    print(f"seed {seed}: {ends.total()} configs: {', '.join(f'{ends[end]} {end}' for end in (*FINE, 'problems'))}", flush=True)
    return ends["problems"]
