"""Every setting of an experiment: type, range, default, unit and source, in one place.

One JSON file is one experiment (one row of a results table). The keys are flat and are those of the
authors' release, so its files load unchanged; what is new has a default that gives the release's numbers.
Nobody writes into a `Config`: it is frozen, and the resolved one is saved beside the results.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from utils.errors import UserError

Device = str | int
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True, protected_namespaces=())


class SplitSpec(_Strict):
    """How to split one folder of images into training and test images."""

    test_fraction: float = Field(0.2, gt=0.0, lt=1.0, description="share of each class's images used for testing")
    seed: int = Field(0, ge=0, description="seed of the permutation")


class DatasetSpec(_Strict):
    """A data set described in the config alone, without Python."""

    name: str = Field(min_length=1, max_length=100, description="name shown in logs and tables")
    layout: Literal["folders", "lists", "npz", "domains", "synthetic"] = Field(
        "folders", description="folders: one sub-folder per class; lists: text files with 'path label' lines; npz: "
        "x_train, y_train, x_test, y_test; domains: one sub-folder per domain; synthetic: images made in memory")
    root: str | None = Field(None, description="folder (or npz file) that holds the data; relative to the working folder")
    train: str | None = Field(None, description="training folder or list file; default '<root>/train'")
    test: str | None = Field(None, description="test folder or list file; default '<root>/val' or '<root>/test'")
    split: SplitSpec | None = Field(None, description="split one folder of images instead of naming train and test")
    image_size: int | None = Field(None, ge=1, le=4096, description="pixels; default 224, or the arrays' own size for npz")
    train_transform: str | list[Any] | None = Field(
        None,
        description="default 'crop224' for files, 'none' for npz and synthetic; 'none', 'crop224' (random resized crop, "
            "flip), 'crop32' (pad 4, crop, flip), "
        "'resize300_crop224', or a list of torchvision v2 transforms, each [name, {arguments}]")
    mean: list[float] | None = Field(None, description="per channel, of pixels in [0, 1]; default ImageNet's")
    std: list[float] | None = Field(None, description="per channel, of pixels in [0, 1]; default ImageNet's")
    class_order: list[int] | None = Field(None, description="order in which classes are learned; overrides shuffle and seed")
    classes: list[int | str] | None = Field(None, description="use only these classes (numbers or folder names)")
    domains: list[str] | None = Field(None, description="domains in the order in which they are learned (layout 'domains')")
    num_classes: int | None = Field(None, ge=1,
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


class BackboneSpec(_Strict):
    """A timm model by name, with its constructor's arguments and a local file of weights."""

    timm: str = Field(min_length=1,
        description="timm model or class name, e.g. 'vit_base_patch16_224.augreg_in21k' or 'VisionTransformer'")
    args: dict[str, Any] = Field(default_factory=dict,
        description="arguments of the timm model, e.g. img_size, patch_size, embed_dim, depth")
    weights: str | None = Field(None,
        description="file of weights (npz, pth, safetensors); relative to the working folder or the project")
    weights_key: str = Field("",
        description="which weights to take where several sets in the file fit, e.g. 'teacher'; the message that asks for it names them")


class Config(_Strict):
    """All settings of one experiment. `load_config` reads it from JSON."""

    # What is run ---------------------------------------------------------------------------------------------
    model_name: str = Field(min_length=1, max_length=100,
        description="learner; resolved exactly, then as the release: 'slcapp...' is SLCA++, 'slca...' is SLCA")
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
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = Field("32-true",
        description="arithmetic of the backbone (Lightning Fabric)")
    tf32: bool = Field(False, description="on a CUDA GPU, matrix products in TF32: faster, 10 bits of mantissa")
    compile: bool = Field(False,
        description="torch.compile of the backbone: a minute or more at the start, faster steps afterwards; needs a "
                    "C++ compiler")
    channels_last: bool = Field(False, description="images and convolutions in channels-last order; for convolutional networks")
    compat: Literal["none", "release"] = Field("none",
        description="'release' reproduces its arithmetic where it is wrong (task of a class = class // last task's "
                    "size)")

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
    scenario: Literal["class", "domain"] = Field("class",
        description="class: new classes in every task; domain: the same classes, one domain after another")
    all_at_once: bool | None = Field(None, description="all classes (of all domains) as one task, whatever the keys above say: the upper "
        "bound; default by method: true for joint, else false")
    val_fraction: Fraction = Field(0.0,
        description="share of each class's training images held out as the split 'val', to tune on")
    num_workers: Literal["auto"] | Annotated[int, Field(ge=0, le=256)] = Field("auto",
        description="processes that load images, 0 to 256, or auto: 0 for images in memory")
    normalize: Literal["dataset", "backbone"] = Field("dataset",
        description="whose mean and std the images are normalised with (release: the data set's)")
    cache: Literal["auto", "ram", "disk", "none"] = Field("auto",
        description="keep decoded images: in memory, in a file under data_root/cache, or not; auto by free memory")
    augment_on: Literal["cpu", "device"] = Field("cpu",
        description="where crop, flip and normalisation run; device: on the accelerator")
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

    # Stage 2: Classifier Alignment ---------------------------------------------------------------------------
    ca_epochs: int = Field(5, ge=0, le=100_000, description="epochs of alignment; 0 switches it off")
    ca_lr: float | None = Field(None, gt=0.0, le=100.0, description="learning rate of alignment; default lr")
    ca_samples: int = Field(256, ge=1, description="features drawn per class and epoch")
    ca_batch_size: int = Field(256, ge=1, description="features per step")
    ca_mean_decay: float = Field(0.1, ge=0.0, le=1.0,
        description="how much the oldest means shrink: m_c = (1 - d + d (t_c + 1)/(T + 1)) mu_c")
    ca_with_logit_norm: float | None = Field(None,
        description="temperature tau of logit normalisation (0.1; Cars-196 0.05); missing or <= 0: off")
    ca_ridge: float = Field(1e-4, gt=0.0, description="added to the diagonal of each class's covariance")
    ca_cov: Literal["full", "lowrank", "diag", "shared"] = Field("full",
        description="covariance of a class: full (exact), lowrank (ca_rank directions, the rest "
        "as noise), diag (one variance per dimension) or shared (one of all classes); docs/scale.md has their cost in accuracy")
    ca_rank: int | None = Field(None, ge=1, le=100_000,
        description="leading directions kept of each class's covariance; default all, with ca_cov lowrank 64")
    ca_memory_gb: float = Field(4.0, gt=0.0, le=100_000.0,
        description="GiB that one epoch's drawn features may take; beyond it they are drawn in rounds of "
        "fewer per class (4 holds 5,461 classes of 256 x 768)")
    stats_dtype: Literal["float32", "float16"] = Field("float32",
        description="in which the covariances' factors are stored; float16 halves them")
    ca_eval: bool = Field(False, description="also report the test accuracy after every epoch of alignment")
    save_before_ca: bool = Field(False,
        description="also write the network before each alignment, <run>/seed<N>/..._before_ca_<task>")

    # Beyond the papers (docs/beyond.md) ----------------------------------------------------------------------
    readout: Literal["ca", "rgda", "lda", "qda", "ncm"] = Field("ca",
        description="classifier of methods that keep Gaussians: ca, the aligned "
        "heads (the papers); rgda, lda, qda, closed-form discriminants of the Gaussians; ncm, the nearest class mean")
    rgda_a: float = Field(0.75, ge=0.0, le=1.0,
        description="rgda: share of the covariance that all classes have in common; 0 is qda, 1 is lda")
    rgda_g: float = Field(1e-3, ge=0.0, le=1.0,
        description="rgda, lda, qda: share of the identity in the covariance; 0.01 to 0.1 with far fewer images than "
                    "dimensions")
    features: Literal["cls", "cls+mean"] = Field("cls",
        description="what statistics and read-out see: the backbone's feature, or beside it the "
        "mean of the patch tokens (needs a readout other than ca)")
    drift: Literal["none", "linear"] = Field("none",
        description="linear: old statistics follow the backbone by a linear map fitted on the new images")
    drift_anchors: bool = Field(True,
        description="fit the map on four altered copies of each image too (mirrored, turned twice, shuffled)")
    drift_rho: float | None = Field(None, ge=0.0,
        description="ridge of the map, as a share of the features' mean square; default 0.01 with anchors, 0.1 "
                    "without")
    kd: float = Field(0.0, ge=0.0,
        description="weight of the mean squared distance to the features of the backbone before the task, in stage 1")
    ca_start: Literal["local", "aligned"] = Field("local",
        description="heads that alignment starts from: as stage 1 left them (the papers), or as "
        "the alignment before left them")

    # SLCA++ --------------------------------------------------------------------------------------------------
    lora_rank: int = Field(4, ge=1, description="rank of the LoRA factors")
    lora_scale: float = Field(0.8, gt=0.0, description="W + lora_scale B A")
    lora_targets: list[Literal["qkv", "fc1", "fc2"]] = Field(default_factory=lambda: ["qkv"], min_length=1,
        description="layers with LoRA: ['qkv'] is what the release trains; the paper describes qkv, fc1, fc2")
    lora_lrscale_first: float = Field(0.5, ge=0.0,
        description="LoRA's learning rate in the first task as a multiple of lr; later bcb_lrscale")
    sce_a: float = Field(1.0, ge=0.0, description="weight of the cross-entropy")
    sce_b: float = Field(0.1, ge=0.0, description="weight of the reverse cross-entropy")
    fc_scale_mu: float = Field(0.02, ge=0.0, description="feature scaling per task of age")

    # Statistics of frozen features ---------------------------------------------------------------------------
    lda_shrinkage: float = Field(1e-4, gt=0.0, le=1.0, description="lda: e of (1 - e) S + e I (Deep SLDA, section 3)")
    fecam_gamma1: float = Field(1.0, ge=0.0,
        description="fecam: shrinkage of the diagonal, g1 of S + g1 V1 I + g2 V2 (1 - I) (its CIFAR-100 with ViT: 1; "
                    "ImageNet-R: 10)")
    fecam_gamma2: float = Field(0.0, ge=0.0,
        description="fecam: shrinkage off the diagonal, g2 (its CIFAR-100 with ViT: 0; ImageNet-R: 10)")
    ranpac_dim: int = Field(10_000, ge=1, le=100_000,
        description="ranpac: width M of the random projection (paper: 10000); keeps M x M numbers")

    # Prompts -------------------------------------------------------------------------------------------------
    prompt_pool: int | None = Field(None, ge=1, le=10_000,
        description="l2p: prompts in the pool (default 10); coda_prompt: components (100)")
    prompt_length: int | None = Field(None, ge=1, le=1000, description="l2p: tokens of a prompt (10); dualprompt: keys, and values, of an "
        "E-prompt (5; its ImageNet-R: 20); coda_prompt: keys and values of a prompt together (8)")
    prompt_top_k: int | None = Field(None, ge=1, description="l2p: prompts that an image takes (4)")
    prompt_layers: list[Annotated[int, Field(ge=0)]] | None = Field(None, min_length=1,
        description="blocks with prompts, counted from 0; dualprompt's E-prompts [2, 3, 4], coda_prompt [0, 1, 2, 3, 4]")
    g_prompt_length: int | None = Field(None, ge=1, le=1000, description="dualprompt: keys, and values, of a G-prompt (5)")
    g_prompt_layers: list[Annotated[int, Field(ge=0)]] | None = Field(None,
        description="dualprompt: blocks with G-prompts, from 0 ([0, 1])")
    prompt_loss_weight: float | None = Field(None, ge=0.0, description="weight of the loss on keys (l2p and dualprompt 1) or of "
        "orthogonality (coda_prompt 1e-7)")

    # Rehearsal -----------------------------------------------------------------------------------------------
    memory_size: int = Field(0, ge=0, description="stored images over all classes (rehearsal methods only)")
    memory_per_class: int = Field(0, ge=0, description="stored images per class, with fixed_memory")
    fixed_memory: bool = Field(False, description="memory_per_class for every class instead of sharing memory_size")
    derpp_alpha: float = Field(0.2, ge=0.0,
        description="DER++: weight of the stored logits (Buzzega et al. 2020, CIFAR-10, 500 images)")
    derpp_beta: float = Field(0.5, ge=0.0, description="DER++: weight of the stored labels (same source)")
    bic_val_fraction: float = Field(0.1, gt=0.0, le=0.5,
        description="BiC: share of the stored images kept for bias correction (Wu et al. 2019)")
    gem_margin: float = Field(0.5, ge=0.0,
        description="GEM: gamma, least weight of each old task's gradient (Lopez-Paz and Ranzato 2017)")
    gem_images: int = Field(256, ge=1,
        description="GEM: stored images per old task and step (paper: 256 memories per task, all of them)")
    coil_sinkhorn: float = Field(0.464, gt=0.0, description="COIL: entropic regularisation of optimal transport (PyCIL)")
    coil_weight: float = Field(1e-3, ge=0.0, description="COIL: weight of both transport losses (PyCIL)")

    # Regularisation ------------------------------------------------------------------------------------------
    distill_temperature: float = Field(2.0, gt=0.0,
        description="LwF, BiC, COIL: temperature of distillation (2 in each paper or its code)")
    lwf_lambda: float = Field(1.0, ge=0.0, description="LwF: weight of distillation (Li and Hoiem 2016; PyCIL: 3)")
    ewc_lambda: float = Field(1000.0, ge=0.0, description="EWC: weight of the penalty (PyCIL; the paper tunes it per problem)")
    ewc_images: int = Field(200, ge=1, description="EWC: images per task that the Fisher information is estimated on")
    ewc_fisher_max: float = Field(1e-4, gt=0.0, description="EWC: Fisher values are cut here, which keeps SGD stable (PyCIL)")

    # Run -----------------------------------------------------------------------------------------------------
    keep_checkpoints: Literal["last", "all", "none"] = Field("last",
        description="which tasks' checkpoints stay on disk (last: the newest two)")
    checkpoint_every: int = Field(1, ge=1, description="epochs between checkpoints inside a task; the newest one stays on disk")
    resume: Literal["never", "auto"] = Field("never",
        description="auto: as --resume, continue the newest unfinished run, if there is one")
    deterministic: bool = Field(False,
        description="deterministic kernels alone, slower on a GPU; the CPU repeats bit for bit without it, given the "
        "same number of threads")

    @model_validator(mode="before")
    @classmethod
    def _release_spelling(cls, values: Any) -> Any:
        """The release writes null for a key that is off, and -1 (or ["-1"]) for the CPU."""
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

    @field_validator("ca_rank")
    @classmethod
    def _rank_needs_a_factor(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and info.data.get("ca_cov") in ("diag", "shared"):
            raise ValueError(f"null with ca_cov {info.data['ca_cov']!r}; a rank belongs to full or lowrank")
        return value

    @field_validator("features")
    @classmethod
    def _heads_read_the_class_token(cls, value: str, info: ValidationInfo) -> str:
        if value == "cls+mean" and info.data.get("readout") == "ca":
            raise ValueError("'cls' while readout is 'ca' (alignment trains the heads, which read the class token alone), "
                             "or set readout to rgda, lda, qda or ncm")
        return value

    @property
    def seeds(self) -> list[int]:
        return self.seed if isinstance(self.seed, list) else [self.seed]

    @property
    def dataset_name(self) -> str:
        return self.dataset if isinstance(self.dataset, str) else self.dataset.name


def load_config(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Config:
    """Read one experiment from a JSON file.

    Args:
        path: JSON file with one object of settings.
        overrides: settings that win over the file's (`--set key=value`).

    Raises:
        UserError: the file is missing or malformed, or a setting is unknown, of a wrong type or out of range.
    """
    values = _read_json(Path(path))
    return parse_config({**values, **(overrides or {})}, source=str(path))


def parse_config(values: Mapping[str, Any], source: str = "config") -> Config:
    """Validate settings that are already in memory; `source` names them in messages. Raises UserError."""
    values = {key: value for key, value in values.items() if key != "$schema"}
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        problems = [_explain(details) for details in _most_telling(error)]
        raise UserError(f"{source}: " + "; ".join(problems[:5])) from None
    except RecursionError:
        raise UserError(f"{source}: nested too deeply; settings are flat, at most an object inside a key") from None


def parse_overrides(assignments: Sequence[str]) -> dict[str, Any]:
    """`["epochs=1", "seed=[1,2]"]` -> `{"epochs": 1, "seed": [1, 2]}`; what is not JSON is taken as text.

    Raises:
        UserError: an assignment has no "=".
    """
    overrides: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key.strip():
            raise UserError(f"--set {assignment}: expected key=value, e.g. --set epochs=1")
        try:
            overrides[key.strip()] = json.loads(text, parse_constant=_refuse_constant)
        except (ValueError, RecursionError):
            overrides[key.strip()] = text
    return overrides


def json_schema() -> dict[str, Any]:
    """JSON Schema of a config file, for editors; exported to exps/schema.json."""
    schema = Config.model_json_schema()
    schema["properties"]["$schema"] = {"type": "string", "description": "path of this schema, for editors"}
    return schema


def _read_json(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.json")], n=1)
        hint = f"; did you mean {path.parent / near[0]}?" if near else ""
        raise UserError(f"config file {path} does not exist{hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"config file {path} cannot be read: {error}") from None
    try:
        values = json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not valid JSON at line {error.lineno}, column {error.colno}: {error.msg}") from None
    except RecursionError:
        raise UserError(f"{path}: nested too deeply; settings are flat, at most an object inside a key") from None
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected one JSON object of settings, got {type(values).__name__}")
    return values


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    twice = sorted({key for key in keys if keys.count(key) > 1})
    if twice:
        raise ValueError(f"key {twice[0]!r} appears twice; keep one")
    return dict(pairs)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number that a setting can have; write a finite one")


def _most_telling(error: ValidationError) -> list[dict[str, Any]]:
    """One finding per key: of a union's branches, those that fit what the user wrote best."""
    best: dict[Any, tuple[tuple[bool, bool], dict[str, Any]]] = {}
    for details in error.errors(include_url=False):
        key = details["loc"][0] if details["loc"] else ""
        # The object branch of a union speaks of the user's own sub-keys; it is the one to explain.
        inside_object = any(str(part).endswith("Spec") for part in details["loc"])
        wrong_shape = details["type"] in ("model_type", "model_attributes_type")
        score = (inside_object and not wrong_shape, not details["type"].endswith("_type"))
        if key not in best or score > best[key][0]:
            best[key] = (score, dict(details))
        elif score == best[key][0] and details["loc"][:1] == best[key][1]["loc"][:1] and _is_union_branch(details["loc"][-1]):
            best[key][1]["msg"] += " or " + _allowed(details["msg"])
    return [details for _, details in best.values()]


def _explain(details: dict[str, Any]) -> str:
    """One sentence for one of pydantic's findings: key, got, allowed, nearest valid key."""
    path = [str(part) for part in details["loc"]]
    spec = next((part for part in path if part.endswith("Spec")), None)
    fields = {"DatasetSpec": DatasetSpec, "BackboneSpec": BackboneSpec, "SplitSpec": SplitSpec}.get(spec or "", Config).model_fields
    key = ".".join(part for part in path if not _is_union_branch(part)) or "config"
    if details["type"] == "extra_forbidden":
        near = difflib.get_close_matches(path[-1], list(fields), n=1, cutoff=0.6)
        hint = f"did you mean {near[0]!r}?" if near else "see exps/schema.json for all keys"
        return f"unknown key {_short(key)}; {hint}"
    if details["type"] == "missing":
        field = fields.get(path[-1])
        return f"key {key!r} is missing ({field.description})" if field else f"key {key!r} is missing"
    field = fields.get(path[-1]) or (Config.model_fields.get(path[0]) if path else None)
    allowed = _allowed(details["msg"])
    meaning = f" ({field.description})" if field and field.description else ""
    return f"key {_short(key)}: got {_short(details['input'])}, allowed: {allowed}{meaning}"


def _allowed(message: str) -> str:
    return message.removeprefix("Value error, ").removeprefix("Input should be ")


def _is_union_branch(part: Any) -> bool:
    """Pydantic names the branch of a union inside the path of a finding; users know only their keys."""
    part = str(part)
    return part.endswith("Spec") or part in ("str", "int", "float", "bool") or "[" in part


def _short(value: Any, limit: int = 80) -> str:
    try:
        text = repr(value)
    except RecursionError:
        return "a deeply nested value"
    return text if len(text) <= limit else text[: limit - 3] + "..."
