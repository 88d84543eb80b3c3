"""The script's pure parts, and the two files that it made."""

import numpy as np
import pytest

from benchmarks.make_icon_streams import (
    CONCEPTS,
    LICENCES,
    MAX_VARIANTS,
    NEAR,
    OUT,
    SAME_DESIGNER,
    STYLES,
    Drawing,
    choose_test_designers,
    concepts_in_all_styles,
    difference,
    find_drawings,
    pack,
    rasterise,
    read_name,
    select,
    usable,
    write_readme,
)


@pytest.fixture(scope="module", params=["icons50", "icons_styles"])
def arrays(request):
    with np.load(OUT / f"{request.param}.npz") as stored:
        return dict(stored) | {"stream": request.param}


def listed_sets() -> dict[str, tuple[str, str]]:
    """Icon set -> author and licence, from the table in exps/streams/README.md."""
    rows = [line.split("|") for line in (OUT / "README.md").read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    texts = {row[1].strip(" `"): [cell.strip().removeprefix("[").split("](")[0] for cell in row[3:5]] for row in rows if len(row) == 8}
    return {icon_set: (author, licence) for icon_set, (author, licence) in texts.items()}


# Names ---------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("icon_set, name, expected", [
    ("tabler", "home", ("home", "outline")), ("tabler", "home-filled", ("home", "filled")), ("any", "home", ("home", "")),
    ("any", "home-2-line-duotone", ("home", "duotone")), ("ic", "baseline-shopping-bag", ("shopping-bag", "filled")),
    ("fluent", "book-24-regular", ("book", "outline")), ("any", "outline-sharp-key", ("key", "sharp")),
    ("streamline-plump", "key-solid", ("key", "rounded")), ("pixelarticons", "key-sharp", ("key", "")),
    ("any", "check-circle", ("check-circle", ""))])
def test_a_name_tells_concept_and_style(icon_set, name, expected):
    assert read_name(icon_set, name) == expected


def test_only_single_coloured_sets_under_a_free_licence_are_used():
    info = {"license": {"spdx": "MIT"}, "palette": False, "category": "UI 24px"}
    assert usable("tabler", info)
    assert not usable("tabler", info | {"license": {"spdx": "CC-BY-SA-4.0"}}) and not usable("tabler", info | {"license": {"title": "?"}})
    assert not usable("tabler", info | {"palette": True}) and not usable("tabler", info | {"category": "Logos"})
    assert not usable("fa-brands", info)
    assert not any("SA" in licence or "NC" in licence or "GPL" in licence for licence in LICENCES)


def test_drawings_come_from_icons_and_from_aliases_that_do_not_turn_them(tmp_path):
    (tmp_path / "json").mkdir()
    (tmp_path / "json" / "any.json").write_text(
        '{"icons": {"house": {"body": "<g/>"}, "key-solid": {"body": "<p/>", "width": 20}, "tree": {"body": "<t/>"}}, "height": 24, '
        '"aliases": {"home": {"parent": "house"}, "lock": {"parent": "house", "rotate": 1}, "user": {"parent": "missing"}}}')
    home, key = find_drawings(tmp_path, ["any"])
    assert (home.name, home.concept, key.name, key.concept, key.style) == ("home", "home", "key-solid", "key", "filled")
    assert 'viewBox="0 0 16 24"' in home.svg and 'viewBox="0 0 20 24"' in key.svg and "<p/>" in key.svg


# Duplicates and split ------------------------------------------------------------------------------------------------

def test_difference_is_the_share_of_the_common_ink():
    a = np.array([[100, 0], [200, 50]], dtype=np.uint8)
    b = np.array([[60, 40], [200, 50]], dtype=np.uint8)
    assert difference(a, np.stack([a, b, 0 * a])) == pytest.approx([0, 80 / 390, 1])
    assert difference(0 * a, (0 * a)[None]) == 0  # two blank images


def test_of_nearly_equal_images_the_first_in_order_stays():
    images = np.zeros((4, 10, 10), dtype=np.uint8)
    images[0, :5] = images[1, :5] = images[2, :5] = 200
    images[1, 0, 0] = 0  # 1 of 50 pixels: 2 %
    images[2, 0] = 0  # 10 of 50: 20 %
    images[3, 5:] = 200  # as much ink, elsewhere
    assert select(images, ["a", "b", "c", "d"], [0, 1, 2, 3]).tolist() == [0, 2, 3]
    assert select(images, ["a", "b", "c", "d"], [3, 1, 2, 0]).tolist() == [1, 2, 3]


def test_a_group_gives_three_images_and_a_dropped_twin_does_not_count():
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 8), dtype=np.uint8)
    images[1] = images[0]
    assert select(images, ["a"] * 5 + ["b"], range(6)).tolist() == [0, 2, 3, 5]


def test_every_third_designer_by_size_gives_the_test_images():
    designers = ["big"] * 9 + ["mid"] * 5 + ["low"] * 3 + ["one", "two"]
    assert choose_test_designers(designers, 0) == {"big", "one"}
    assert choose_test_designers(designers, 2) == {"low"}


def test_a_concept_of_the_styles_has_training_images_in_each():
    full = [Drawing("set", "n", "key", style, "") for style in STYLES for _ in range(3)]
    short = [Drawing("set", "n", "leaf", style, "") for style in STYLES for _ in range(3)]
    is_test = np.array([False] * len(full) + [False] * 16 + [True] * 2)  # leaf keeps one training image of its last style
    assert concepts_in_all_styles(full + short, is_test) == ["key"]


def test_packed_arrays_say_of_each_image_what_it_is():
    drawings = [Drawing("b", "key", "key", "outline", ""), Drawing("a", "sun", "sun", "sharp", ""), Drawing("b", "sun", "sun", "", "")]
    images = np.arange(3, dtype=np.uint8)[:, None, None] * np.ones((28, 28), np.uint8)
    arrays = pack(drawings, images, np.array([False, True, False]), ["key", "sun"], STYLES)
    assert arrays["x_train"].shape == (1, 28, 28) and arrays["y_test"].tolist() == [1]
    assert arrays["set_names"].tolist() == ["a", "b"] and arrays["sets_train"].tolist() == [1] and arrays["icons_test"].tolist() == ["sun"]
    assert STYLES[arrays["domains_test"][0]] == "sharp"
    assert len(pack(drawings, images, np.array([False, True, False]), ["key", "sun"])["y_train"]) == 2  # the third has no style


def test_the_readme_names_author_licence_and_split():
    arrays = {"class_names": np.array(["key"]), "set_names": np.array(["ours"]), "y_train": np.zeros(0), "y_test": np.zeros(1),
              "sets_train": np.zeros(0, int), "sets_test": np.zeros(1, int)}
    about = {"ours": {"name": "Our icons", "author": {"name": "Ann"}, "license": {"spdx": "MIT", "url": "https://example.org"}}}
    assert "| `ours` | Our icons | Ann | [MIT](https://example.org) | **1** |  |" in write_readme({"icons50": arrays, "icons_styles": {
        key: value[:0] for key, value in arrays.items()}}, about)


def test_a_drawing_is_fitted_bright_on_black():
    pytest.importorskip("resvg_py")
    svg = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16" width="16" height="16">{}</svg>'
    image = rasterise(svg.format('<path fill="currentColor" d="M4 6h8v4H4z"/>'))  # twice as wide as high
    rows, columns = np.flatnonzero(image.any(1)), np.flatnonzero(image.any(0))
    assert image.shape == (28, 28) and image.dtype == np.uint8 and image.max() == 255
    assert (columns[0], columns[-1], rows[0], rows[-1]) == (2, 25, 8, 19)
    assert rasterise(svg.format("")) is None


# The shipped files ---------------------------------------------------------------------------------------------------

def test_the_files_are_small_and_hold_grey_28_pixel_images_with_bright_ink(arrays):
    assert (OUT / f"{arrays['stream']}.npz").stat().st_size < 4e6
    for split in ("train", "test"):
        images = arrays[f"x_{split}"]
        assert images.dtype == np.uint8 and images.shape[1:] == (28, 28)
        assert len(images) == len(arrays[f"y_{split}"]) == len(arrays[f"sets_{split}"]) == len(arrays[f"icons_{split}"])
        assert (images[:, [0, -1]] == 0).all() and images.mean() < 128 and (images.max((1, 2)) > 0).all()


def test_the_files_have_the_stated_classes_and_counts(arrays):
    counts = [len(arrays["y_train"]), len(arrays["y_test"])]
    classes = arrays["class_names"].tolist()
    if arrays["stream"] == "icons50":
        assert counts == [3536, 1945] and classes == CONCEPTS and len(set(classes)) == 50
        assert np.bincount(arrays["y_train"]).min() >= 30 and np.bincount(arrays["y_test"]).min() >= 15
    else:
        assert counts == [2207, 1037] and len(classes) == 37 and set(classes) <= set(CONCEPTS)
        assert arrays["domain_names"].tolist() == list(STYLES)
        assert np.unique(arrays["domains_train"] * 37 + arrays["y_train"], return_counts=True)[1].min() >= 2
        assert len(np.unique(arrays["domains_train"] * 37 + arrays["y_train"])) == 37 * 6
        assert len(np.unique(arrays["domains_test"])) == 6


def test_no_test_set_nor_its_designer_gives_a_training_image(arrays):
    train, test = (set(arrays["set_names"][arrays[f"sets_{split}"]].tolist()) for split in ("train", "test"))
    assert train and test and not train & test
    author = {icon_set: SAME_DESIGNER.get(name, name) for icon_set, (name, _) in listed_sets().items()}
    assert train | test <= author.keys()
    assert not {author[s] for s in train} & {author[s] for s in test}


def test_no_two_images_are_identical_or_nearly_so(arrays):
    images = np.concatenate([arrays["x_train"], arrays["x_test"]])
    assert len(np.unique(images.reshape(len(images), -1), axis=0)) == len(images)
    training = arrays["x_train"]
    for image in arrays["x_test"][::25]:
        assert difference(image, training).min() > NEAR


def test_a_set_gives_at_most_three_images_of_a_class(arrays):
    for split in ("train", "test"):
        pairs = arrays[f"sets_{split}"] * len(arrays["class_names"]) + arrays[f"y_{split}"]
        assert np.bincount(pairs).max() <= MAX_VARIANTS


def test_every_licence_in_the_list_is_an_allowed_one():
    licences = {licence for _, licence in listed_sets().values()}
    assert len(listed_sets()) > 100 and licences <= LICENCES
