"""`visglm serve`: on this machine alone unless somebody decided who else may ask."""

from __future__ import annotations

import socket
import sys

import pytest

from visglm.cli import build_parser, main
from visglm.errors import MissingDependencyError

KEY = "a-key-of-the-tests-1"


@pytest.fixture
def served(monkeypatch, vlm):
    """What would have been served: services and sockets."""
    found = []
    monkeypatch.setattr("visglm.cli.serve.load_model", lambda arguments: vlm)
    monkeypatch.setattr("visglm.serve.running.run", lambda service, sock: found.append((service, sock.getsockname())))
    monkeypatch.delenv("VISGLM_API_KEYS", raising=False)
    return found


def test_it_listens_on_this_machine_only_and_says_where(served, capsys):
    assert main(["serve", "--port", "0"]) == 0
    [(service, (host, port))] = served
    assert host == "127.0.0.1" and not service.settings.keys and not service.settings.picture_hosts
    assert f"http://127.0.0.1:{port}/v1" in capsys.readouterr().err
    assert main(["serve", "--host", "localhost", "--port", "0"]) == 0


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "my-machine"])
def test_elsewhere_it_needs_a_key_or_a_word(served, capsys, host):
    assert main(["serve", "--host", host, "--port", "0"]) == 1
    told = capsys.readouterr().err
    assert "--api-key-file" in told and "--no-auth" in told and not served


def test_with_a_key_from_wherever_it_listens_elsewhere(served, tmp_path, monkeypatch):
    file = tmp_path / "keys"
    file.write_text(f"# ours\n{KEY}\n\n{KEY}-2\n")
    elsewhere = ["serve", "--host", "0.0.0.0", "--port", "0"]
    assert main([*elsewhere, "--api-key-file", str(file)]) == 0
    assert main([*elsewhere, "--api-key", KEY]) == 0
    monkeypatch.setenv("VISGLM_API_KEYS", f"{KEY}, {KEY}-2")
    assert main(elsewhere) == 0
    assert [bool(service.settings.keys.owner(KEY)) for service, _ in served] == [True] * 3
    assert [bool(service.settings.keys.owner(KEY + "-2")) for service, _ in served] == [True, False, True]
    assert [service.settings.keys.owner("no") for service, _ in served] == [None] * 3
    assert socket.gethostname().lower() in served[0][0].settings.hosts


def test_without_a_key_it_warns(served, capsys):
    assert main(["serve", "--host", "0.0.0.0", "--port", "0", "--no-auth"]) == 0
    assert "whoever reaches 0.0.0.0 can ask" in capsys.readouterr().err and served


def test_what_contradicts_itself_or_cannot_be_is_refused(served, tmp_path, capsys):
    (tmp_path / "empty").write_text("# none\n")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for words, told in (
            (["--no-auth", "--api-key", KEY], "--no-auth"),
            (["--api-key", "short"], "token_urlsafe"),
            (["--api-key-file", str(tmp_path / "none")], "cannot be read"),
            (["--api-key-file", str(tmp_path / "empty")], "no API key"),
            (["--port", port], f"port {port}"),
            (["--port", "70000"], "--port must be"),
            (["--host", "no.such.host.invalid", "--no-auth"], "Give as --host an address of this machine"),
            (["--host", "192.0.2.1", "--no-auth"], "Give as --host an address of this machine"),
            (["--allowed-origin", "*"], "--allowed-origin"),
            (["--allowed-origin", "https://a.example/x"], "--allowed-origin"),
            (["--allowed-host", "a b"], "--allowed-host"),
            (["--picture-host", "https://a.example/x"], "--picture-host must be a name"),
            (["--picture-host", ""], "got nothing"),
            (["--name", " "], "--name must not be empty"),
            (["--adapter", "nameless"], "NAME=PATH"),
            (["--max-waiting", "-1"], "--max-waiting must be"),
            (["--drain-seconds", "99999"], "--drain-seconds must be"),
        ):
            assert main(["serve", *words]) == 1 and told in capsys.readouterr().err, words
    assert not served


def test_what_it_is_given_reaches_the_server(served):
    words = ["--port", "0", "--name", "mine", "--allowed-host", "Models.Example", "--allowed-origin",
             "https://page.example", "--picture-host", "Pictures.Example", "--max-body", "5000", "--max-waiting",
             "3"]  # fmt: skip
    assert main(["serve", *words]) == 0
    [(service, _)] = served
    settings = service.settings
    assert list(service.names) == ["mine"] and "models.example" in settings.hosts
    assert settings.origins == ["https://page.example"] and settings.picture_hosts == ["pictures.example"]
    assert settings.limits.max_body == 5000 and service.admission.most == 16 + 3


def test_it_takes_no_addresses_of_pictures_by_the_flag_of_others():
    with pytest.raises(SystemExit):
        build_parser("serve").parse_args(["serve", "--allow-urls"])


def test_without_the_extra_it_names_it(monkeypatch, served):
    monkeypatch.setitem(sys.modules, "fastapi", None)
    from visglm.cli import serve

    with pytest.raises(MissingDependencyError, match=r"visglm\[serve\]"):
        serve.run(build_parser("serve").parse_args(["serve"]))
