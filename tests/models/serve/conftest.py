"""One tiny run that every test here serves: ant, bee and cat, learned in two tasks, on a backbone that does not move."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import trainer
from models.serve.answers import Model
from models.serve.collection import Collection
from models.serve.service import Service
from models.serve.uploads import Limits
from models.tools.predict import load_learner
from tests.photos import config_of
from tests.run_files import only_run


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("served")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "write_report", lambda result, folder: None)
        config = config_of(out / "images", "slca", [["ant", "bee"], ["cat"]], bcb_lrscale=0.0, epochs=1)
        trainer.train(config, out, name="run")
    return only_run(out / "run")


def load(run: Path) -> Model:
    return Model(load_learner(run, device="cpu"), run, known_share=0.99)


@pytest.fixture(scope="session")
def model(run: Path) -> Model:
    return load(run)


@pytest.fixture
def service(model: Model, tmp_path: Path) -> Iterator[Service]:
    """With small limits, and a folder where images of new classes go."""
    limits = Limits(bytes=200_000, images=8, pixels=40_000)
    service = Service(model, limits, Collection(tmp_path / "collected"), load, ["--set", "epochs=1", "--device", "cpu"])
    yield service
    service.close()
