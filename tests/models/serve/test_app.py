"""Over HTTP: answers as `predict` gives them, and a clear refusal of everything else."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from models.serve.service import Service
from models.serve.uploads import Limits
from models.tools.predict import load_learner
from tests.models.serve.test_uploads import HOSTILE, encoded, png_that_claims
from tests.photos import draw

pytest.importorskip("fastapi", reason="pip install -r requirements-dev.txt: nothing is served here")
pytest.importorskip("httpx", reason="pip install -r requirements-dev.txt: nothing is served here")
from fastapi.testclient import TestClient

from models.serve import forms
from models.serve.app import make_app

HERE = "http://127.0.0.1:8000"
PNG = {"Content-Type": "image/png"}
FORM = {"Content-Type": "multipart/form-data; boundary=b"}


@pytest.fixture
def client(service: Service) -> Iterator[TestClient]:
    with TestClient(make_app(service), base_url=HERE, raise_server_exceptions=False) as client:
        yield client


def part(name: str, data: bytes, field: str = "image") -> bytes:
    disposition = f'Content-Disposition: form-data; name="{field}"; filename="{name}"'
    return b"--b\r\n" + disposition.encode() + b"\r\nContent-Type: image/png\r\n\r\n" + data + b"\r\n"


def test_answers_are_those_of_predict_and_say_what_is_unknown(client, run, tmp_path):
    files = [draw(tmp_path / name, [name], 1, "test") / name / "0.png" for name in ("ant", "bee", "cat", "yak")]
    expected = load_learner(run, device="cpu").predict(files, 2, known_share=0.99)
    form = [("image", (f"../../{file.parent.name}.png", file.read_bytes())) for file in files]
    reply = client.post("/predict?top=2", files=form)
    assert reply.status_code == 200, reply.text
    images = reply.json()["images"]
    assert [image["name"] for image in images] == ["ant.png", "bee.png", "cat.png", "yak.png"]
    assert [[each["name"] for each in image["classes"]] for image in images] == expected.names
    assert [[each["probability"] for each in image["classes"]] for image in images] == pytest.approx(expected.probabilities.numpy())
    assert [image["unknown"] for image in images] == expected.unknown == [False, False, False, True]
    one = client.post("/predict", content=files[2].read_bytes(), headers=PNG).json()["images"]
    assert one[0]["classes"][0]["name"] == "cat" and len(one[0]["classes"]) == 3


def test_health_classes_and_examples_say_what_is_served(client, run):
    health = client.get("/health").json()
    assert health["status"] == "ok" and health["classes"] == 3 and health["model"] == f"run/{run.name}"
    found = client.get("/classes").json()
    assert {(each["name"], each["examples"]) for each in found["classes"]} == {("ant", 4), ("bee", 4), ("cat", 4)}
    picture = client.get("/examples/2/3.png")
    assert picture.headers["content-type"] == "image/png" and picture.content.startswith(b"\x89PNG")
    for path in ("/examples/3/0.png", "/examples/0/4.png", "/examples/-1/0.png", "/examples/0/-1.png"):
        assert client.get(path).status_code == 404, path


@pytest.mark.parametrize("case", HOSTILE)
def test_every_hostile_image_is_a_4xx_in_json(case, client):
    data, status = HOSTILE[case]
    for reply in (client.post("/predict", content=data, headers=PNG),
                  client.post("/predict", files=[("image", ("good.png", encoded())), ("image", ("photo.png", data))])):
        assert reply.status_code == status and list(reply.json()) == ["detail"]
    assert "photo.png" in reply.json()["detail"]


REQUESTS = {
    "nothing": (b"", {}, 415),
    "json": (b"{}", {"Content-Type": "application/json"}, 415),
    "a form of text": (b"image=abc", {"Content-Type": "application/x-www-form-urlencoded"}, 415),
    "compressed": (encoded(), {**PNG, "Content-Encoding": "gzip"}, 415),
    "too many bytes": (b"\x89PNG" + bytes(300_000), PNG, 413),
    "no boundary": (part("a.png", b"x"), {"Content-Type": "multipart/form-data"}, 400),
    "another boundary": (part("a.png", b"x"), {"Content-Type": "multipart/form-data; boundary=other"}, 400),
    "no end": (part("a.png", encoded()), FORM, 400),
    "an end inside a part": (part("a.png", encoded())[:-20], FORM, 400),
    "no file": (b'--b\r\nContent-Disposition: form-data; name="image"\r\n\r\nabc\r\n--b--\r\n', FORM, 400),
    "no part": (b"--b--\r\n", FORM, 400),
    "a part without a header": (b"--b\r\n\r\nabc\r\n--b--\r\n", FORM, 400),
    "noise": (bytes(range(256)) * 20, FORM, 400),
    "too many images": (part("a.png", encoded(size=(2, 2))) * 9 + b"--b--\r\n", FORM, 400),
    "thousands of parts": (b'--b\r\nContent-Disposition: form-data; name="x"\r\n\r\n1\r\n' * 3000 + b"--b--\r\n", FORM, 400),
    "a long field": (b'--b\r\nContent-Disposition: form-data; name="class"\r\n\r\n' + b"x" * 9000 + b"\r\n--b--\r\n", FORM, 400),
}


@pytest.mark.parametrize("case", REQUESTS)
@pytest.mark.parametrize("path", ["/predict", "/collect"])
def test_every_hostile_request_is_a_4xx_in_json(path, case, client):
    data, headers, status = REQUESTS[case]
    reply = client.post(path, content=data, headers=headers)
    assert reply.status_code == status and list(reply.json()) == ["detail"], reply.text


def test_a_wrong_path_method_or_number_is_a_4xx_in_json(client):
    for method, path, status in (("GET", "/nothing", 404), ("GET", "/predict", 405), ("DELETE", "/learn", 405), ("GET", "/../main.py", 404),
                                 ("GET", "/examples/a/b.png", 422), ("GET", "/docs", 404), ("GET", "/openapi.json", 404)):
        reply = client.request(method, path)
        assert reply.status_code == status and isinstance(reply.json()["detail"], str), (path, reply.text)
    for top in ("0", "x", "-3", "99999999"):
        reply = client.post(f"/predict?top={top}", content=encoded(), headers=PNG)
        assert reply.status_code == 422 and reply.json()["detail"].startswith("top: got")


def test_a_request_may_be_as_large_as_was_allowed_whatever_all_together_may_be(model):
    service = Service(model, Limits(bytes=2 * forms.MOST_BYTES_AT_ONCE))
    with TestClient(make_app(service), base_url=HERE) as client:
        assert client.post("/predict", content=iter([encoded()]), headers=PNG).status_code == 200, "its length is told by nothing"
    service.close()


def test_predicting_writes_nothing(client, tmp_path, monkeypatch):
    def written(*arguments, **more):
        raise AssertionError("an upload went to the disk")

    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "rollover", written)
    monkeypatch.setattr(os, "replace", written)
    before = sorted(Path.cwd().iterdir()), sorted(tmp_path.rglob("*"))
    data = encoded("BMP", (200, 200))  # 120 kB
    for reply in (client.post("/predict", files={"image": ("a.bmp", data)}), client.post("/predict", content=data, headers=PNG)):
        assert reply.status_code == 200
    assert client.post("/predict", content=png_that_claims(10**5, 10**5), headers=PNG).status_code == 413
    assert before == (sorted(Path.cwd().iterdir()), sorted(tmp_path.rglob("*")))


def test_other_pages_and_names_that_were_made_to_point_here_are_refused(client):
    def status(method: str = "POST", path: str = "/predict", **headers: str) -> int:
        return client.request(method, path, content=encoded(), headers={**PNG, **{k.replace("_", "-"): v for k, v in headers.items()}}
                              ).status_code

    assert status() == status(Origin=HERE) == status(Origin=HERE, Sec_Fetch_Site="same-origin") == 200
    for origin in ("http://evil.example", "null", "http://127.0.0.1:9000", "https://127.0.0.1.evil.example:8000", "file://", "", "http://["):
        assert status(Origin=origin) == 403, origin
    assert status(Sec_Fetch_Site="cross-site") == status(Sec_Fetch_Site="same-site") == 403
    for host in ("evil.example", "evil.example:8000", "127.0.0.1.evil.example", "10.0.0.1:8000", "localhost.evil.example", "", "[", "a b"):
        assert status("GET", "/health", Host=host) == status("GET", "/", Host=host) == 403, host
    for host in ("localhost", "localhost:8000", "127.0.0.1", "[::1]:8000"):
        assert status("GET", "/health", Host=host) == 200, host
    for path in ("/collect", "/learn"):
        assert status("POST", path, Origin="http://evil.example") == 403
    assert "access-control-allow-origin" not in client.get("/classes", headers={"Origin": "http://evil.example"}).headers


def test_a_server_that_others_reach_answers_to_addresses_and_to_the_names_it_was_given(service):
    client = TestClient(make_app(service, loopback=False, names=["Box.example"]), base_url="http://10.0.0.1:8000")
    for host, status in (("10.0.0.1", 200), ("box.example:80", 200), ("localhost", 200), ("evil.example", 403)):
        assert client.get("/health", headers={"Host": host}).status_code == status, host


def test_the_page_may_load_nothing_from_elsewhere_and_be_framed_by_nobody(client, service):
    reply = client.get("/")
    policy = reply.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert "http://" not in reply.text and "https://" not in reply.text and "//cdn" not in reply.text
    assert str(service.collection.waiting) in reply.text


def test_images_of_new_classes_are_kept_only_if_that_was_allowed(service, client, model, tmp_path):
    files = [("image", (f"../{number}.png", encoded("JPEG"))) for number in range(3)]
    for _ in range(2):
        reply = client.post("/collect", data={"class": "key"}, files=files)
        assert reply.status_code == 200, reply.text
    assert reply.json()["waiting"] == {"key": 6}
    assert sorted(file.name for file in (tmp_path / "collected" / "waiting" / "key").iterdir()) == [f"000{n}.jpg" for n in range(1, 7)]
    for name, status in (("../out", 422), ("", 422), (".x", 422), ("bee", 409)):
        assert client.post("/collect", data={"class": name}, files=files).status_code == status, name
    assert client.post("/collect", data={"class": "bad"}, files=[*files, ("image", ("x.png", b"no image"))]).status_code == 415
    assert client.get("/learn").json()["waiting"] == {"key": 6}, "of a refused request nothing is kept"

    alone = Service(model, service.limits)
    closed = TestClient(make_app(alone), base_url=HERE)
    assert closed.post("/collect", data={"class": "key"}, files=files).status_code == closed.post("/learn").status_code == 403
    assert "--collect" in closed.post("/learn").json()["detail"] and 'id="collect"' not in closed.get("/").text
    alone.close()
