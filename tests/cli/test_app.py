"""`visglm app` starts Streamlit on the page, on this machine only unless told otherwise."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from visglm.cli import app, main
from visglm.errors import MissingDependencyError


@pytest.fixture
def started(monkeypatch):
    """The command lines that would have been started."""
    calls: list[list[str]] = []
    monkeypatch.setattr(app, "serve", lambda words: calls.append(words) or 0)
    monkeypatch.setattr(app, "require", lambda *names: None)
    monkeypatch.setattr(app, "bind", lambda host, port: socket.socket())
    return calls


def test_it_listens_on_this_machine_only(started):
    assert main(["app"]) == 0
    (words,) = started
    assert words[:4] == [sys.executable, "-m", "streamlit", "run"]
    assert words[words.index("--server.address") + 1] == "127.0.0.1"
    assert words[words.index("--") :] == ["--"]


def test_what_it_is_given_reaches_the_page(started, tmp_path):
    chosen = ["--model", "a", "--model", "b c", "--quantize", "int8", "--allow-urls"]
    chosen += ["--max-pixels", "100000000", "--library", str(tmp_path), "--no-history"]
    main(["app", *chosen, "--port", "9", "--host", "::1"])
    words = started[0]
    assert words[words.index("--") + 1 :] == chosen
    assert words[5:9] == ["--server.address", "::1", "--server.port", "9"]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.8.8.8"])
def test_for_this_machine_alone_nothing_is_said(started, capsys, host):
    main(["app", "--host", host])
    assert capsys.readouterr().err == "" and started


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "my-machine"])
def test_beyond_this_machine_it_names_what_is_open(started, capsys, host):
    main(["app", "--host", host, "--port", "9"])
    told = capsys.readouterr().err
    assert f"{host} port 9" in told and "password" in told and started
    assert "teach" in told and "--no-history" in told and "--allow-urls" not in told
    main(["app", "--host", host, "--allow-urls", "--no-history", "--library", "notes"])
    told = capsys.readouterr().err
    assert "ask notes" in told and "--allow-urls" in told and "talks" not in told


def test_the_page_is_where_it_looks():
    assert app.SCRIPT.is_file() and (app.SCRIPT.parent / ".streamlit/config.toml").is_file()


def test_without_the_repository_it_says_where_the_page_is(started, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(app, "SCRIPT", tmp_path / "demos/server.py")
    assert main(["app"]) == 1
    assert "Clone the repository" in capsys.readouterr().err and not started


def test_without_streamlit_it_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "streamlit", None)
    with pytest.raises(MissingDependencyError, match=r"visglm\[demo\]"):
        app.run(None)


SERVER = """
import os, signal, sys, time
if {deaf}:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
else:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: sys.exit(40 + number))
open("pid.part", "w").write(str(os.getpid()))
os.rename("pid.part", "pid")
time.sleep(100)
"""


@pytest.mark.skipif(os.name != "posix", reason="signals like these are not sent elsewhere")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("deaf", [False, True])
def test_what_ends_it_ends_the_server(tmp_path, number, deaf):
    (tmp_path / "streamlit").mkdir()
    (tmp_path / "streamlit/__init__.py").touch()
    (tmp_path / "streamlit/__main__.py").write_text(SERVER.format(deaf=deaf))
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{Path(__file__).parents[2]}"}
    process = subprocess.Popen([sys.executable, "-m", "visglm", "app", "--port", "0"], cwd=tmp_path, env=environment)
    try:
        while not (tmp_path / "pid").exists() and process.poll() is None:
            time.sleep(0.02)
        server = int((tmp_path / "pid").read_text())
        process.send_signal(number)
        assert process.wait(60) == (128 if deaf else 40) + number
        with pytest.raises(ProcessLookupError):
            os.kill(server, 0)
    finally:
        process.kill()


def test_its_exit_status_is_the_servers():
    assert app.serve([sys.executable, "-c", "raise SystemExit(5)"]) == 5


def test_a_server_answers_in_the_place_of_models_and_its_key_is_no_word_that_others_see(monkeypatch, tmp_path, capsys):
    calls = []
    monkeypatch.setattr(app, "serve", lambda words, **environment: calls.append((words, environment)) or 0)
    monkeypatch.setattr(app, "require", lambda *names: None)
    (tmp_path / "key").write_text("# mine\n a-key-of-the-tests-1 \n")
    server = ["--server", "http://127.0.0.1:8000"]
    assert main(["app", *server, "--api-key-file", str(tmp_path / "key"), "--host", "0.0.0.0", "--port", "0"]) == 0
    (words, environment), told = calls.pop(), capsys.readouterr().err
    assert words[words.index("--") + 1 :] == server and environment == {"VISGLM_API_KEY": "a-key-of-the-tests-1"}
    assert "teach" not in told and "documents" not in told and "their talks" in told
    assert main(["app", *server, "--port", "0"]) == 0 and calls.pop()[1] == {}
    for wrong, said in (
        ([*server, "--model", "a"], "the models are the server's"),
        ([*server, "--library", "a"], "--library is asked"),
        (["--api-key", "a"], "for the server that --server names"),
        ([*server, "--api-key-file", "nowhere"], "nowhere cannot be read"),
        (["--server", "127.0.0.1:8000"], "must be such as http://127.0.0.1:8000; got 127.0.0.1:8000"),
        ([*server, "--api-key", "schlüssel"], "printable ASCII characters"),
        (["--port", "70000"], "--port must be"),
        (["--max-pixels", "0"], "--max-pixels must be"),
        (["--host", "192.0.2.1"], "Give as --host an address of this machine"),
    ):
        assert main(["app", *wrong]) == 1 and said in capsys.readouterr().err
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["app", "--port", port]) == 1
    assert f"127.0.0.1 port {port} cannot be listened on" in capsys.readouterr().err and not calls
