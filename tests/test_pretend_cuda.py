"""On a CUDA device that is only pretended (tests/pretend_cuda.py): nothing that CUDA would refuse, no step that waits for the device.

A few runs are in the usual suite; `make gpu-check` (or -m gpu_check) has every method and switch. Pretending is for the rest of a
process, so runs happen in processes of their own, many in each.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from models import LEARNERS
from tests.pretend_cuda import unsupported
from tests.support import MICRO_VIT, that_it_has

pytestmark = pytest.mark.skipif(unsupported() is not None, reason=unsupported() or "")

PROJECT = Path(__file__).resolve().parents[1]
WAITS_PER_STEP = {"gem": 1}  # its quadratic program is solved on the CPU
OVER_BARE_LOOP = 1.05  # launches of a step over those of a bare loop
STEP_PHASES = ("stage 1", "step of alignment")

DATA = {"name": "tiny", "layout": "synthetic", "num_classes": 4, "image_size": 16, "train_per_class": 12, "test_per_class": 4,
        "train_transform": "none"}
USUAL = {"dataset": DATA, "epochs": 1, "ca_epochs": 1, "ca_samples": 8, "memory_size": 12, "deterministic": False}
DOMAINS = {"scenario": "domain", "init_cls": None, "increment": None, "dataset": {**DATA, "num_classes": 3, "num_domains": 2}}
READ = {"readout": "rgda", "val_fraction": 0.2, "bcb_lrscale": 0.5}
DEEPER = {"timm": "vit_tiny_patch16_224", "args": {**MICRO_VIT, "depth": 12}}  # what a step does beside the network weighs as on a real one


def case(model_name: str = "slca", **settings: Any) -> dict[str, Any]:
    return {"model_name": model_name, **that_it_has(model_name, USUAL), **settings}


SWITCHES = {
    "validation images": case(val_fraction=0.2, deterministic=True),
    **{f"readout {name}": case(**{**READ, "readout": name}) for name in ("rgda", "lda", "qda", "ncm")},
    **{f"covariance {kind}": case(ca_cov=kind, **READ) for kind in ("lowrank", "diag", "shared")},
    "float16 statistics": case(stats_dtype="float16"),
    "drift": case(drift="linear", features="cls+mean", **READ), "no anchors": case(drift="linear", drift_anchors=False, **READ),
    "kd": case(kd=1.0, bcb_lrscale=0.5), "move average": case("slca_best", move="average"), "average of heads": case(ca_start="aligned"),
    "normalised logits": case(ca_with_logit_norm=0.1), "alignment watched": case(ca_eval=True, save_before_ca=True),
    "domains": case(val_fraction=0.2, **DOMAINS), "domains, read out": case(**READ, **DOMAINS),
    "16-mixed": case(precision="16-mixed"), "bf16-mixed": case(precision="bf16-mixed"), "gem 16-mixed": case("gem", precision="16-mixed"),
    "ewc by batches": case("ewc", ewc_fisher="batch"), "sldc alpha_1": case("sldc", sldc_drift="alpha_1"),
    "accumulated": case(accumulate=3), "checkpointed activations": case(grad_checkpointing=True), "layer decay": case(layer_decay=0.7),
    "drift, kd, bf16-mixed": case(drift="linear", kd=1.0, precision="bf16-mixed", **READ),
    "resume": case(way="resume", epochs=2), "resume derpp": case("derpp", way="resume", epochs=2),
    "tested": case(way="test", val_fraction=0.2),
}
EXPORTED = {f"export {model}{' ' * bool(settings)}{settings.get('readout', '')}": case(model, way="predict", **settings)
            for model, settings in (("slca", {}), ("slca_pp", READ), ("slca", {"readout": "ncm"}), ("ncm", {}), ("ranpac", {}),
                                    ("icarl", {}), ("bic", {}), ("tuna", {}), ("inflora", {}), ("l2p", {}))}
EVERYTHING = {**{method: case(method) for method in LEARNERS}, **SWITCHES, **EXPORTED}
# One learner of each folder of models/, and what differs most from the plain way on a GPU.
SMALL = ("slca_pp", "gem", "l2p", "mos", "inflora", "ewc", "fecam", "drift, kd, bf16-mixed", "16-mixed", "resume", "export slca")


def run(cases: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The outcomes of `cases` in a process of their own (tests/pretended_runs.py)."""
    done = subprocess.run([sys.executable, "-m", "tests.pretended_runs"], input=json.dumps(cases), capture_output=True, text=True,
                          cwd=PROJECT)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def few() -> dict[str, Any]:
    """Outcomes of the usual suite's runs, and of two beside which a figure means something."""
    return run({**{name: EVERYTHING[name] for name in SMALL}, "beside a bare loop": case(way="bare", convnet_type=DEEPER),
                "a loss that waits": case(ca_epochs=0)})


@pytest.fixture(scope="module")
def all_of_them() -> dict[str, Any]:
    return run(EVERYTHING)


def assert_as_on_a_gpu(name: str, outcome: dict[str, Any]) -> None:
    assert outcome["errors"] == [] and outcome["failed"] is None, outcome["failed"] or outcome["errors"]
    for phase in STEP_PHASES:
        figures = outcome["phases"].get(phase)
        if figures is not None:
            allowed = WAITS_PER_STEP.get(EVERYTHING[name]["model_name"], 0)
            assert sum(figures["waits"].values()) <= allowed * figures["units"], (phase, figures["waits"])


@pytest.mark.parametrize("name", SMALL)
def test_a_run_does_nothing_that_a_gpu_refuses_and_no_step_waits(name, few):
    assert_as_on_a_gpu(name, few[name])


def test_a_step_of_stage_1_launches_hardly_more_than_a_bare_loop(few):
    assert few["beside a bare loop"]["failed"] is None, few["beside a bare loop"]["failed"]
    step, bare = (few["beside a bare loop"]["phases"][phase] for phase in ("stage 1", "bare loop"))
    assert bare["launches"] > 0 and bare["units"] > 1
    assert step["launches"] / step["units"] <= OVER_BARE_LOOP * bare["launches"] / bare["units"]


def test_a_loss_that_is_read_in_every_step_is_seen_waiting(few):
    waits = few["a loss that waits"]["phases"]["stage 1"]["waits"]
    assert sum(waits.values()) == few["a loss that waits"]["phases"]["stage 1"]["units"]


def test_statistics_and_alignment_are_counted_too(few):
    assert {"fitting", "drawing", "alignment", "step of alignment"} <= few["slca_pp"]["phases"].keys()


@pytest.mark.gpu_check
@pytest.mark.parametrize("name", EVERYTHING)
def test_every_method_and_switch_does_nothing_that_a_gpu_refuses_and_no_step_waits(name, all_of_them):
    assert_as_on_a_gpu(name, all_of_them[name])
