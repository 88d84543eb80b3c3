"""`python main.py serve` as it is typed."""

from __future__ import annotations

import re
import socket
import sys

import pytest

from main import main
from models.serve.command import is_loopback, listening
from utils.command_line import serve_arguments


@pytest.mark.parametrize(("options", "message"), [
    (["--unknown", "1"], "--unknown: got 1, allowed: above 0"),
    (["--port", "70000"], "--port: got 70000, allowed: 0 to 65535"),
    (["--max_images", "0"], "--max_images: got 0, allowed: 1 or more"),
    (["--collect", "new", "--host", "0.0.0.0"], "--collect: got --host 0.0.0.0, which other machines reach"),
    (["--collect", "new", "--after_task", "1", "--port", "0"], "leave --after_task out"),
    (["--collect", __file__, "--port", "0"], "test_command.py is no folder; name one"),
    (["--host", "no such host", "--port", "0"], "nothing can listen there"),
])
def test_mistakes_are_told_before_anything_is_served(options, message, run, capsys):
    pytest.importorskip("uvicorn", reason="pip install -r requirements-dev.txt: nothing is served here")
    assert main(["serve", str(run), *options]) == 2
    told = capsys.readouterr()
    assert message in told.err and "Traceback" not in told.err


def test_it_listens_on_this_machine_alone_unless_told_otherwise():
    assert serve_arguments(["run"]).host == "127.0.0.1" and serve_arguments(["run"]).collect is None
    assert all(map(is_loopback, ("127.0.0.1", "127.1.2.3", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "example.org")))


def test_a_port_that_is_taken_is_told_with_the_way_out(run, capsys):
    pytest.importorskip("uvicorn", reason="pip install -r requirements-dev.txt: nothing is served here")
    with listening("127.0.0.1", 0) as taken:
        assert isinstance(taken, socket.socket)
        assert main(["serve", str(run), "--port", str(taken.getsockname()[1])]) == 2
    assert re.search(r"nothing can listen there \(.*in use.*\); name another --port", capsys.readouterr().err)


def test_without_its_packages_the_command_that_installs_them_is_told(run, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["serve", str(run)]) == 2
    assert "pip install" in capsys.readouterr().err
