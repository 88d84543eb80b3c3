"""Reader of sets with several domains: the same classes in one folder per domain, or in DomainNet's lists."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from utils.config import SplitSpec
from utils.data.folders import class_names, find_test_folder, read_class_folders, split_set
from utils.data.lists import label_names, list_set, read_list_file
from utils.data.notes import PassedOver, together
from utils.data.paths import Paths
from utils.data.types import ImageSet, Splits
from utils.data.walk import same_spelling, sub_folders
from utils.errors import UserError


def find_domains(root: Path) -> list[str]:
    """Names of the domains under `root`: those of <domain>_train.txt files, else its sub-folders; sorted."""
    if not os.path.isdir(root):
        return []
    listed = sorted(p.name.removesuffix("_train.txt") for p in root.glob("*_train.txt"))
    return listed or sub_folders(root, PassedOver(root))


def domain_class_names(root: Path, domains: Sequence[str] | None, split: SplitSpec | None) -> list[str]:
    """The class names of all domains by label, without a look at the images. Raises UserError."""
    domains = _known_domains(root, domains)
    if (root / f"{domains[0]}_train.txt").is_file():
        lists = [read_list_file(root / f"{domain}_{part}.txt", root, look=False) for domain in domains for part in ("train", "test")]
        return label_names(lists, str(root))[1]
    return _all_names(_train_folders(root, domains, split))


def read_domains(root: Path, domains: Sequence[str] | None, split: SplitSpec | None, *, selected: bool = False) -> Splits:
    """One sub-folder per domain, or DomainNet's list files; in the order of `domains` (None: sorted).

    Either `root`/<domain>_train.txt and <domain>_test.txt with lines "<domain>/<class>/<file> label", or
    `root`/<domain>/{train,val or test}/<class>/, or `root`/<domain>/<class>/ with a `split`.

    Raises:
        UserError: domains, lists or folders are missing or wrong.
    """
    domains = _known_domains(root, domains)
    if (root / f"{domains[0]}_train.txt").is_file():
        return _read_domain_lists(root, domains)
    return _read_domain_folders(root, domains, split, selected)


def _known_domains(root: Path, domains: Sequence[str] | None) -> list[str]:
    found = find_domains(root)
    if not found:
        raise UserError(f"folder {root} does not exist or has no domains; it should hold one sub-folder per domain")
    spelled = {same_spelling(domain): domain for domain in found}
    unknown = [domain for domain in domains or [] if same_spelling(domain) not in spelled]
    if unknown:
        raise UserError(f"dataset.domains: {', '.join(map(repr, unknown))} is not under {root}/, allowed: {', '.join(found)}")
    return [spelled[same_spelling(domain)] for domain in domains] if domains else found


def _read_domain_lists(root: Path, domains: list[str]) -> Splits:
    lists = {(domain, part): read_list_file(root / f"{domain}_{part}.txt", root) for domain in domains for part in ("train", "test")}
    numbers, names, notes = label_names(list(lists.values()), str(root))
    notes += [note for listed in lists.values() for note in listed.notes]
    train, test = (_joined([list_set(lists[domain, part], numbers, d) for d, domain in enumerate(domains)]) for part in ("train", "test"))
    return train.noted(*notes), test, names


def _train_folders(root: Path, domains: list[str], split: SplitSpec | None) -> list[Path]:
    """The folder of training classes of each domain. Raises UserError."""
    folders = [root / domain if split else root / domain / "train" for domain in domains]
    missing = [domain for domain, folder in zip(domains, folders, strict=True)
               if not folder.is_dir() or (not split and find_test_folder(root / domain) is None)]
    if missing:
        more = f" (and {', '.join(missing[1:])} too)" if len(missing) > 1 else ""
        raise UserError(f"domain {root / missing[0]}{more} needs train/ and val/ or test/ with one sub-folder of images per class; for one "
                        'folder of classes per domain add "split": {"test_fraction": 0.2}')
    return folders


def _all_names(folders: Sequence[Path]) -> list[str]:
    """The class names of all domains, sorted; one that is spelled in two Unicode ways counts once."""
    spelled: dict[str, str] = {}
    for name in sorted({name for folder in folders for name in class_names(folder)}):
        spelled.setdefault(same_spelling(name), name)
    return list(spelled.values())


def _read_domain_folders(root: Path, domains: list[str], split: SplitSpec | None, selected: bool) -> Splits:
    folders = _train_folders(root, domains, split)
    names, passed = _all_names(folders), PassedOver(root)
    sub_folders(root, passed)
    train_parts, test_parts, problems = [], [], []
    for number, (domain, folder) in enumerate(zip(domains, folders, strict=True)):
        try:
            images = _in_domain(read_class_folders(folder, names, selected=selected, passed=passed)[0], number)
            if split:
                images, test_images = split_set(images, split.test_fraction, split.seed, names)
            else:
                test_folder = find_test_folder(root / domain) or root
                test_images = _in_domain(read_class_folders(test_folder, names, selected=selected, passed=passed)[0], number)
        except UserError as error:
            problems.append(str(error))
            continue
        train_parts.append(images)
        test_parts.append(test_images)
    if problems:
        raise UserError(together(problems))
    notes = [note for part in (*train_parts, *test_parts) for note in part.notes]
    return _joined(train_parts).noted(*notes, *passed.notes()), _joined(test_parts), names


def _in_domain(images: ImageSet, domain: int) -> ImageSet:
    return replace(images, domains=np.full(len(images), domain))


def _joined(parts: list[ImageSet]) -> ImageSet:
    """The images of all `parts`, one after another."""
    paths = Paths.join([part.images for part in parts])
    return ImageSet(paths, np.concatenate([p.labels for p in parts]), np.concatenate([p.domains for p in parts]))
