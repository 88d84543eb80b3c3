"""What the settings of the common config make of the images."""

import pytest
import torch
from lightning_fabric import Fabric

from models.tools.build import make_learner
from tests.support import make_config
from utils.config import parse_config
from utils.errors import UserError

IN_FILE = {"name": "tiny", "layout": "synthetic", "num_classes": 4, "image_size": 16, "train_per_class": 3, "test_per_class": 2,
           "train_transform": "none", "mean": [0.2, 0.4, 0.6], "std": [0.5, 0.25, 0.2]}


def learner_of(**settings):
    return make_learner(make_config(dataset=IN_FILE, **settings), 1993, Fabric(accelerator="cpu", devices=1))


def one_batch(learner, augment=False):
    return next(iter(learner.data.batches("test" if not augment else "train", 0, batch_size=4, augment=augment, shuffle_seed=0)))[0]


@pytest.mark.parametrize("augment", [False, True])
def test_unit_feeds_the_pixels_over_255(augment):
    unit, dataset = (one_batch(learner_of(normalize=name), augment) for name in ("unit", "dataset"))
    mean, std = (torch.tensor(IN_FILE[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    torch.testing.assert_close(unit, dataset * std + mean)
    assert unit.min() >= 0 and unit.max() <= 1
    grey_levels = unit * 255
    torch.testing.assert_close(grey_levels, grey_levels.round(), rtol=0, atol=1e-3)


def test_backbone_feeds_what_the_weights_were_trained_with():
    unit, backbone = (one_batch(learner_of(normalize=name)) for name in ("unit", "backbone"))
    torch.testing.assert_close(backbone, unit * 2 - 1)  # timm's mean 0.5 and std 0.5 of this ViT


def test_a_prediction_gets_pixels_and_test_transform_of_the_run():
    stored = learner_of(normalize="unit", test_transform="resize224_bilinear").data.stored.inputs
    assert (list(stored.mean), list(stored.std), stored.test_transform) == ([0.0] * 3, [1.0] * 3, "resize224_bilinear")


def test_the_test_transform_of_the_config_replaces_the_data_sets_own():
    own, crop = one_batch(learner_of()), one_batch(learner_of(test_transform="resize256_crop224"))
    assert own.shape == crop.shape and not torch.allclose(own, crop)


def test_an_unknown_normalisation_lists_what_there_is():
    with pytest.raises(UserError, match="unit"):
        parse_config({"model_name": "slca", "dataset": IN_FILE, "convnet_type": "vit-b-p16", "epochs": 1, "normalize": "zero_one"})
