"""Files of weights: every published layout loads, every wrong file is told, no code in a file runs."""

import argparse
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from convs.backbones import build_backbone, describe
from convs.weights import load_weights, tensors_sha256
from tests.support import MICRO_VIT, micro_backbone
from utils.errors import UserError


@pytest.fixture
def trained():
    """A micro ViT whose weights differ from a fresh one's, the final norm included."""
    model = micro_backbone(reset_norm=False).model
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    return model


def loads_equal(path, trained, **options):
    model = micro_backbone(reset_norm=False).model
    load_weights(model, path, **options)
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(model(images), trained(images))


def test_safetensors_and_plain_torch_files_load(tmp_path, trained):
    save_file(trained.state_dict(), tmp_path / "a.safetensors")
    torch.save(trained.state_dict(), tmp_path / "a.pth")
    loads_equal(tmp_path / "a.safetensors", trained)
    loads_equal(tmp_path / "a.pth", trained)


def test_moco_v3_loads_in_both_formats(tmp_path, trained):
    state = trained.state_dict()
    torch.save({"model": state}, tmp_path / "mocov3-vit-base-300ep.pth")
    official = {f"module.base_encoder.{k}": v for k, v in state.items()}
    official |= {"module.base_encoder.head.0.weight": torch.zeros(3), "module.momentum_encoder.cls_token": torch.zeros(3),
                 "module.predictor.0.weight": torch.zeros(3)}
    torch.save({"epoch": 300, "arch": "vit_base", "state_dict": official, "args": argparse.Namespace(lr=1.0)},
               tmp_path / "vit-b-300ep.pth.tar")
    loads_equal(tmp_path / "mocov3-vit-base-300ep.pth", trained)
    loads_equal(tmp_path / "vit-b-300ep.pth.tar", trained)


def test_dino_and_mae_files_load(tmp_path, trained):
    state = trained.state_dict()
    dino = {f"module.backbone.{k}": v for k, v in state.items()} | {"module.head.mlp.0.weight": torch.zeros(3)}
    torch.save({"student": {}, "teacher": {k.removeprefix("module."): v for k, v in dino.items()}, "epoch": 100}, tmp_path / "dino.pth")
    torch.save({"model": state | {"decoder_embed.weight": torch.zeros(3), "mask_token": torch.zeros(3)}}, tmp_path / "mae.pth")
    loads_equal(tmp_path / "dino.pth", trained)
    loads_equal(tmp_path / "mae.pth", trained)


def test_position_embeddings_are_resized_to_the_image(tmp_path, trained):
    save_file(trained.state_dict(), tmp_path / "a.safetensors")
    model = micro_backbone(reset_norm=False, img_size=32).model
    load_weights(model, tmp_path / "a.safetensors")
    assert model.pos_embed.shape == (1, 17, 16)


def test_average_pooling_takes_the_final_norm_under_its_other_name(tmp_path, trained):
    save_file(trained.state_dict(), tmp_path / "a.safetensors")
    model = micro_backbone(reset_norm=False, global_pool="avg").model
    load_weights(model, tmp_path / "a.safetensors")
    assert torch.equal(model.fc_norm.weight, trained.norm.weight)


def write_npz(path, depth=2, width=16):
    """Google's ViT format, as timm reads it."""
    generator = np.random.default_rng(0)
    def r(*shape):
        return generator.normal(size=shape).astype(np.float32)
    arrays = {"cls": r(1, 1, width), "embedding/kernel": r(8, 8, 3, width), "embedding/bias": r(width),
              "Transformer/posembed_input/pos_embedding": r(1, 5, width),
              "Transformer/encoder_norm/scale": r(width), "Transformer/encoder_norm/bias": r(width)}
    for i in range(depth):
        block = f"Transformer/encoderblock_{i}/"
        for norm in ("LayerNorm_0", "LayerNorm_2"):
            arrays |= {f"{block}{norm}/scale": r(width), f"{block}{norm}/bias": r(width)}
        attention = block + "MultiHeadDotProductAttention_1/"
        for part in ("query", "key", "value"):
            arrays |= {f"{attention}{part}/kernel": r(width, 2, width // 2), f"{attention}{part}/bias": r(2, width // 2)}
        arrays |= {f"{attention}out/kernel": r(2, width // 2, width), f"{attention}out/bias": r(width)}
        arrays |= {f"{block}MlpBlock_3/Dense_0/kernel": r(width, 4 * width), f"{block}MlpBlock_3/Dense_0/bias": r(4 * width),
                   f"{block}MlpBlock_3/Dense_1/kernel": r(4 * width, width), f"{block}MlpBlock_3/Dense_1/bias": r(width)}
    np.savez(path, **arrays)
    return arrays


def test_google_npz_loads_and_the_release_throws_its_final_norm_away(tmp_path):
    arrays = write_npz(tmp_path / "vit.npz")
    entry = describe("vit_tiny_patch16_224", MICRO_VIT, str(tmp_path / "vit.npz"))
    kept, reset = build_backbone(entry), build_backbone(entry, reset_norm=True)
    for backbone in (kept, reset):
        np.testing.assert_array_equal(backbone.model.cls_token.detach(), arrays["cls"])
        assert backbone.weights["source"] == "vit.npz" and len(backbone.weights["sha256"]) == 64
    np.testing.assert_array_equal(kept.model.norm.weight.detach(), arrays["Transformer/encoder_norm/scale"])
    assert torch.equal(reset.model.norm.weight, torch.ones(16)) and reset.model.norm.eps == 1e-5


@pytest.mark.parametrize(("depth", "width"), [(3, 16), (1, 16), (2, 32)])
def test_an_npz_of_another_architecture_is_told(tmp_path, depth, width):
    write_npz(tmp_path / "vit.npz", depth, width)
    with pytest.raises(UserError, match="do not fit the backbone: depth"):
        build_backbone(describe("vit_tiny_patch16_224", MICRO_VIT, str(tmp_path / "vit.npz")))


@pytest.mark.parametrize("change", [{"depth": 3}, {"embed_dim": 32}, {"depth": 1}])
def test_weights_of_another_architecture_are_told(tmp_path, trained, change):
    save_file(trained.state_dict(), tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="do not fit the backbone"):
        load_weights(micro_backbone(reset_norm=False, **change).model, tmp_path / "a.safetensors")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".npz"])
def test_a_truncated_file_is_told(tmp_path, trained, suffix):
    path = tmp_path / f"a{suffix}"
    if suffix == ".npz":
        write_npz(path)
    else:
        (save_file if suffix == ".safetensors" else torch.save)(trained.state_dict(), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=r"a(\.\w+): (not a readable|refused)"):
        load_weights(micro_backbone(reset_norm=False).model, path)


class Bomb:
    """A pickle that leaves a file behind when it is executed."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".npz", ".safetensors"])
def test_code_in_a_file_is_never_executed(tmp_path, suffix):
    planted, path = tmp_path / "executed", tmp_path / f"evil{suffix}"
    if suffix in (".pth", ".pt"):
        torch.save({"state_dict": Bomb(planted)}, path)
    else:
        path.write_bytes(pickle.dumps(Bomb(planted)))
    with pytest.raises(UserError):
        load_weights(micro_backbone(reset_norm=False).model, path)
    assert not planted.exists()


def test_checksum_tells_equal_weights_from_different_ones(trained):
    state = trained.state_dict()
    other = {**state, "cls_token": state["cls_token"] + 1e-3}
    assert tensors_sha256(state.items()) == tensors_sha256(reversed(list(state.items()))) != tensors_sha256(other.items())
