"""From collected images to a newer run that answers; and what is left where that fails."""

from __future__ import annotations

import time

import pytest

from models.serve.collection import Collection
from models.serve.service import Service
from models.serve.uploads import Refused, Upload
from tests.models.serve.test_uploads import encoded
from tests.photos import draw
from utils.run.run_folder import RunFolder


def wait(service: Service) -> dict:
    end = time.monotonic() + 120
    while service.learning.running:
        assert time.monotonic() < end, service.lessons()
        time.sleep(0.02)
    return service.lessons()


def uploads(folder, name: str, count: int, split: str) -> list[Upload]:
    place = draw(folder / split, [name], count, split) / name
    return [Upload(file.name, file.read_bytes()) for file in sorted(place.iterdir())]


def test_a_class_that_was_collected_is_learned_in_a_process_and_the_newer_run_answers(service, run, tmp_path):
    yak = uploads(tmp_path, "yak", 3, "test")
    assert service.answering.ask(service.cut(yak[0]), 1).result(30).unknown
    service.collect("yak", uploads(tmp_path, "yak", 8, "train"))
    assert service.learn()["state"] == "running" and service.lessons()["waiting"] == {}
    with pytest.raises(Refused, match="learning already"):
        service.learn()
    told = wait(service)
    assert told["state"] == "done", told
    assert any("task 3/3 done" in line for line in told["lines"])
    assert service.model.run != run and RunFolder(service.model.run).status()["parent"]["run"] == str(run.resolve())
    assert sorted(service.model.classes) == ["ant", "bee", "cat", "yak"]
    found = [service.answering.ask(service.cut(image), 1).result(30) for image in yak]
    assert [(answer.names, answer.unknown) for answer in found] == [(["yak"], False)] * 3
    assert service.classes()["classes"][3] == {"name": "yak", "examples": 4}
    with pytest.raises(Refused, match="no images to learn from"):
        service.learn()


def test_what_could_not_be_learned_waits_again_and_the_model_goes_on_answering(service, run, monkeypatch):
    service.collect("zebra", [Upload("0.png", encoded())])
    service._extending[:] = ["--no_such_option"]
    service.learn()
    service.collect("zebra", [Upload("1.png", encoded("JPEG"))])
    told = wait(service)
    assert told["state"] == "failed" and any("--no_such_option" in line for line in told["lines"])
    assert told["waiting"] == {"zebra": 2} and not list(service.collection.folder.glob("task_*"))
    assert service.model.run == run and "zebra" not in service.model.classes


def test_a_process_that_cannot_be_started_leaves_the_images_waiting(service, monkeypatch):
    service.collect("pig", [Upload("pig.png", encoded())])
    waiting = service.lessons()["waiting"]

    def no_process(*args, **settings):
        raise OSError("no more processes")

    monkeypatch.setattr("models.serve.learning.subprocess.Popen", no_process)
    service.learn()
    told = wait(service)
    assert told["state"] == "failed" and told["waiting"] == waiting and any("no more processes" in line for line in told["lines"])


def test_stopping_the_server_stops_what_it_started(service):
    service.collect("zebra", [Upload("0.png", encoded())])
    service.learn()
    service.learning.stop()
    assert not service.learning.running and service.learning._process.returncode not in (None, 0)
    assert service.lessons()["state"] == "failed" and service.lessons()["waiting"] == {"zebra": 1}


def test_a_folder_of_images_takes_only_so_many_and_only_of_new_classes(tmp_path, monkeypatch):
    monkeypatch.setattr("models.serve.collection.MOST_IMAGES", 3)
    monkeypatch.setattr("models.serve.collection.MOST_BYTES", 100)
    collection = Collection(tmp_path)
    collection.add("key", [(b"12345", ".png")] * 2, known=["bus"])
    with pytest.raises(Refused, match="allowed: 3"):
        collection.add("key", [(b"1", ".png")] * 2, known=["bus"])
    with pytest.raises(Refused, match="would take more"):
        collection.add("lock", [(b"1" * 91, ".png")], known=["bus"])
    with pytest.raises(Refused, match="known already"):
        collection.add("cle\u0301", [(b"1", ".png")], known=["cl\u00e9"])
    assert collection.counts() == {"key": 2}
    place = collection.hand_over(known=[])
    assert place == tmp_path.resolve() / "task_1" and collection.counts() == {}
    collection.add("key", [(b"67", ".jpg")], known=[])
    for folder in (place, place / "key"):
        (folder / ".DS_Store").write_bytes(b"of a file browser")
    collection.take_back(place)
    assert sorted(file.read_bytes() for file in (collection.waiting / "key").iterdir()) == [b"12345", b"12345", b"67"]


def test_images_that_came_while_their_class_was_learned_are_set_aside(tmp_path):
    collection = Collection(tmp_path)
    collection.add("key", [(b"1", ".png"), (b"2", ".png")], known=[])
    with pytest.raises(Refused, match=r"key: known by now, so its later images lie in .*known; .*--update"):
        collection.hand_over(known=["key"])
    assert collection.counts() == {} and len(list((tmp_path / "known" / "key").iterdir())) == 2
    collection.add("key", [(b"3", ".png")], known=[])
    collection.add("lock", [(b"4", ".png")], known=[])
    place = collection.hand_over(known=["key"])
    assert [each.name for each in place.iterdir()] == ["lock"] and len(list((tmp_path / "known" / "key").iterdir())) == 3
