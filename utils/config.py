"""The settings that every method shares: type, range, default, unit and source. A method's own stand beside its code.

One JSON file is one experiment (one row of a results table). The keys are flat and are those of the
authors' release, so its files load unchanged; what is new has a default that gives the release's numbers.

    load_config(file)          -> Config: common keys checked, a method's own kept for it
    models.resolve_config(it)  -> the method's MethodSettings: every key checked, defaults filled in

Nobody writes into a `Config`: it is frozen, and the resolved one is saved beside the results.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import ConfigDict, Field, PrivateAttr, ValidationError, field_validator, model_validator

from utils.errors import UserError
from utils.explain import explain, hint_for
from utils.json_files import read_json
from utils.methods import check_keys, says_nothing
from utils.overrides import parse_overrides, with_overrides
from utils.protocol_settings import Blurry, FewShot, LongTail
from utils.strict import Strict

__all__ = ["Config", "DatasetSpec", "MethodSettings", "Strict", "load_config", "parse_config", "parse_overrides"]

Device = str | int
ConfigT = TypeVar("ConfigT", bound="Config")
SMALLEST, LARGEST = 1.2e-38, 3.4e38  # of float32
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]


class SplitSpec(Strict):
    """How to split one folder of images into training and test images."""

    test_fraction: float = Field(0.2, gt=0.0, lt=1.0, description="share of each class's images used for testing")
    seed: int = Field(0, ge=0, description="seed of the permutation")


class DatasetSpec(Strict):
    """A data set described in the config alone, without Python."""

    name: str = Field(min_length=1, max_length=100, description="name shown in logs and tables")
    layout: Literal["folders", "training", "lists", "npz", "domains", "synthetic"] = Field(
        "folders", description="folders: one sub-folder per class; training: the same under root, without test images; lists: text files "
        "with 'path label' lines; npz: x_train, y_train, x_test, y_test; domains: one sub-folder per domain; synthetic: images made in "
        "memory")
    root: str | None = Field(None, description="folder (or npz file) that holds the data; relative to the working folder, else to the "
        "project; ~ is the home folder")
    train: str | None = Field(None, description="training folder or list file, looked for under root, in the working folder and in the "
        "project; default '<root>/train'")
    test: str | None = Field(None, description="test folder or list file, looked for likewise; default '<root>/val' or '<root>/test'")
    split: SplitSpec | None = Field(None, description="split one folder of images instead of naming train and test")
    image_size: int | None = Field(None, ge=1, le=4096, description="pixels; default 224, or the arrays' own size for npz")
    train_transform: str | list[Any] | None = Field(
        None,
        description="default 'crop224' for files, 'none' for npz and synthetic; 'none', 'crop224' (random resized crop, "
            "flip), 'crop32' (pad 4, crop, flip), "
        "'resize300_crop224', or a list of torchvision v2 transforms, each [name, {arguments}]")
    mean: list[float] | None = Field(None, description="per channel, of pixels in [0, 1]; default ImageNet's")
    std: list[float] | None = Field(None, description="per channel, of pixels in [0, 1]; default ImageNet's")
    class_order: list[int | str] | None = Field(None, description="order in which classes are learned, by number or name; overrides "
        "shuffle and seed")
    classes: list[int | str] | None = Field(None, description="use only these classes, by number (from 0, in sorted order) or name; where "
        "all names are whole numbers, a number is a name")
    domains: list[str] | None = Field(None, description="domains in the order in which they are learned (layout 'domains')")
    num_classes: int | None = Field(None, ge=1, le=1_000_000,
        description="number of classes, for a dry run without the data; synthetic: how many to make")
    train_per_class: int = Field(20, ge=1, description="synthetic: training images per class")
    test_per_class: int = Field(10, ge=1, description="synthetic: test images per class")
    channels: Literal[1, 3] = Field(3, description="synthetic: 1 grey, 3 colour")
    num_domains: int = Field(1, ge=1, description="synthetic: how many domains to make")

    @field_validator("std")
    @classmethod
    def _std_is_positive(cls, value: list[float] | None) -> list[float] | None:
        if value is not None and any(v <= 0 for v in value):
            raise ValueError("every std must be above 0")
        return value


class AddedTask(Strict):
    """One task more, from images of new classes."""

    train: str = Field(min_length=1, description="folder with one sub-folder of images per new class, an npz file as "
        "in the layout npz, or a list file with 'path label' lines; domain scenario: all classes in a new domain")
    test: str | None = Field(None, description="folder of test images of the same classes, for a list file another one; none: no accuracy "
        "is measured on them")


class BackboneSpec(Strict):
    """A timm model by name, with its constructor's arguments and a local file of weights."""

    timm: str = Field(min_length=1,
        description="timm model or class name, e.g. 'vit_base_patch16_224.augreg_in21k' or 'VisionTransformer'")
    args: dict[str, Any] = Field(default_factory=dict,
        description="arguments of the timm model, e.g. img_size, patch_size, embed_dim, depth")
    weights: str | None = Field(None,
        description="file of weights (npz, pth, safetensors); relative to the working folder or the project")
    weights_key: str = Field("",
        description="which weights to take where several sets in the file fit, e.g. 'teacher'; the message that asks for it names them")


class Config(Strict):
    """What any experiment may set. Keys that are not here are kept, for the method to check: `model_extra` has them."""

    model_config = ConfigDict(extra="allow")
    _source: str = PrivateAttr("config")  # names the settings in messages: the file that they came from

    # What is run ---------------------------------------------------------------------------------------------
    model_name: str = Field(min_length=1, max_length=100,
        description="method (python main.py list methods); as in the release, 'slcapp...' means SLCA++ and 'slca_...' SLCA")
    model_postfix: str = Field("", description="free text, kept from the release")
    prefix: str = Field("", description="free text, kept from the release")
    notes: str = Field("", description="free text: sources, expected results")
    seed: int | list[int] = Field(1993,
        description="seed of the class order, or a list: one run per seed (paper: 1993, 1996, 1997)")
    torch_seed: int = Field(1, ge=0, le=2**63 - 1,
        description="seed of everything else: heads, batches, augmentation, sampled features (release: always 1)")
    device: Device | list[Device] = Field("auto",
        description="auto, cpu, cuda, cuda:1, a list of GPU numbers (one process each), or [\"cpu\", \"cpu\"] for "
            "two processes; -1 means cpu")
    speed: Literal["release", "fast"] = Field("release",
        description="release: float32, as the authors ran it; fast: what a GPU does best, as defaults of precision (bf16-mixed), tf32 "
        "(true), compile (true where that pays) and test_batch_size (at least 512); on a CPU of test_batch_size alone")
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = Field("32-true",
        description="arithmetic of the backbone (Lightning Fabric)")
    tf32: bool = Field(False, description="on a CUDA GPU, matrix products in TF32: faster, 10 bits of mantissa")
    compile: bool = Field(False,
        description="torch.compile of the backbone: a minute or more at the start, faster steps afterwards; needs a "
                    "C++ compiler")
    channels_last: bool = Field(False, description="images and convolutions in channels-last order; for convolutional networks")

    # Data and tasks ------------------------------------------------------------------------------------------
    dataset: str | DatasetSpec = Field(
        description="registered name (python main.py list datasets) or an object that describes the data")
    data_root: str = Field("data", description="folder of registered data sets")
    shuffle: bool = Field(True, description="permute the class order by the seed; else the data set's own order")
    init_cls: int | None = Field(None, ge=1,
        description="classes in the first task; needed unless task_sizes, tasks or scenario 'domain' say it")
    increment: int | None = Field(None, ge=0, description="classes in each later task; the last task takes the rest")
    task_sizes: list[Annotated[int, Field(ge=1)]] | None = Field(None,
        description="classes in every task; wins over init_cls and increment")
    tasks: list[list[int | str]] | None = Field(None,
        description="the classes of every task, by number or name; wins over shuffle, init_cls and increment")
    class_order: str | list[int | str] | None = Field(None, description="order in which classes are learned, by number or name: a list, "
        "or a JSON file with a list or with an object that has it as \"class_order\" (python main.py order writes one); wins over shuffle")
    few_shot: FewShot | None = Field(None, description="few training images of each class after the first task (docs/protocols.md)")
    long_tail: LongTail | None = Field(None, description="exponentially fewer training images per class (docs/protocols.md)")
    blurry: Blurry | None = Field(None, description="tasks whose classes overlap, in one pass; wins over init_cls and increment "
        "(docs/protocols.md)")
    scenario: Literal["class", "domain"] = Field("class",
        description="class: new classes in every task; domain: the same classes, one domain after another")
    domains_per_task: int | None = Field(None, ge=1,
        description="scenario domain: domains that a task mixes, the last task takes the rest; default 1")
    all_at_once: bool | None = Field(None, description="all classes (of all domains) as one task, whatever the keys above say: the upper "
        "bound; default by method: true for joint, else false")
    added: list[AddedTask] | None = Field(None,
        description="tasks after those of the data set, of new classes from images elsewhere (python main.py extend RUN --data FOLDER)")
    val_fraction: Fraction = Field(0.0,
        description="share of each class's training images held out as the split 'val', to tune on")
    num_workers: Literal["auto"] | Annotated[int, Field(ge=0, le=256)] = Field("auto",
        description="processes that load images, 0 to 256, or auto: 0 for images in memory")
    normalize: Literal["dataset", "backbone", "unit"] = Field("dataset",
        description="whose mean and std the images are normalised with (release: the data set's); unit: pixels stay in [0, 1]")
    test_transform: Literal["none", "resize224", "resize224_bilinear", "resize256_crop224", "resize256_crop224_bilinear"] | None = Field(
        None, description="how images are brought to size for testing and for statistics; sizes are for images of 224 pixels; default "
        "the data set's own")
    cache: Literal["auto", "ram", "disk", "none"] = Field("auto",
        description="keep decoded images: in memory, in a file under data_root/cache, or not; auto by free memory")
    feature_cache: Literal["none", "disk"] = Field("none",
        description="disk: features of a frozen backbone are kept under data_root/cache/features, for further seeds and runs on the same "
        "images, and without augmentation stage 1 reads them instead of the images (docs/scale.md); times then tell less")
    feature_cache_gb: float = Field(10.0, gt=0.0, le=1e6, description="GiB that all kept features may take; the longest unused go first")
    augment_on: Literal["auto", "cpu", "device"] = Field("auto",
        description="where crop, flip and normalisation run: on the processor or on the device of the network, which then gets images "
        "as bytes; auto: on the device")
    bad_images: Literal["error", "skip"] = Field("error",
        description="unreadable images: stop at the first, or check all at the start and leave them out with a "
                    "warning")

    # Backbone ------------------------------------------------------------------------------------------------
    convnet_type: str | BackboneSpec = Field(
        description="registered name (python main.py list backbones), 'timm/<name>' or an object")
    pretrained: bool = Field(True, description="load weights; false starts from random ones, with a warning")
    reset_norm: bool | None = Field(None,
        description="start a new final LayerNorm, eps 1e-5; default: true for vit-b-p16*, as in the release, else "
                    "false")
    pool: Literal["token", "avg"] | None = Field(None,
        description="feature: class token or mean of the patch tokens; default the timm model's own")
    layer_decay: float | None = Field(None, gt=0.0, le=1.0,
            description="learning rate of a layer = the backbone's x layer_decay^(blocks above it), the final norm "
                        "counted with the last block; MAE weights need about 0.65 to 0.75; default off")
    freeze_blocks: int = Field(0, ge=0, description="freeze the embedding and the first so many blocks")
    drop_path: float = Field(0.0, ge=0.0, lt=1.0, description="rate of stochastic depth while training")
    grad_checkpointing: bool = Field(False, description="compute activations again in the backward pass: less memory, more time")

    # Stage 1: Slow Learner -----------------------------------------------------------------------------------
    epochs: int = Field(ge=0, le=100_000, description="passes over a task's images")
    batch_size: int = Field(128, ge=1, description="images per step, over all devices together")
    test_batch_size: int | None = Field(None, ge=1, description="images per step without gradient; default batch_size")
    accumulate: int = Field(1, ge=1, le=100_000,
        description="parts in which a batch is computed one after another: the same step in less memory")
    lr: float = Field(0.01, gt=0.0, le=100.0, description="learning rate of the heads (SLCA section 4.1)")
    bcb_lrscale: float | None = Field(None, ge=0.0, le=100.0, description="backbone's learning rate as a multiple of lr; 0 freezes it; "
        "default by method: slca 0.01, finetune and joint 1")
    momentum: float = Field(0.9, ge=0.0, lt=1.0, description="of SGD")
    weight_decay: float = Field(5e-4, ge=0.0, le=10.0, description="of SGD, in both stages")
    milestones: list[Annotated[int, Field(ge=0)]] = Field(default_factory=list,
        description="epochs after which the learning rate falls")
    lrate_decay: float = Field(0.1, gt=0.0, le=1.0, description="factor of the learning rate at each milestone")

    # Run -----------------------------------------------------------------------------------------------------
    keep_checkpoints: Literal["last", "all", "none"] = Field("last",
        description="which tasks' checkpoints stay on disk (last: the newest two)")
    checkpoint_minutes: float = Field(5.0, ge=0.0, le=100_000.0,
        description="minutes between checkpoints inside a task, written after an epoch; the newest one stays on disk")
    checkpoint_every: int | None = Field(None, ge=1, description="epochs between checkpoints inside a task, instead of minutes")
    resume: Literal["never", "auto"] = Field("never",
        description="auto: as --resume, continue the newest unfinished run, if there is one")
    analyze: bool = Field(False, description="at the end also say why the run forgets, as python main.py analyze does (docs/analysis.md)")
    tensorboard: bool = Field(False,
        description="write event files for tensorboard into each seed's folder; needs the package (docs/trackers.md)")
    wandb: Literal["offline", "online"] | None = Field(None,
        description="write to Weights & Biases: offline into the run's folder, online to its server; needs the package (docs/trackers.md)")
    deterministic: bool = Field(False,
        description="deterministic kernels alone, slower on a GPU; the CPU repeats bit for bit without it, given the "
        "same number of threads")

    @field_validator("*")
    @classmethod
    def _numbers_fit_float32(cls, value: Any) -> Any:
        if isinstance(value, float) and value and not SMALLEST <= abs(value) <= LARGEST:
            raise ValueError(f"0, or {SMALLEST} to {LARGEST} in size, which tensors of float32 can hold")
        return value

    @model_validator(mode="before")
    @classmethod
    def _release_spelling(cls, values: Any) -> Any:
        """The release writes -1 (or ["-1"]) for the CPU."""
        if isinstance(values, dict) and "device" in values:
            device = values["device"]
            devices = device if isinstance(device, list) else [device]
            if [str(d) for d in devices] == ["-1"]:
                values = {**values, "device": "cpu"}
        return values

    @field_validator("seed")
    @classmethod
    def _seeds_fit_numpy(cls, value: int | list[int]) -> int | list[int]:
        seeds = value if isinstance(value, list) else [value]
        if not seeds:
            raise ValueError("needs at least one seed")
        if len(set(seeds)) != len(seeds):
            raise ValueError("each seed may appear once")
        if any(not 0 <= s < 2**32 for s in seeds):
            raise ValueError("every seed must be between 0 and 4294967295")
        return value

    @property
    def seeds(self) -> list[int]:
        return self.seed if isinstance(self.seed, list) else [self.seed]

    @property
    def dataset_name(self) -> str:
        return self.dataset if isinstance(self.dataset, str) else self.dataset.name

    @property
    def source(self) -> str:
        """The file (or other place) that the settings came from."""
        return self._source


class MethodSettings(Config):
    """The common settings and a method's own; a learner's `Settings` is a subclass. No other key is taken."""

    model_config = ConfigDict(extra="forbid")


def load_config(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Config:
    """Read one experiment from a JSON file; the method's own keys are checked by `models.resolve_config`.

    Args:
        path: JSON file with one object of settings.
        overrides: settings that win over the file's (`--set key=value`); "dataset.image_size" is a key inside "dataset".

    Raises:
        UserError: the file is missing or malformed, a key is unknown or another method's, or a common setting is missing, of a
            wrong type or out of range.
    """
    return parse_config(with_overrides(read_json(Path(path)), overrides or {}), source=str(path))


def parse_config(values: Mapping[str, Any], source: str = "config", kind: type[ConfigT] = Config) -> ConfigT:  # type: ignore[assignment]
    """Check settings that are already in memory.

    Args:
        source: names them in messages.
        kind: `Config`, which checks the common keys, or a method's settings, which checks them all.

    Raises:
        UserError: a setting is missing, of a wrong type or out of range; with a method's settings also an unknown key.
    """
    values = {key: value for key, value in values.items() if key != "$schema" and not says_nothing(values.get("model_name"), key, value)}
    try:
        config = kind.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{source}: {explain(error, kind)}") from None
    except RecursionError:
        raise UserError(f"{source}: nested too deeply; settings are flat, at most an object inside a key") from None
    config._source = source
    if kind is Config:
        check_keys(config.model_name, values, Config.model_fields, source, lambda key: hint_for(key, Config))
    return config


