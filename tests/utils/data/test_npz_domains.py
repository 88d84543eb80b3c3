"""Domains in an npz file: domains_train, domains_test and domain_names."""

from pathlib import Path

import numpy as np
import pytest

from tests.support import make_config
from trainer import train
from utils.config import DatasetSpec
from utils.data.registry import dataset_info, load_dataset
from utils.errors import UserError


def save(path: Path, **changes: np.ndarray | None) -> DatasetSpec:
    """Three domains of two classes, eight training and four test images of each pair; a domain's images have one grey value."""
    arrays: dict[str, np.ndarray | None] = {"domain_names": np.array(["ink", "pencil", "chalk"])}
    for split, count in (("train", 8), ("test", 4)):
        arrays[f"domains_{split}"] = np.repeat(np.arange(3), 2 * count)
        arrays[f"y_{split}"] = np.tile(np.repeat(np.arange(2), count), 3)
        arrays[f"x_{split}"] = np.broadcast_to(arrays[f"domains_{split}"][:, None, None] * 50, (6 * count, 16, 16)).astype(np.uint8)
    arrays |= changes
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    return DatasetSpec(name="styles", layout="npz", root=str(path))


def test_each_image_keeps_its_domain_and_the_domains_their_names(tmp_path):
    spec = save(tmp_path / "a.npz")
    assert dataset_info(spec).domains == ("ink", "pencil", "chalk")
    for images in load_dataset(spec)[:2]:
        assert (images.images[:, 0, 0, 0] == 50 * images.domains).all()


def test_domains_without_names_are_numbered(tmp_path):
    assert dataset_info(save(tmp_path / "a.npz", domain_names=None)).domains == ("domain 0", "domain 1", "domain 2")


def test_listed_domains_are_selected_in_the_listed_order(tmp_path):
    spec = save(tmp_path / "a.npz").model_copy(update={"domains": ["chalk", "ink"]})
    assert dataset_info(spec).domains == ("chalk", "ink") and dataset_info(spec).fixed_domain_order
    train_set, test_set, _ = load_dataset(spec)
    assert len(train_set) == 32 and len(test_set) == 16
    assert (train_set.images[:, 0, 0, 0] == np.array([100, 0])[train_set.domains]).all()


@pytest.mark.parametrize("changes, words", [
    ({"domains_test": None}, "domains_train alone"),
    ({"domains_train": np.zeros(5, np.int64)}, "domains_train is int64 of shape \\(5,\\), allowed: \\(48,\\)"),
    ({"domains_train": np.zeros(48)}, "domains_train is float64"),
    ({"domains_train": np.arange(48) % 3 - 1}, "the number -1"),
    ({"domain_names": np.array(["ink", "pencil"])}, "domain_names has 2 names"),
    ({"domain_names": np.array(["ink", "ink", "chalk"])}, "2 distinct"),
])
def test_domains_that_do_not_fit_are_one_clear_message(tmp_path, changes, words):
    with pytest.raises(UserError, match=words):
        load_dataset(save(tmp_path / "a.npz", **changes))


@pytest.mark.parametrize("chosen, words", [(["chalk", "oil"], "'oil' is not in"), (["ink", "ink"], "each domain may be listed once")])
def test_a_wrong_list_of_domains_is_refused(tmp_path, chosen, words):
    with pytest.raises(UserError, match=words):
        load_dataset(save(tmp_path / "a.npz").model_copy(update={"domains": chosen}))


def test_an_npz_without_domains_has_none_to_list(tmp_path):
    spec = save(tmp_path / "a.npz", domains_train=None, domains_test=None, domain_names=None)
    assert dataset_info(spec).domains == () and load_dataset(spec)[0].domains is None
    with pytest.raises(UserError, match="it has no domains"):
        load_dataset(spec.model_copy(update={"domains": ["ink"]}))


def test_a_run_learns_one_domain_after_the_other(tmp_path):
    spec = save(tmp_path / "a.npz").model_dump(exclude_none=True)
    config = make_config(model_name="ncm", dataset=spec, scenario="domain", init_cls=None, increment=None, shuffle=False, batch_size=8)
    assert len(train(config, tmp_path / "logs").seeds[0].top1_curve) == 3
