import torch

from tests.support import make_config
from utils.machine.speed import arithmetic, fast_defaults


def test_fast_on_a_gpu_is_bf16_and_compiles_where_that_pays():
    found = fast_defaults({"epochs": 20, "batch_size": 128}, on_gpu=True, images=50_000)
    assert found == {"test_batch_size": 512, "precision": "bf16-mixed", "tf32": True, "compile": True}
    assert not fast_defaults({"epochs": 20}, on_gpu=True, images=5_994)["compile"]
    assert not fast_defaults({"epochs": 20}, on_gpu=True, images=None)["compile"]


def test_fast_on_a_cpu_changes_no_arithmetic():
    config = make_config(speed="fast", device="cpu", batch_size=600)
    assert (config.precision, config.tf32, config.compile, config.test_batch_size) == ("32-true", False, False, 600)


def test_what_the_config_says_wins_over_fast(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    config = make_config(speed="fast", device="auto", precision="16-mixed", tf32=False)
    assert (config.precision, config.tf32) == ("16-mixed", False)
    assert make_config(speed="fast", device="auto").precision == "bf16-mixed"


def test_the_arithmetic_is_named_for_tables():
    assert arithmetic({"precision": "bf16-mixed", "tf32": True, "compile": True}) == "bf16-mixed, TF32, compiled"
    assert arithmetic({}) == "32-true"
