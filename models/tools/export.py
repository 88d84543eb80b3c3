"""One file that classifies: normalisation, backbone (LoRA merged) and aligned heads as a torch.export program or ONNX.

Input: pixels (N, C, S, S) float32 in [0, 1], resized and cropped already. Output: scores (N, K) of the classes seen and, of methods that
keep Gaussians, how far each image is from all of them (N,). Both on the CPU, wherever the learner is. The file also carries `facts`: class
names, how an image is resized and cropped, and from which distance on it is of no known class. docs/deploy.md uses it without this project.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from convs.lora import merge_lora
from models.base import BaseLearner, KnownRegion
from models.tools.predict import TrainedLearner, load_learner
from utils.errors import UserError, first_line
from utils.extras import extra
from utils.files import write_atomic
from utils.rng import torch_generator

TOLERANCE = 1e-4  # largest difference from the run's scores, relative to the largest score where that is above 1
SAMPLES = 3
KNOWN_SHARE = 0.95  # of the known classes' images that the exported threshold keeps


class Classifier(nn.Module):
    """A trained learner as one module."""

    def __init__(self, trained: TrainedLearner) -> None:
        super().__init__()
        self.net = merge_lora(trained.learner.net)
        self.register_buffer("mean", torch.tensor(trained.format.mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(trained.format.std).view(1, -1, 1, 1))
        self._learner = copy.copy(trained.learner)  # same statistics, merged network
        self._learner.net = self.net
        self.region = self._learner.known_region()

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        return outputs(self._learner, self.region, (pixels - self.mean) / self.std)


def outputs(learner: BaseLearner, region: KnownRegion | None, images: Tensor) -> tuple[Tensor, ...]:
    """Normalised images (N, C, S, S) -> scores (N, K) and, with a region, distances from it (N,) float32."""
    features = learner.features(images)
    scores = learner.fold_domains(learner.scores(features))
    return (scores,) if region is None else (scores, region.distances(features).float())


def export_run(arguments: argparse.Namespace) -> None:
    """Export, compare with the run's own scores, write. Raises UserError."""
    trained = load_learner(arguments.run, seed=arguments.seed, after_task=arguments.after_task, device="cpu")
    difference = export(trained, arguments.file)
    print(f"{arguments.file}: input (N, {trained.format.channels}, {trained.format.image_size}, {trained.format.image_size}) float32 "
          f"pixels in [0, 1], output scores; largest difference from the run's {difference:.1e}")


def export(trained: TrainedLearner, file: Path) -> float:
    """Write the model to `file`; returns the largest difference of its outputs from the run's on random pixels.

    Raises:
        UserError: the suffix is unknown, the method cannot be exported, or the exported scores differ by more than 1e-4.
    """
    if file.suffix not in (".pt2", ".onnx"):
        raise UserError(f"export: got the file {file}, allowed: a name that ends in .pt2 (torch.export) or .onnx")
    trained, form = trained.on_cpu(), trained.format
    pixels = torch.rand(SAMPLES, form.channels, form.image_size, form.image_size, generator=torch_generator("export"))
    module = Classifier(trained).eval()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns about its own internals
        expected = outputs(trained.learner, module.region, (pixels - module.mean) / module.std)
        carried = json.dumps(facts(trained), ensure_ascii=False)
        try:
            program = torch.export.export(module, (pixels,), dynamic_shapes=({0: torch.export.Dim("images", min=1)},))
            data, found = (_onnx if file.suffix == ".onnx" else _pt2)(program, pixels, carried)
        except UserError:
            raise
        except Exception as error:  # the exporter's own errors are many; all mean the same to the user
            raise UserError(f"export: torch cannot export {trained.learner.title}: {first_line(error)[:200]}") from error
    difference = max((a - b).abs().max().item() / max(1.0, b.abs().max().item()) for a, b in zip(found, expected, strict=True))
    if not difference <= TOLERANCE:
        raise UserError(f"export: the exported scores differ from the run's by {difference:.1e}, allowed: {TOLERANCE:g}; nothing "
                        "was written")
    write_atomic(file, data)
    return difference


def facts(trained: TrainedLearner) -> dict[str, Any]:
    """What the file says about itself: everything between an image file and a class's name that is not inside the program."""
    learner, form = trained.learner, trained.format
    recipe = form.transform().recipe
    region, unknown = learner.known_region(), None
    if region is not None:
        unknown = {"known_share": KNOWN_SHARE, "threshold": region.threshold(KNOWN_SHARE, learner.config.torch_seed)}
    return {"classes": trained.class_names, "image_size": form.image_size, "channels": form.channels,
            "resize": form.image_size if recipe.resize == "none" else round(recipe.resize_to * form.image_size / 224),
            "keep_aspect": recipe.resize == "shorter", "crop": "center" if recipe.crop == "center" else "none",
            "interpolation": recipe.interpolation, "normalisation": {"mean": form.mean, "std": form.std, "inside": True},
            "outputs": ["scores"] if region is None else ["scores", "distance"], "temperature": learner.temperature, "unknown": unknown}


def _pt2(program: torch.export.ExportedProgram, pixels: Tensor, carried: str) -> tuple[bytes, list[Tensor]]:
    """The program's bytes, and its outputs for other numbers of images than it was traced with."""
    stream = io.BytesIO()
    torch.export.save(program, stream, extra_files={"slca.json": carried})
    loaded = torch.export.load(io.BytesIO(stream.getvalue())).module()
    return stream.getvalue(), [torch.cat(parts) for parts in zip(loaded(pixels[:1]), loaded(pixels[1:]), strict=True)]


def _onnx(program: torch.export.ExportedProgram, pixels: Tensor, carried: str) -> tuple[bytes, list[Tensor]]:
    for package in ("onnx", "onnxscript"):  # torch's exporter needs the second
        extra(package, "onnx", "exporting to ONNX (a .pt2 file needs nothing more)")
    import onnx
    from onnx.reference import ReferenceEvaluator

    names = json.loads(carried)["outputs"]
    model = torch.onnx.export(program, (pixels,), dynamo=True, input_names=["pixels"], output_names=names, verbose=False).model_proto
    onnx.helper.set_model_props(model, {"slca": carried})
    found = ReferenceEvaluator(model).run(None, {model.graph.input[0].name: pixels.numpy()})
    return onnx.ModelProto.SerializeToString(model), [torch.from_numpy(output.copy()) for output in found]
