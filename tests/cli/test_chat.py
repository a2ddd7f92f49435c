"""`visglm chat`: what goes to stdout, what to stderr, and a conversation typed or piped."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys

import pytest

from tests.cli.test_init import run_module
from visglm.cli import chat, main
from visglm.cli.chat import COMMANDS, FAILED


@pytest.fixture
def talk(loaded, monkeypatch, capsys):
    """Run `visglm chat` with lines on stdin; gives (status, stdout, stderr)."""

    def run(lines: str, *arguments: str):
        monkeypatch.setattr("sys.stdin", io.StringIO(lines))
        status = main(["chat", *map(str, arguments), "--max-new-tokens", "4"])
        return status, *capsys.readouterr()

    return run


def test_the_answer_alone_is_on_stdout(vlm, pictures):
    """In a process of its own: what libraries print counts as well."""
    result = run_module("chat", str(pictures[0]), "-q", "What is this?", "--max-new-tokens", "6", "--device", "cpu")
    assert result.returncode == 0, result.stderr
    assert result.stdout == vlm.chat(pictures[0], "What is this?", max_new_tokens=6).text + "\n"
    assert result.stderr.splitlines()[0] == "Loading visglm-tiny …"
    assert len(result.stderr.splitlines()) == 2


def test_settings_reach_the_model(loaded, pictures, capsys):
    arguments = ["--temperature", "3", "--seed", "5", "--max-new-tokens", "6", "--language", "zh"]
    assert main(["chat", str(pictures[0]), str(pictures[1]), "-q", "What is this?", *arguments]) == 0
    expected = loaded.chat(pictures[:2], "What is this?", temperature=3.0, seed=5, max_new_tokens=6, language="zh")
    assert capsys.readouterr().out == expected.text + "\n"


def test_a_missing_picture_is_told_before_the_model_is_loaded(monkeypatch, capsys):
    monkeypatch.setattr(chat, "load_model", lambda arguments: pytest.fail("the model was loaded"))
    assert main(["chat", "nowhere.png", "-q", "What?"]) == 1
    assert "nowhere.png" in capsys.readouterr().err


def test_a_setting_out_of_range_is_an_error(loaded, capsys):
    assert main(["chat", "-q", "Hello", "--temperature", "-1"]) == 1
    assert "temperature must be between" in capsys.readouterr().err


def test_urls_are_refused_unless_allowed(loaded, capsys):
    assert main(["chat", "https://example.com/cat.png", "-q", "What?"]) == 1
    assert "Pass --allow-urls" in capsys.readouterr().err


def test_a_line_that_is_no_text_is_told_and_the_next_is_asked(loaded, vlm, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9?\nHello\n"), "utf-8"))
    assert main(["chat", "--max-new-tokens", "4"]) == FAILED
    captured = capsys.readouterr()
    assert captured.err == "This line is not utf-8 text and was not asked: 'caf\\udce9?'\n"
    assert captured.out == f"{vlm.chat(None, 'Hello', max_new_tokens=4)}\n"


def test_a_piped_conversation_has_a_history(talk, vlm, pictures):
    status, out, err = talk("What is this?\nAnd what colour is it?\n", pictures[0])
    first = vlm.chat(pictures[0], "What is this?", max_new_tokens=4)
    second = vlm.chat(None, "And what colour is it?", first.history, max_new_tokens=4)
    assert (status, out, err) == (0, f"{first}\n{second}\n", "")


def test_image_shows_a_picture_with_the_next_question(talk, vlm, pictures):
    _, out, err = talk(f"/image {pictures[0]} {pictures[1]}\nWhat are these?\n")
    assert out == f"{vlm.chat(pictures[:2], 'What are these?', max_new_tokens=4)}\n"
    assert err == "2 to be shown with the next question.\n"


def test_clear_forgets_history_and_pictures(talk, vlm, pictures):
    _, out, _ = talk("What is this?\n/clear\nHello\n", pictures[0])
    assert out.splitlines()[-1] == vlm.chat(None, "Hello", max_new_tokens=4).text


def test_save_adds_a_row_of_training_data(talk, vlm, pictures, tmp_path):
    file = tmp_path / "a talk.jsonl"
    file.write_text('{"images": [], "messages": []}\n')
    status, out, err = talk(f"What is <image>?\n/image {pictures[1]}\n那这个呢？\n/save '{file}'\n", pictures[0])
    row = json.loads(file.read_text(encoding="utf-8").splitlines()[1])
    answers = out.splitlines()
    assert row["images"] == [str(path) for path in pictures[:2]]
    assert [message["role"] for message in row["messages"]] == ["user", "assistant"] * 2
    assert [message["content"] for message in row["messages"][::2]] == ["<image>What is <image>?", "<image>那这个呢？"]
    assert [message["content"] for message in row["messages"][1::2]] == answers
    assert str(file) in err


def test_help_lists_every_command(talk):
    _, out, err = talk("/help\n")
    assert out == ""
    assert all(name in err and row.help in err for name, row in COMMANDS.items())


def test_quit_leaves(talk):
    assert talk("/quit\nHello\n") == (0, "", "")


@pytest.mark.parametrize(
    "line, message",
    [
        ("/paint cat.png", "/image, /clear"),
        ("/image", "/image cat.png"),
        ("/image nowhere.png", "nowhere.png"),
        ("/image 'a", "quotation"),
        ("/save", "/save needs one file"),
        ("/save a b", "/save needs one file"),
        ("/save talk.jsonl", "Nothing has been said"),
        ("/clear all", "takes no arguments"),
        ("cat " * 600, "too long"),
    ],
)
def test_a_mistake_is_told_and_the_conversation_goes_on(talk, vlm, line, message):
    status, out, err = talk(f"{line}\nHello\n")
    assert status == FAILED
    assert message in err
    assert out == f"{vlm.chat(None, 'Hello', max_new_tokens=4)}\n"


def test_a_folder_that_cannot_be_written_is_told(talk):
    _, out, err = talk("Hello\n/save /nowhere/talk.jsonl\nHello\n")
    assert "/nowhere/talk.jsonl" in err
    assert len(out.splitlines()) == 2


def test_control_c_stops_the_answer_and_not_the_program(talk, vlm, pictures, monkeypatch):
    """The question that was stopped is not part of the conversation, and its picture still waits to be shown."""
    printed = []

    def interrupted(piece="", **options):
        printed.append(piece)
        if len(printed) == 2:
            raise KeyboardInterrupt
        print(piece, **options)

    monkeypatch.setattr(chat, "print", interrupted, raising=False)
    status, out, err = talk("Describe it at length.\nWhat is this?\n", pictures[0])
    assert status == 0
    assert "(stopped)" in err
    assert out.endswith(f"{vlm.chat(pictures[0], 'What is this?', max_new_tokens=4)}\n")
    assert vlm._turns.is_free


def test_control_c_at_the_prompt_and_an_empty_line_do_nothing(talk, monkeypatch):
    lines = iter([KeyboardInterrupt, "", "/quit"])

    def read(prompt):
        line = next(lines)
        if isinstance(line, str):
            return line
        raise line

    monkeypatch.setattr(chat, "input", read, raising=False)
    assert talk("") == (0, "", "\n")


def test_no_input_at_all_is_told_before_the_model_is_loaded(monkeypatch, capsys):
    monkeypatch.setattr(chat, "load_model", lambda arguments: pytest.fail("the model was loaded"))
    monkeypatch.setattr("sys.stdin", None)  # what Python makes of `<&-`
    assert main(["chat"]) == 1
    assert "Standard input is closed, so there are no questions. Ask one with --question." in capsys.readouterr().err


def test_a_question_needs_no_input(loaded, vlm, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", None)
    assert main(["chat", "-q", "Hello", "--max-new-tokens", "4"]) == 0
    assert capsys.readouterr().out == f"{vlm.chat(None, 'Hello', max_new_tokens=4)}\n"


def test_an_empty_pipe_is_no_error(talk):
    assert talk("") == (0, "", "")


@pytest.mark.timeout(300)
def test_a_reader_that_has_left_ends_the_conversation(tmp_path):
    """Nothing is said about it, and nothing is asked any more: `visglm chat | head -1`."""
    reading, writing = os.pipe()
    os.close(reading)
    questions = tmp_path / "questions.txt"
    questions.write_text("What is this?\nAnd this?\n")
    command = [sys.executable, "-m", "visglm", "chat", "--max-new-tokens", "2", "--device", "cpu"]
    with questions.open() as lines:
        result = subprocess.run(command, stdin=lines, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (result.returncode, len(result.stderr.splitlines())) == (0, 2), result.stderr


def test_a_terminal_gets_a_prompt_and_a_hint(loaded, monkeypatch, capsys):
    asked = []

    def read(prompt):
        asked.append(prompt)
        raise EOFError

    monkeypatch.setattr(chat, "input", read, raising=False)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    assert main(["chat"]) == 0
    assert asked == ["> "]
    err = capsys.readouterr().err
    assert "/image" in err and err.endswith("\n\n")  # the shell goes on in a line of its own
