"""The server's page in a browser: an image that is dropped is answered, names are text, and nothing breaks the page's own rule."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from models.serve.command import listening
from models.serve.service import Service
from models.serve.uploads import Upload
from tests.models.serve.test_uploads import encoded

pytest.importorskip("fastapi", reason="pip install -r requirements-dev.txt: nothing is served here")
pytest.importorskip("uvicorn", reason="pip install -r requirements-dev.txt: nothing is served here")
import uvicorn

from models.serve import app as app_module
from models.serve.app import make_app

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here; the page is not opened (apt-get install chromium)")
MARKUP = "<img src=x onerror=document.title=1>"
PROBE = """
async function settled(there) { while (!there()) await new Promise((done) => setTimeout(done, 50)); }
(async () => {
  await settled(() => document.querySelectorAll("#classes li").length === 3);
  const picture = await (await fetch("/examples/2/0.png")).blob(), dropped = new DataTransfer();
  dropped.items.add(new File([picture], "<b>cat</b>.png", { type: "image/png" }));
  dropped.items.add(new File(["no image"], "broken.png", { type: "image/png" }));
  document.getElementById("drop").dispatchEvent(new DragEvent("drop", { dataTransfer: dropped, cancelable: true }));
  await settled(() => document.querySelector("#answers .error") && document.querySelectorAll("#answers .rank").length === 3);
  const taught = new DataTransfer();
  for (let n = 0; n < 10; n++) taught.items.add(new File([picture, new Uint8Array(30000)], `${n}.png`, { type: "image/png" }));
  document.getElementById("lessons").files = taught.files;
  document.getElementById("name").value = "yak";
  document.getElementById("collect").requestSubmit();
  await settled(() => /wait to be learned|then: /.test(document.getElementById("told").textContent));
  await settled(() => [...document.images].every((image) => image.complete));
  document.title = JSON.stringify({ inner: innerWidth, page: document.documentElement.scrollWidth,
    verdict: document.querySelectorAll("#answers h2")[1].textContent, error: document.querySelector("#answers .error").textContent,
    pictures: [...document.images].map((image) => image.naturalWidth),
    waiting: [...document.querySelectorAll("#waiting li")].map((each) => each.textContent) });
})();
"""


@contextmanager
def served(service: Service) -> Iterator[str]:
    """The server's address, while it runs in a thread."""
    with listening("127.0.0.1", 0) as sock:
        server = uvicorn.Server(uvicorn.Config(make_app(service), log_config=None, access_log=False, ws="none"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{sock.getsockname()[1]}/"
        finally:
            server.should_exit = True
            thread.join()


def test_the_page_answers_what_is_dropped_on_it_and_shows_names_as_text(service, tmp_path, monkeypatch):
    service.collect(MARKUP, [Upload("a.png", encoded())])
    script = (app_module.TEMPLATES / "page.js").read_text(encoding="utf-8")
    for file in app_module.TEMPLATES.iterdir():
        shutil.copy(file, tmp_path / file.name)
    (tmp_path / "page.js").write_text(script + PROBE, encoding="utf-8")  # so the probe keeps to the page's rule too
    monkeypatch.setattr(app_module, "TEMPLATES", Path(tmp_path))
    with served(service) as address:
        command = [CHROMIUM, "--no-sandbox", "--headless", "--disable-gpu", "--virtual-time-budget=20000", "--window-size=500,900",
                   f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", "--dump-dom", address]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    title = re.search(r"<title>(\{.*?\})</title>", done.stdout, re.DOTALL)
    assert title, done.stderr[-2000:]
    found = json.loads(title[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    assert found["verdict"] == "cat" and "broken.png" in found["error"]
    assert found["page"] <= found["inner"] and len(found["pictures"]) >= 8
    assert sum(width == 0 for width in found["pictures"]) == 1, "only the broken upload shows nothing"
    assert found["waiting"] == [f"{MARKUP}: 1 images", "yak: 10 images"], "of ten images each request holds as many as it may"
    violations = [line for line in done.stderr.splitlines() if "CONSOLE" in line and "415" not in line]
    assert not violations
