import pytest
import torch

from convs.views import mean_over_views, shifted


@pytest.mark.parametrize("count", [1, 5, 9])
def test_the_first_view_is_the_image_and_the_others_are_moved_by_a_28th(count):
    images = torch.rand(2, 3, 56, 56)
    views = list(shifted(images, count))
    assert len(views) == count and torch.equal(views[0], images)
    for view in views[1:]:
        assert view.shape == images.shape and not torch.equal(view, images)
    if count > 1:
        right = views[1]
        assert torch.equal(right[..., 2:], images[..., :-2])
        assert torch.equal(right[..., 0], images[..., 0]) and torch.equal(right[..., 1], images[..., 0]), "the border is repeated"
    if count == 9:
        assert torch.equal(views[5][..., 2:, 2:], images[..., :-2, :-2])


def test_the_mean_over_views_of_a_feature_that_ignores_shifts_is_that_feature():
    images = torch.ones(2, 3, 28, 28)
    assert torch.allclose(mean_over_views(lambda x: x.mean(dim=(2, 3)), images, 5), torch.ones(2, 3))


def test_features_are_averaged_over_the_views():
    images = torch.rand(2, 1, 28, 28)
    mean = mean_over_views(lambda x: x[:, 0, 3, 4:6], images, 5)
    expected = torch.stack([images[:, 0, i, j:j + 2] for i, j in ((3, 4), (3, 3), (3, 5), (2, 4), (4, 4))]).mean(dim=0)
    assert torch.allclose(mean, expected)
