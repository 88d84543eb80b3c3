"""Other libraries' names for a ViT's parameters: a model of theirs, written out by hand, gives timm's features."""

import torch

from convs.published_names import timm_names
from tests.support import micro_backbone

QKV = ("query", "key", "value")


def random_model():
    model = micro_backbone(reset_norm=False).model
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    return model.state_dict()


def renamed_gives(theirs, state):
    ours = timm_names(theirs)
    assert ours.keys() == state.keys() and all(torch.equal(ours[name], state[name]) for name in state)


def hugging_face(state, names):
    theirs = {"embeddings.cls_token": state["cls_token"], "embeddings.position_embeddings": state["pos_embed"]}
    for kind in ("weight", "bias"):
        theirs |= {f"embeddings.patch_embeddings.projection.{kind}": state[f"patch_embed.proj.{kind}"],
                   f"layernorm.{kind}": state[f"norm.{kind}"]}
        for i in range(2):
            layer, block = f"encoder.layer.{i}", f"blocks.{i}"
            theirs |= {f"{layer}.{theirs_}.{kind}": state[f"{block}.{ours}.{kind}"] for ours, theirs_ in names.items()}
            theirs |= {f"{layer}.attention.attention.{part}.{kind}": rows
                       for part, rows in zip(QKV, state[f"{block}.attn.qkv.{kind}"].chunk(3), strict=True)}
    return theirs


def test_names_of_hugging_faces_vit_and_dinov2():
    state = random_model()
    shared = {"attn.proj": "attention.output.dense"}
    vit = {"norm1": "layernorm_before", "norm2": "layernorm_after", "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense"}
    dino = {name: name for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2")}
    for names in (vit, dino):
        renamed_gives(hugging_face(state, shared | names), state)


def test_names_of_torchvisions_vit():
    state = random_model()
    theirs = {"class_token": state["cls_token"], "encoder.pos_embedding": state["pos_embed"]}
    for kind in ("weight", "bias"):
        theirs |= {f"conv_proj.{kind}": state[f"patch_embed.proj.{kind}"], f"encoder.ln.{kind}": state[f"norm.{kind}"]}
        for i in range(2):
            layer, block = f"encoder.layers.encoder_layer_{i}", f"blocks.{i}"
            theirs |= {f"{layer}.ln_1.{kind}": state[f"{block}.norm1.{kind}"], f"{layer}.ln_2.{kind}": state[f"{block}.norm2.{kind}"],
                       f"{layer}.self_attention.in_proj_{kind}": state[f"{block}.attn.qkv.{kind}"],
                       f"{layer}.self_attention.out_proj.{kind}": state[f"{block}.attn.proj.{kind}"],
                       f"{layer}.mlp.0.{kind}": state[f"{block}.mlp.fc1.{kind}"], f"{layer}.mlp.3.{kind}": state[f"{block}.mlp.fc2.{kind}"]}
    renamed_gives(theirs, state)


def test_timms_own_names_are_left_alone():
    state = random_model()
    renamed_gives(state, state)
