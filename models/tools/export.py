"""One file that classifies: normalisation, backbone (LoRA merged) and aligned heads as a torch.export program or ONNX.

Input: pixels (N, C, S, S) float32 in [0, 1], resized and cropped already. Output: scores (N, K) of the classes seen. Both on the CPU,
wherever the learner is.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from convs.lora import merge_lora
from models.tools.predict import TrainedLearner, load_learner
from utils.errors import UserError
from utils.files import write_atomic
from utils.rng import torch_generator

TOLERANCE = 1e-4  # largest difference from the run's scores, relative to the largest score where that is above 1
SAMPLES = 3


class Classifier(nn.Module):
    """A trained learner as one module."""

    def __init__(self, trained: TrainedLearner) -> None:
        super().__init__()
        self.net = merge_lora(trained.learner.net)
        self.register_buffer("mean", torch.tensor(trained.format.mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(trained.format.std).view(1, -1, 1, 1))
        self._learner = copy.copy(trained.learner)  # same statistics, merged network
        self._learner.net = self.net

    def forward(self, pixels: Tensor) -> Tensor:
        learner = self._learner
        return learner.fold_domains(learner.scores(learner.features((pixels - self.mean) / self.std)))


def export_run(arguments: argparse.Namespace) -> None:
    """Export, compare with the run's own scores, write. Raises UserError."""
    trained = load_learner(arguments.run, seed=arguments.seed, after_task=arguments.after_task, device="cpu")
    difference = export(trained, arguments.file)
    print(f"{arguments.file}: input (N, {trained.format.channels}, {trained.format.image_size}, {trained.format.image_size}) float32 "
          f"pixels in [0, 1], output scores; largest difference from the run's {difference:.1e}")


def export(trained: TrainedLearner, file: Path) -> float:
    """Write the model to `file`; returns the largest difference of its scores from the run's on random pixels.

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
        mean, std = module.mean, module.std
        learner = trained.learner
        expected = learner.fold_domains(learner.scores(learner.features((pixels - mean) / std)))
        try:
            program = torch.export.export(module, (pixels,), dynamic_shapes=({0: torch.export.Dim("images", min=1)},))
            data, scores = _onnx(program, pixels) if file.suffix == ".onnx" else _pt2(program, pixels, _facts(trained))
        except UserError:
            raise
        except Exception as error:  # the exporter's own errors are many; all mean the same to the user
            raise UserError(f"export: torch cannot export {learner.title}: {str(error).splitlines()[0][:200]}") from error
    difference = (scores - expected).abs().max().item() / max(1.0, expected.abs().max().item())
    if not difference <= TOLERANCE:
        raise UserError(f"export: the exported scores differ from the run's by {difference:.1e}, allowed: {TOLERANCE:g}; nothing "
                        "was written")
    write_atomic(file, data)
    return difference


def _facts(trained: TrainedLearner) -> str:
    classes = trained.stream.label_period or trained.stream.classes_upto(trained.learner.task)
    return json.dumps({"classes": [trained.class_name(c) for c in range(classes)], "image_size": trained.format.image_size,
                       "channels": trained.format.channels}, ensure_ascii=False)


def _pt2(program: torch.export.ExportedProgram, pixels: Tensor, facts: str) -> tuple[bytes, Tensor]:
    """The program's bytes, and the scores of one more image than it was traced with taken away."""
    stream = io.BytesIO()
    torch.export.save(program, stream, extra_files={"slca.json": facts})
    loaded = torch.export.load(io.BytesIO(stream.getvalue())).module()
    return stream.getvalue(), torch.cat([loaded(pixels[:1]), loaded(pixels[1:])])


def _onnx(program: torch.export.ExportedProgram, pixels: Tensor) -> tuple[bytes, Tensor]:
    try:
        import onnx
        import onnxscript  # noqa: F401 (torch's exporter needs it)
        from onnx.reference import ReferenceEvaluator
    except ImportError as error:
        raise UserError(f"export: ONNX needs the packages onnx and onnxscript ({error.name} is missing): pip install onnx onnxscript; or "
                        "export to a .pt2 file, which needs nothing more") from None
    model = torch.onnx.export(program, (pixels,), dynamo=True, input_names=["pixels"], output_names=["scores"]).model_proto
    scores = ReferenceEvaluator(model).run(None, {model.graph.input[0].name: pixels.numpy()})[0]
    return onnx.ModelProto.SerializeToString(model), torch.from_numpy(scores.copy())
