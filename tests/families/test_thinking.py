"""What a model thinks stands apart from its answer, is bounded and counted, and is not remembered; places that it names
are places in the picture. Random weights have nothing to say: what is written is scripted."""

from __future__ import annotations

import json
import random

import pytest
from PIL import Image

from tests.families.made import picture, scripted
from tests.families.test_same import compose
from tests.serve.knocking import client_of, service_for
from visglm.cli.chat import Conversation, show_parts
from visglm.errors import ConfigError
from visglm.reply import Box, draw_boxes
from visglm.sampling import Sampling

SAID = "<think>the cat is red 红色的猫</think>\nRed. 红色。"


def test_thinking_is_no_part_of_the_answer_nor_of_the_history(vlm, reference, family):
    with scripted(vlm, SAID):
        reply = vlm.chat(picture(random.Random(1)), "What is this?")
    assert (reply.text, reply.thinking) == ("Red. 红色。", "the cat is red 红色的猫")
    assert reply.finish_reason == "stop" and reply.history.turns[-1].answer == reply.text
    thought = vlm.tokenizer.encode("<think>the cat is red 红色的猫</think>", add_special_tokens=False)
    assert reply.usage.thinking_tokens == len(thought) < reply.usage.completion_tokens
    assert "红色的猫" in reply._repr_html_() and "<details>" in reply._repr_html_()
    again = vlm.chat(None, "Why?", reply.history, max_new_tokens=1)
    talk = [("What is this?", reply.text, [picture(random.Random(1))]), ("Why?", "", [])]
    assert again.usage.prompt_tokens == reference.inputs(talk)["input_ids"].shape[1]


def test_thinking_is_streamed_apart(vlm):
    with scripted(vlm, SAID):
        pieces = list(vlm.stream_chat(None, "What is this?"))
        stream = vlm.stream_chat(None, "What is this?")
        parts = list(stream.parts())
    assert "".join(pieces) == "Red. 红色。"
    for kind, wanted in (("thinking", stream.reply.thinking), ("text", stream.reply.text)):
        assert "".join(piece for own, piece in parts if own == kind) == wanted
    assert stream.thinking == "the cat is red 红色的猫" and len(parts) > 8
    kinds = [kind for kind, _ in parts]
    assert kinds == sorted(kinds, reverse=True)  # "thinking" before "text"


def test_what_is_wrapped_around_an_answer_is_not_shown(models):
    vlm = models["glm4v"]
    with scripted(vlm, "<think>a b</think><answer>It is <|begin_of_box|>12<|end_of_box|>.</answer>"):
        assert vlm.chat(None, "How many?").text == "It is 12."


def test_a_thought_that_was_cut_short_is_no_answer(vlm):
    with scripted(vlm, SAID):
        reply = vlm.chat(None, "What is this?", max_new_tokens=4)
    assert (reply.text, reply.finish_reason) == ("", "length") and reply.thinking
    assert reply.usage.thinking_tokens == 4


def test_thinking_is_bounded(vlm):
    with scripted(vlm, "<think>a b c d e f g h</think>x y z"):
        reply = vlm.chat(None, "What is this?", max_thinking_tokens=3)
    ids, end = list(reply.ids), vlm.tokenizer.convert_tokens_to_ids("</think>")
    assert ids.index(end) == 4 and reply.usage.thinking_tokens == 5
    assert vlm.tokenizer.decode(ids[1:4]).strip() == reply.thinking
    assert reply.text  # it goes on behind the end


def test_thinking_is_left_out(models, reference, family):
    vlm, talk = models[family], [("Hi", "", [])]
    ids = compose(vlm, talk, thinks=False).rendered.input_ids
    if family == "glm4v":  # which always thinks: it is ended as soon as it begins
        with scripted(vlm, SAID):
            reply = vlm.chat(None, "Hi", max_thinking_tokens=0)
        assert reply.thinking == "" and reply.ids[1] == vlm.tokenizer.convert_tokens_to_ids("</think>")
        return
    assert ids == reference.inputs(talk, enable_thinking=False)["input_ids"][0].tolist()
    assert vlm.chat(None, "Hi", max_thinking_tokens=0, max_new_tokens=1).usage.prompt_tokens == len(ids)
    # A shape begins with the answer, which its own template puts behind the end of thinking.
    chosen = vlm.chat(None, "Hi", choices=["cat", "dog"])
    assert chosen.usage.prompt_tokens == len(ids)
    assert vlm.tokenizer.decode(chosen.ids) == f"\n{chosen.text}<|endoftext|>"


def test_a_bound_that_cannot_be_kept_is_refused(vlm):
    with pytest.raises(ConfigError, match="max_thinking_tokens"):
        vlm.chat(None, "Hi", max_thinking_tokens=-1)


def test_places_are_in_pixels_of_the_picture(vlm):
    shown = Image.new("RGB", (200, 100))
    places = "[[100, 200, 300, 400], [500,0,1000,1000]]"
    with scripted(vlm, f"Here: <|begin_of_box|>{places}<|end_of_box|> [1, 2, 3, 4]"):
        reply = vlm.chat(shown, "Where?")
        later = vlm.chat(None, "Where?", reply.history)
    assert reply.boxes == (Box(20, 20, 60, 40, 0), Box(100, 0, 200, 100, 0)) == later.boxes
    assert reply.text == f"Here: {places} [1, 2, 3, 4]"
    drawn = draw_boxes(shown, reply.boxes)
    assert drawn.getpixel((20, 30)) != (0, 0, 0) == drawn.getpixel((40, 30)) and shown.getpixel((20, 30)) == (0, 0, 0)
    with scripted(vlm, "<|begin_of_box|>[900, 0, 100, 5]<|end_of_box|> <|begin_of_box|>[0,0,2000,9]<|end_of_box|>"):
        assert vlm.chat(shown, "Where?").boxes == ()


def test_places_are_in_the_last_picture_that_was_shown(vlm):
    shown = [Image.new("RGB", (200, 100)), Image.new("RGB", (50, 400))]
    with scripted(vlm, "<|begin_of_box|>[100,200,300,400]<|end_of_box|>"):
        first = vlm.chat(shown[0], "Where?")
        later = vlm.chat(shown[1], "Where?", first.history)
        both = vlm.chat(shown, "Where?")
    assert first.boxes == (Box(20, 20, 60, 40, 0),)
    assert later.boxes == both.boxes == (Box(5, 80, 15, 160, 1),)


def test_thinking_is_what_comes_first(vlm):
    with scripted(vlm, "<think>a</think>b<think>c</think>d"):
        reply = vlm.chat(None, "Hi")
    assert (reply.thinking, reply.text) == ("a", "bcd")


def test_thinking_that_never_ends_is_told_as_cut(vlm):
    with scripted(vlm, "<think>" + "a b " * 40):
        reply = vlm.chat(None, "Hi", max_new_tokens=20)
        bounded = vlm.chat(None, "Hi", max_new_tokens=20, max_thinking_tokens=5)
        stream = vlm.stream_chat(None, "Hi", max_new_tokens=20)
        assert "".join(stream) == ""
    assert (reply.text, reply.finish_reason, reply.usage.thinking_tokens) == ("", "length", 20)
    assert stream.reply.thinking == reply.thinking != ""
    assert bounded.text and bounded.usage.thinking_tokens == 7  # with both marks


def test_the_terminal_says_why_there_is_no_answer(vlm, capsys):
    sampling, flags = Sampling(max_new_tokens=6), {"max_new_tokens": "--max-new-tokens"}
    with scripted(vlm, "<think>" + "a b " * 40):
        Conversation(vlm, sampling, "auto", [], flags).ask("Hi")
    said = capsys.readouterr()
    assert said.out == "\n" and "still thinking when its tokens were used up" in said.err
    assert "Allow more with --max-new-tokens" in said.err
    with scripted(vlm, "<think>a</think>" + "a b " * 40):
        Conversation(vlm, sampling, "auto", [], flags).ask("Hi")
    assert not capsys.readouterr().err


def test_the_terminal_shows_thinking_to_people_only(vlm, capsys, monkeypatch):
    with scripted(vlm, SAID):
        show_parts(vlm.stream_chat(None, "What is this?"))
    assert capsys.readouterr().out == "Red. 红色。\n"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    with scripted(vlm, SAID):
        show_parts(vlm.stream_chat(None, "What is this?"))
    assert capsys.readouterr().out == "\x1b[2mthe cat is red 红色的猫\x1b[0m\nRed. 红色。\n"


def test_the_server_tells_it_apart(models):
    vlm = models["glm46v"]
    service = service_for(vlm)
    body = {"model": service.names.default, "messages": [{"role": "user", "content": "What is this?"}]}
    with client_of(service) as client, scripted(vlm, SAID):
        told = client.post("/v1/chat/completions", json=body).json()
        message = told["choices"][0]["message"]
        assert (message["content"], message["reasoning_content"]) == ("Red. 红色。", "the cat is red 红色的猫")
        assert told["usage"]["completion_tokens_details"]["reasoning_tokens"] > 5
        lines = client.post("/v1/chat/completions", json=body | {"stream": True}).text.splitlines()
        chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        deltas = [chunk["choices"][0]["delta"] for chunk in chunks if chunk["choices"]]
        assert "".join(one.get("reasoning_content", "") for one in deltas) == "the cat is red 红色的猫"
        assert "".join(one.get("content") or "" for one in deltas) == "Red. 红色。"
        again = [*body["messages"], message, {"role": "user", "content": "Why?"}]
        assert client.post("/v1/chat/completions", json=body | {"messages": again}).status_code == 200
