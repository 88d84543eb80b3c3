"""Images by class."""

import pytest
import torch

from models.by_class import positions_by_class, require_finite
from tests.waits import Waits
from utils.errors import UserError


def test_positions_are_those_of_a_mask_per_class_in_their_own_order():
    labels = torch.randint(0, 9, (200,), generator=torch.Generator().manual_seed(0))
    labels[labels == 5] = 4  # a class without images
    found = positions_by_class(labels, range(2, 8))
    assert [each.tolist() for each in found] == [torch.nonzero(labels == c).flatten().tolist() for c in range(2, 8)]


def test_many_classes_cost_no_more_waits_than_one():
    with Waits() as waits:
        positions_by_class(torch.arange(1000) % 100, range(100))
    assert waits.count <= 1


def test_no_image_gives_an_empty_class():
    assert [len(each) for each in positions_by_class(torch.empty(0, dtype=torch.long), range(2))] == [0, 0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_feature_that_is_no_number_is_told_with_its_class(bad):
    features, labels = torch.ones(4, 3), torch.tensor([4, 5, 6, 5])
    require_finite(features, labels)
    features[2, 1] = bad
    with pytest.raises(UserError, match=r"features of class 6 .* not all finite numbers"):
        require_finite(features, labels)
