"""Optional packages by group."""

import pytest

from utils.errors import UserError
from utils.extras import extra, groups


def test_every_group_lists_packages():
    found = groups()
    assert {"serve", "sweep", "trackers", "umap"} <= set(found)
    assert all(found.values())


def test_a_missing_package_is_told_with_the_command_that_installs_its_group():
    with pytest.raises(UserError) as told:
        extra("no_such_package_anywhere", "serve", "serving a model")
    assert all(word in str(told.value) for word in ("serving a model", "no_such_package_anywhere", "pip install", "fastapi>=0.110"))


def test_an_installed_package_is_imported():
    assert extra("json", "serve", "serving").dumps([1]) == "[1]"
