"""Files of weights: whatever wraps them, the one set that fits is loaded; every wrong file is told; no code in a file runs."""

import argparse
import logging
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed

from convs.backbone_entries import REGISTRY, key_in
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


def nested(content, *names):
    for name in reversed(names):
        content = {name: content}
    return content


WRAPPERS = {
    "DataParallel": lambda state: {f"module.{k}": v for k, v in state.items()},
    "compiled DataParallel": lambda state: {"model": {f"module._orig_mod.{k}": v for k, v in state.items()}},
    "Lightning": lambda state: {"state_dict": {f"net.backbone.{k}": v for k, v in state.items()}, "epoch": 3, "global_step": 9,
                                "optimizer_states": [{"state": {0: {"momentum_buffer": torch.ones(2)}}, "param_groups": [{"lr": 1.0}]}]},
    "DINO": lambda state: {"student": {"backbone.cls_token": torch.ones(1)},
                           "teacher": {**{f"backbone.{k}": v for k, v in state.items()}, "dino_head.mlp.0.weight": torch.ones(2, 2)}},
    "own names at the top": lambda state: {"net": state, "criterion": {"weight": torch.ones(2)}},
    "timm in transformers": lambda state: {f"timm_model.{k}": v for k, v in state.items()},
    "MAE": lambda state: {"model": {**state, "mask_token": torch.ones(1, 1, 8), "decoder_embed.weight": torch.ones(8, 16),
                                    "decoder_blocks.0.norm1.weight": torch.ones(8), "decoder_norm.weight": torch.ones(16)}},
    "very deep": lambda state: nested(state, *(f"level{i}" for i in range(30))),
    "a list": lambda state: [state, {"lr": 0.1}],
    "a Namespace": lambda state: argparse.Namespace(weights=state, lr=0.1),
    "a prefix without a dot": lambda state: {f"teacher_{k}": v for k, v in state.items()},
    "modules as dictionaries": lambda state: {"trunk": {k.partition(".")[0]: {
        rest.partition(".")[2]: v for rest, v in state.items() if rest.partition(".")[0] == k.partition(".")[0] and "." in rest}
        if "." in k else state[k] for k in state}},
    "a classifier and its optimiser": lambda state: {"model": {**state, "head.weight": torch.ones(3, 16), "head.bias": torch.ones(3)},
                                                     "optimizer": {"state": {i: {"exp_avg": v} for i, v in enumerate(state.values())}}},
    "one set under two names": lambda state: {"model": state, "state_dict": {k: v.clone() for k, v in state.items()}},
    "half precision": lambda state: {k: v.half() for k, v in state.items()},
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_weights_are_found_in_whatever_wraps_them(tmp_path, trained, wrapper):
    if wrapper == "half precision":
        trained.load_state_dict({k: v.half() for k, v in trained.state_dict().items()})
    torch.save(WRAPPERS[wrapper](trained.state_dict()), tmp_path / "a.pth")
    loads_equal(tmp_path / "a.pth", trained)


def test_a_wrapped_safetensors_file_loads_too(tmp_path, trained):
    save_file({f"ema.module.{k}": v for k, v in trained.state_dict().items()} | {"queue": torch.ones(3)}, tmp_path / "a.safetensors")
    loads_equal(tmp_path / "a.safetensors", trained)


def test_the_bytes_of_a_file_count_and_not_its_name(tmp_path, trained):
    save_file(trained.state_dict(), tmp_path / "a.pth")
    torch.save(trained.state_dict(), tmp_path / "b.safetensors")
    torch.save(trained.state_dict(), tmp_path / "c.npz", _use_new_zipfile_serialization=False)
    for name in ("a.pth", "b.safetensors", "c.npz"):
        loads_equal(tmp_path / name, trained)


def test_what_was_taken_and_what_was_left_is_logged(tmp_path, trained, caplog):
    torch.save({"teacher": {f"backbone.{k}": v for k, v in trained.state_dict().items()} | {"dino_head.weight": torch.ones(2)}},
               tmp_path / "a.pth")
    with caplog.at_level(logging.INFO, "slca"):
        taken = load_weights(micro_backbone(reset_norm=False).model, tmp_path / "a.pth")
    assert taken == "30 tensors under 'teacher.backbone'; left out: teacher.dino_head.weight"
    assert f"weights a.pth: {taken}" in caplog.text


@pytest.mark.parametrize("key", ["teacher", "ema.teacher", "ema.teacher.backbone"])
def test_of_two_sets_that_fit_the_user_chooses_by_a_name_in_the_prefix(tmp_path, trained, key):
    other = {k: v + 1 for k, v in trained.state_dict().items()}
    torch.save({"student": other, "ema": {"teacher": {f"backbone.{k}": v for k, v in trained.state_dict().items()}}}, tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"2 sets of weights in it fit.*'student', 'ema.teacher.backbone'.*\"weights_key\": \"student\""):
        load_weights(micro_backbone(reset_norm=False).model, tmp_path / "a.pth")
    loads_equal(tmp_path / "a.pth", trained, key=key)
    entry = describe("vit_tiny_patch16_224", MICRO_VIT, str(tmp_path / "a.pth"), key)
    assert torch.equal(build_backbone(entry).model.cls_token, trained.cls_token)


def test_the_top_of_a_file_can_be_chosen_beside_a_copy_in_it(tmp_path, trained):
    torch.save({**trained.state_dict(), **{f"ema.{k}": v + 1 for k, v in trained.state_dict().items()}}, tmp_path / "a.pth")
    loads_equal(tmp_path / "a.pth", trained, key=".")


@pytest.mark.parametrize("key", ["teachr", "stud", "optimizer"])
def test_a_key_that_the_file_has_not_is_told_with_what_it_has(tmp_path, trained, key):
    torch.save({"student": trained.state_dict(), "optimizer": {"state": torch.ones(2)}}, tmp_path / "a.pth")
    with pytest.raises(UserError, match=rf"weights_key: got '{key}'.*student, optimizer"):
        load_weights(micro_backbone(reset_norm=False).model, tmp_path / "a.pth", key=key)


@pytest.mark.parametrize(("change", "told"), [
    (lambda state: state.pop("blocks.1.mlp.fc2.bias"), "missing: blocks.1.mlp.fc2.bias"),
    (lambda state: state.pop("cls_token"), "missing: cls_token"),
    (lambda state: state.pop("norm.weight"), "missing: norm.weight"),
    (lambda state: state.update({"blocks.0.ls1.gamma": torch.ones(16)}), "unexpected: blocks.0.ls1.gamma"),
    (lambda state: state.update({"dist_token": torch.ones(1, 1, 16)}), "unexpected: dist_token"),
    (lambda state: state.update({"norm_pre.weight": torch.ones(16)}), "unexpected: norm_pre.weight"),
    (lambda state: state.update({"norm.bias": torch.ones(3)}), r"wrong shape: norm.bias \(3,\) instead of \(16,\)"),
    (lambda state: state.update({"cls_token": torch.ones(())}), r"wrong shape: cls_token \(\)"),
    (lambda state: state.update({"pos_embed": torch.ones(16)}), "wrong shape: pos_embed"),
    (lambda state: state.update({"pos_embed": torch.ones(1, 4, 16)}), "wrong shape: pos_embed"),
    (lambda state: state.update({"patch_embed.proj.weight": torch.ones(5)}), "wrong shape: patch_embed.proj.weight"),
    (lambda state: state.update({"blocks.0.norm1.bias": torch.ones(16, dtype=torch.int8)}), "no plain numbers: blocks.0.norm1.bias"),
    (lambda state: state.update({"blocks.0.norm1.bias": torch.ones(16).to_sparse()}), "no plain numbers: blocks.0.norm1.bias"),
], ids=lambda value: value if isinstance(value, str) else "")
def test_a_part_that_fits_not_quite_is_refused_by_name(tmp_path, trained, change, told):
    state = dict(trained.state_dict())
    change(state)
    torch.save({"model": {f"net.{k}": v for k, v in state.items()}, "optimizer": {"w": torch.ones(2)}}, tmp_path / "a.pth")
    with pytest.raises(UserError, match=rf"a.pth: these weights do not fit the backbone VisionTransformer: under 'model.net'.*{told}"):
        load_weights(micro_backbone(reset_norm=False).model, tmp_path / "a.pth")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
@pytest.mark.parametrize("name", ["cls_token", "blocks.1.mlp.fc1.weight"])
def test_weights_that_are_no_finite_numbers_are_told_by_name(tmp_path, trained, name, value):
    state = {k: v.double() for k, v in trained.state_dict().items()}
    state[name].flatten()[3] = value
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(UserError, match=rf"a.pth: these weights are not finite.*{name} \(1 of "):
        load_weights(micro_backbone(reset_norm=False).model, tmp_path / "a.pth")


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


def test_the_official_moco_v3_file_is_read_from_its_base_encoder(tmp_path):
    entry = REGISTRY["vit-b-p16-mocov3"]
    assert key_in(entry, tmp_path / "vit-b-300ep.pth.tar") == "base_encoder" and key_in(entry, tmp_path / "mocov3-vit-base-300ep.pth") == ""


def test_dino_and_mae_files_load(tmp_path, trained):
    state = trained.state_dict()
    dino = {f"module.backbone.{k}": v for k, v in state.items()} | {"module.head.mlp.0.weight": torch.zeros(3)}
    torch.save({"student": {}, "teacher": {k.removeprefix("module."): v for k, v in dino.items()}, "epoch": 100}, tmp_path / "dino.pth")
    torch.save({"model": state | {"decoder_embed.weight": torch.zeros(3), "mask_token": torch.zeros(3)}}, tmp_path / "mae.pth")
    loads_equal(tmp_path / "dino.pth", trained)
    loads_equal(tmp_path / "mae.pth", trained)


def test_position_embeddings_are_resized_to_the_image_and_that_is_logged(tmp_path, trained, caplog):
    torch.save({"model": trained.state_dict()}, tmp_path / "a.pth")
    model = micro_backbone(reset_norm=False, img_size=32).model
    with caplog.at_level(logging.INFO, "slca"):
        load_weights(model, tmp_path / "a.pth")
    expected = resample_abs_pos_embed(trained.pos_embed, new_size=(4, 4), num_prefix_tokens=1)
    torch.testing.assert_close(model.pos_embed, expected)
    assert "pos_embed was resized from (1, 5, 16) to (1, 17, 16)" in caplog.text


def test_average_pooling_takes_the_final_norm_under_its_other_name_and_the_other_way_round(tmp_path, trained):
    save_file(trained.state_dict(), tmp_path / "a.safetensors")
    model = micro_backbone(reset_norm=False, global_pool="avg").model
    assert "the final norm is called norm there" in load_weights(model, tmp_path / "a.safetensors")
    assert torch.equal(model.fc_norm.weight, trained.norm.weight)
    save_file(model.state_dict(), tmp_path / "b.safetensors")
    loads_equal(tmp_path / "b.safetensors", trained)


def test_a_convolutional_network_loads_without_its_batch_counters_and_with_its_classifier(tmp_path):
    trained = build_backbone(describe("timm/resnet10t"), pretrained=False).model
    state = {f"encoder.{k}": v for k, v in trained.state_dict().items() if "num_batches_tracked" not in k}
    torch.save({"state_dict": {**state, "encoder.fc.weight": torch.ones(5, 512), "fc.weight": torch.ones(2, 2)}}, tmp_path / "a.pth")
    model = build_backbone(describe("timm/resnet10t"), pretrained=False, generator_seed=1).model
    load_weights(model, tmp_path / "a.pth")
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model.eval()(images), trained.eval()(images))


def write_npz(path, depth=2, width=16, prefix="", class_token=True, big_vision=False, stacked=False):
    """Google's ViT formats, as timm reads them: the older one, and Big Vision's with one array for each block or for all."""
    generator = np.random.default_rng(0)
    def r(*shape):
        return generator.normal(size=shape).astype(np.float32)
    numbers = (0, 1, 0, 0) if big_vision or stacked else (0, 2, 1, 3)  # of two norms, the attention, the MLP
    position = "pos_embedding" if big_vision or stacked else "Transformer/posembed_input/pos_embedding"
    arrays = {"embedding/kernel": r(8, 8, 3, width), "embedding/bias": r(width), position: r(1, 4 + class_token, width),
              "Transformer/encoder_norm/scale": r(width), "Transformer/encoder_norm/bias": r(width)}
    if class_token:
        arrays["cls"] = r(1, 1, width)
    for block in ["encoderblock"] if stacked else [f"encoderblock_{i}" for i in range(depth)]:
        some = (depth,) if stacked else ()
        for norm in numbers[:2]:
            name = f"Transformer/{block}/LayerNorm_{norm}"
            arrays |= {f"{name}/scale": r(*some, width), f"{name}/bias": r(*some, width)}
        attention = f"Transformer/{block}/MultiHeadDotProductAttention_{numbers[2]}"
        for part in ("query", "key", "value"):
            arrays |= {f"{attention}/{part}/kernel": r(*some, width, 2, width // 2), f"{attention}/{part}/bias": r(*some, 2, width // 2)}
        arrays |= {f"{attention}/out/kernel": r(*some, 2, width // 2, width), f"{attention}/out/bias": r(*some, width)}
        mlp = f"Transformer/{block}/MlpBlock_{numbers[3]}"
        arrays |= {f"{mlp}/Dense_0/kernel": r(*some, width, 4 * width), f"{mlp}/Dense_0/bias": r(*some, 4 * width),
                   f"{mlp}/Dense_1/kernel": r(*some, 4 * width, width), f"{mlp}/Dense_1/bias": r(*some, width)}
    np.savez(path, **{prefix + name: array for name, array in arrays.items()})
    return arrays


@pytest.mark.parametrize("layout", [
    {}, {"prefix": "opt/target/"}, {"big_vision": True, "prefix": "params/"}, {"stacked": True, "prefix": "params/img/"},
    {"class_token": False}, {"class_token": False, "big_vision": True, "prefix": "params/"}], ids=str)
def test_jax_files_give_what_timms_own_reader_gives(tmp_path, layout):
    write_npz(tmp_path / "vit.npz", **layout)
    args = {} if layout.get("class_token", True) else {"class_token": False, "global_pool": "avg", "fc_norm": False}
    ours, timms = (micro_backbone(reset_norm=False, **args).model for _ in range(2))
    load_weights(ours, tmp_path / "vit.npz")
    timms.load_pretrained(str(tmp_path / "vit.npz"))
    assert all(torch.equal(tensor, timms.state_dict()[name]) for name, tensor in ours.state_dict().items())


def test_jax_parameters_are_found_at_a_level_that_timm_does_not_know_and_resized_as_timm_does(tmp_path):
    arrays = write_npz(tmp_path / "timms.npz")
    np.savez(tmp_path / "deep.npz", **{f"state/ema/params/{name}": array for name, array in arrays.items()}, step=np.int64(3))
    ours, timms = (micro_backbone(reset_norm=False, img_size=32).model for _ in range(2))
    assert "under 'state.ema.params'; pos_embed was resized" in load_weights(ours, tmp_path / "deep.npz")
    timms.load_pretrained(str(tmp_path / "timms.npz"))
    assert all(torch.equal(tensor, timms.state_dict()[name]) for name, tensor in ours.state_dict().items())


def test_a_jax_file_with_one_array_too_few_is_told_by_name(tmp_path):
    arrays = write_npz(tmp_path / "vit.npz")
    arrays.pop("Transformer/encoderblock_1/LayerNorm_2/bias")
    np.savez(tmp_path / "vit.npz", **arrays)
    with pytest.raises(UserError, match=r"missing: blocks\.1\.norm2\.bias"):
        load_weights(micro_backbone(reset_norm=False).model, tmp_path / "vit.npz")


def test_jax_files_of_other_models_are_read_by_timm(tmp_path):
    args = {"global_pool": "map", "class_token": False}
    arrays = {f"params/{name}": array for name, array in write_npz(tmp_path / "vit.npz", class_token=False, big_vision=True).items()}
    def ones(*shape):
        return np.ones(shape, np.float32)
    head, attention = "params/MAPHead_0", "params/MAPHead_0/MultiHeadDotProductAttention_0"
    arrays |= {f"{head}/probe": ones(1, 1, 16), f"{head}/LayerNorm_0/scale": ones(16), f"{head}/LayerNorm_0/bias": ones(16),
               **{f"{attention}/{part}/kernel": ones(16, 2, 8) for part in ("query", "key", "value")},
               **{f"{attention}/{part}/bias": ones(2, 8) for part in ("query", "key", "value")},
               f"{attention}/out/kernel": ones(2, 8, 16), f"{attention}/out/bias": ones(16),
               f"{head}/MlpBlock_0/Dense_0/kernel": ones(16, 64), f"{head}/MlpBlock_0/Dense_0/bias": ones(64),
               f"{head}/MlpBlock_0/Dense_1/kernel": ones(64, 16), f"{head}/MlpBlock_0/Dense_1/bias": ones(16)}
    np.savez(tmp_path / "map.npz", **arrays)
    model = micro_backbone(reset_norm=False, **args).model
    assert "as timm reads" in load_weights(model, tmp_path / "map.npz")
    np.testing.assert_array_equal(model.attn_pool.latent.detach(), ones(1, 1, 16))
    with pytest.raises(UserError, match=r"do not fit the backbone.*depth 2 in the file, 3 in the model"):
        load_weights(micro_backbone(reset_norm=False, depth=3, **args).model, tmp_path / "map.npz")


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
