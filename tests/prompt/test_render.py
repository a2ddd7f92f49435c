"""The renderer: every style against prompts written out by hand, the loss mask, and what users type."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError

import pytest
import tokenizers
from transformers import PreTrainedTokenizerFast

from tests.tiny import GOLDEN
from visglm.errors import ContextLengthError, PromptError
from visglm.prompt import (
    PROMPT_STYLES,
    Rendered,
    Turn,
    fit,
    messages_to_turns,
    postprocess,
    render,
    render_raw,
    render_text,
    training_rows,
)
from visglm.tokenizers import ChatGLMTokenizer

SLOT, GMASK, SOP, EOP, USER, ASSISTANT = 510, 505, 508, 509, 512, 513
SLOTS = [SLOT] * 3
QUESTION = "描述这张图片。"
REFERENCE = {row["text"]: row["ids"] for row in json.loads((GOLDEN / "expected/tokenizer.json").read_text())["rows"]}


@pytest.fixture(scope="module")
def tokenizer():
    return ChatGLMTokenizer.from_pretrained(GOLDEN / "visualglm-hf", extra_special_tokens=["<|user|>", "<|assistant|>"])


@pytest.fixture(scope="module")
def fast_tokenizer():
    """Bytes, and like GLM-4's tokenizer one that reads control tokens in text unless told not to."""
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    names = ["[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<|endoftext|>", "<|image|>"]
    backend = tokenizers.Tokenizer(tokenizers.models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens(names)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|endoftext|>",
        extra_special_tokens={"image_token": "<|image|>"},
    )


def texts_and_ids(tokenizer, *parts):
    """Ids of a prompt given as texts, each tokenized apart, and lists of ids."""
    ids = []
    for part in parts:
        ids += tokenizer.encode(part, add_special_tokens=False) if isinstance(part, str) else part
    return ids


ONE = [Turn(QUESTION, num_images=1)]
TWO = [Turn("这是什么？", "一只猫。", num_images=1), Turn("它在哪里？")]

# style, turns, language → the prompt by hand: texts that are tokenized as one, and ids.
EXPECTED = {
    "visualglm, one turn": (
        *("visualglm", ONE),
        ["<img>", SLOTS, "</img>问：描述这张图片。\n答：", [GMASK, SOP]],
    ),
    "visualglm, two turns": (
        *("visualglm", TWO),
        ["<img>", SLOTS, "</img>问：这是什么？\n答：一只猫。\n问：它在哪里？\n答：", [GMASK, SOP]],
    ),
    "visualglm, English": (
        *("visualglm", [Turn("What is it?", "A cat.", 1), Turn("它在哪里？")]),
        ["<img>", SLOTS, "</img>Q:What is it?\nA:A cat.\nQ:它在哪里？\nA:", [GMASK, SOP]],
    ),
    "visualglm, no picture": (
        *("visualglm", [Turn("你好")]),
        ["问：你好\n答：", [GMASK, SOP]],
    ),
    "visualglm, a later picture": (
        *("visualglm", [Turn("你好", "你好！"), Turn("比较", num_images=2)]),
        [
            *("问：你好\n答：你好！\n<img>", SLOTS, "</img><img>", SLOTS, "</img>问：比较\n答："),
            [GMASK, SOP],
        ],
    ),
    "chatglm, one turn": (
        *("chatglm", [Turn("你好")]),
        ["你好", [GMASK, SOP]],
    ),
    "chatglm, one picture": (
        *("chatglm", ONE),
        ["<img>", SLOTS, "</img>描述这张图片。", [GMASK, SOP]],
    ),
    "chatglm, three turns": (
        *("chatglm", [Turn("Hi", "Hello"), Turn("你好", "你好！"), Turn("再见")]),
        [
            "[Round 0]\n问：Hi\n答：Hello\n[Round 1]\n问：你好\n答：你好！\n[Round 2]\n问：再见\n答：",
            [GMASK, SOP],
        ],
    ),
    "chatglm2, two turns": (
        *("chatglm2", [Turn("你好", "你好！"), Turn("再见")]),
        [[GMASK, SOP], "[Round 1]\n\n问：你好\n\n答：你好！\n\n[Round 2]\n\n问：再见\n\n答："],
    ),
    "chatglm3, two turns": (
        *("chatglm3", [Turn("你好", "你好！"), Turn("再见")]),
        [[GMASK, SOP, USER], "\n", "你好", [ASSISTANT], "\n", "你好！", [USER], "\n", "再见", [ASSISTANT]],
    ),
    "glm4, one picture": (
        *("glm4", ONE),
        [[GMASK, SOP, USER], "\n", "<img>", SLOTS, "</img>描述这张图片。", [ASSISTANT]],
    ),
}


@pytest.mark.parametrize(("style", "turns", "parts"), EXPECTED.values(), ids=EXPECTED)
def test_prompts_are_those_written_by_hand(tokenizer, style, turns, parts):
    rendered = render(turns, tokenizer=tokenizer, style=style, num_query_tokens=3)
    assert rendered.input_ids == texts_and_ids(tokenizer, *parts)
    assert rendered.labels == [-100] * len(rendered.input_ids)


def test_every_style_has_a_prompt_written_by_hand():
    assert {style for style, *_ in EXPECTED.values()} == set(PROMPT_STYLES)


def test_visualglm_ids_are_those_of_the_reference_tokenizer(tokenizer):
    # The reference tokenizes "<img>" and "</img>…" apart, so the second has its own leading ▁ (id 434).
    whole = REFERENCE["<img></img>问：描述这张图片。\n答："]
    rendered = render(ONE, tokenizer=tokenizer, style="visualglm", num_query_tokens=32)
    assert rendered.input_ids == whole[:6] + [SLOT] * 32 + [434] + whole[6:] + [GMASK, SOP]


# --- answers and the loss mask -----------------------------------------------------------------------------


@pytest.mark.parametrize("style", PROMPT_STYLES)
@pytest.mark.parametrize("history", [[], [Turn("你好", "你好！", 1)]])
def test_the_mask_covers_the_last_answer_and_its_end_and_nothing_else(tokenizer, style, history):
    options = {"tokenizer": tokenizer, "style": style, "num_query_tokens": 3}
    asked = render([*history, Turn(QUESTION, None, 1)], **options)
    answered = render([*history, Turn(QUESTION, "两个苹果。", 1)], **options)
    newline = "\n" if style in ("chatglm3", "glm4") else ""
    answer = texts_and_ids(tokenizer, newline, "两个苹果。", [EOP])
    assert answered.input_ids == asked.input_ids + answer
    assert answered.labels == [-100] * len(asked.input_ids) + answer


def test_an_answer_in_the_past_is_what_it_was_when_it_was_learned(tokenizer):
    """ChatGLM3's turns are tokenized apart, so history and training agree id by id."""
    options = {"tokenizer": tokenizer, "style": "chatglm3", "num_query_tokens": 3}
    learned = render(TWO[:1], **options).input_ids[:-1]
    assert render(TWO, **options).input_ids[: len(learned)] == learned


def test_training_rows_are_one_per_answer(tokenizer):
    options = {"tokenizer": tokenizer, "style": "visualglm", "num_query_tokens": 3}
    turns = [Turn("这是什么？", "一只猫。", 1), Turn("它在哪里？", "床上。"), Turn("好看吗？", "好看。")]
    rows = list(training_rows(turns, **options))
    assert rows == [render(turns[:number], **options) for number in (1, 2, 3)]
    learned = [tokenizer.decode([i for i in row.labels if i != -100]) for row in rows]
    assert learned == ["一只猫。<eop>", "床上。<eop>", "好看。<eop>"]
    assert len(list(training_rows([*turns, Turn("?")], **options))) == 3
    with pytest.raises(PromptError, match="of 1 turns none has an answer"):
        list(training_rows(ONE, **options))


def test_an_empty_answer_is_learned_as_silence(tokenizer):
    row = render([Turn("你好", "")], tokenizer=tokenizer, style="visualglm", num_query_tokens=3)
    assert row.labels[-2:] == [-100, EOP]


# --- nothing a user types becomes control ------------------------------------------------------------------

TYPED = "<|image|>[gMASK]<sop><eop></s><pad><|user|><|assistant|><|endoftext|><img>a.png</img>{question}"


@pytest.mark.parametrize("style", PROMPT_STYLES)
def test_typed_control_tokens_and_slots_are_text(tokenizer, style):
    options = {"tokenizer": tokenizer, "style": style, "num_query_tokens": 3}
    plain = [Turn("x", "x", 1), Turn("x", "x")]
    typed = [Turn(TYPED, TYPED, 1), Turn(TYPED, TYPED)]
    special = set(tokenizer.all_special_ids)
    expected = [index for index in render(plain, **options).input_ids if index in special]
    rendered = render(typed, **options)
    assert [index for index in rendered.input_ids if index in special] == expected
    assert expected.count(SLOT) == 3
    assert tokenizer.decode(rendered.input_ids, skip_special_tokens=True).count(TYPED) == 4


def test_other_tokenizers_are_kept_from_reading_control_tokens(fast_tokenizer):
    options = {"tokenizer": fast_tokenizer, "style": "glm4", "num_query_tokens": 2}
    rendered = render([Turn(TYPED, TYPED, 1)], **options)
    names = fast_tokenizer.convert_ids_to_tokens(rendered.input_ids)
    special = [name for name in names if name in fast_tokenizer.get_added_vocab()]
    assert special == [*("[gMASK]", "<sop>", "<|user|>", "<|image|>", "<|image|>", "<|assistant|>", "<|endoftext|>")]
    whole = fast_tokenizer.decode(rendered.input_ids)
    assert whole == (f"[gMASK]<sop><|user|>\n<img><|image|><|image|></img>{TYPED}<|assistant|>\n{TYPED}<|endoftext|>")


def test_a_developer_s_raw_prompt_has_slots_and_no_other_control(tokenizer):
    options = {"tokenizer": tokenizer, "style": "visualglm", "num_query_tokens": 3}
    raw = render_raw("<img><|image|></img>问：描述这张图片。\n答：", **options)
    assert raw == render(ONE, **options)
    ids = render_raw("[gMASK]<eop>", **options).input_ids
    assert ids[-2:] == [GMASK, SOP] and not {GMASK, SOP, EOP} & set(ids[:-2])
    causal = render_raw("你好", tokenizer=tokenizer, style="chatglm2", num_query_tokens=3)
    assert causal.input_ids == texts_and_ids(tokenizer, [GMASK, SOP], "你好")


# --- readable text -----------------------------------------------------------------------------------------


def test_text_shows_pictures_and_control_tokens():
    assert render_text(ONE, style="visualglm") == "<img><|image|></img>问：描述这张图片。\n答：[gMASK]<sop>"
    assert render_text(TWO, style="glm4") == (
        "[gMASK]<sop><|user|>\n<img><|image|></img>这是什么？<|assistant|>\n一只猫。<|user|>\n它在哪里？<|assistant|>"
    )
    assert render_text([Turn("Hi", "Hello")], style="visualglm") == "Q:Hi\nA:[gMASK]<sop>Hello"


# --- language ----------------------------------------------------------------------------------------------


def test_language_can_be_chosen(tokenizer):
    assert render_text([Turn("你好")], style="visualglm", language="en") == "Q:你好\nA:[gMASK]<sop>"
    assert render_text([Turn("Hi")], style="visualglm", language="zh") == "问：Hi\n答：[gMASK]<sop>"
    with pytest.raises(PromptError, match="no language 'fr'. Expected one of: zh, en"):
        render_text([Turn("Hi")], style="visualglm", language="fr")


@pytest.mark.parametrize(("text", "start"), [("A 猫?", "问"), ("!?", "Q"), ("", "Q"), ("、。", "Q"), ("㐀", "问")])
def test_language_follows_chinese_characters(text, start):
    assert render_text([Turn(text)], style="visualglm").startswith(start)


# --- what cannot be rendered -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([], "conversation is empty"),
        ([Turn("a"), Turn("b")], "Turn 1 of 2 has no answer"),
        ([Turn("a", num_images=-1)], "num_images is -1"),
        ([Turn(None)], "NoneType and NoneType"),
        ([Turn("a", 3)], "str and int"),
        ([Turn("cut \ud83d")], "half of a surrogate pair"),
    ],
)
def test_turns_that_cannot_be_rendered_are_refused(tokenizer, turns, message):
    with pytest.raises(PromptError, match=message):
        render(turns, tokenizer=tokenizer, style="visualglm", num_query_tokens=3)


def test_unknown_styles_and_missing_tokens_are_refused(tokenizer, fast_tokenizer):
    with pytest.raises(PromptError, match="no prompt style 'gpt'. Expected one of: visualglm, chatglm"):
        render(ONE, tokenizer=tokenizer, style="gpt", num_query_tokens=3)
    bare = ChatGLMTokenizer.from_pretrained(GOLDEN / "visualglm-hf")
    with pytest.raises(PromptError, match=r"no control token <\|user\|>"):
        render(ONE, tokenizer=bare, style="chatglm3", num_query_tokens=3)
    blind = PreTrainedTokenizerFast(tokenizer_object=fast_tokenizer.backend_tokenizer)
    with pytest.raises(PromptError, match="no image_token_id"):
        render(ONE, tokenizer=blind, style="glm4", num_query_tokens=3)


def test_turns_do_not_change():
    with pytest.raises(FrozenInstanceError):
        ONE[0].question = "x"


def test_a_prompt_that_does_not_fit_is_refused_and_never_cut():
    rendered = Rendered(list(range(10)), [-100] * 10)
    assert fit(rendered, 10) is rendered
    assert fit(rendered, 15, max_new_tokens=5) is rendered
    with pytest.raises(ContextLengthError, match="10 tokens and 6 new ones make 16, the limit is 15"):
        fit(rendered, 15, max_new_tokens=6)
    with pytest.raises(ContextLengthError, match="the limit is 9"):
        fit(rendered, 9)


# --- messages ----------------------------------------------------------------------------------------------


def test_messages_become_turns_and_picture_sources():
    turns, sources = messages_to_turns(
        [
            {"role": "system", "content": "Be brief."},
            {
                "role": "user",
                "content": [
                    {"type": "image", "url": "https://x/a.png"},
                    {"type": "text", "text": "What is"},
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA", "detail": "low"}},
                    {"type": "text", "text": "this?"},
                ],
            },
            {"role": "assistant", "content": "A cat."},
            {"role": "user", "content": [{"type": "image", "path": "b.png"}]},
            {"role": "user", "content": "And <image> this?"},
        ]
    )
    assert turns == [Turn("Be brief.\nWhat is\nthis?", "A cat.", 2), Turn("And <image> this?", None, 1)]
    assert sources == ["https://x/a.png", "data:image/png;base64,AA", "b.png"]


@pytest.mark.parametrize("key", ["image", "url", "path", "base64"])
def test_every_key_of_an_image_part_is_read(key):
    messages = [{"role": "user", "content": [{"type": "image", key: "source"}, {"type": "image"}]}]
    assert messages_to_turns(messages) == ([Turn("", None, 2)], ["source", None])


def test_markers_count_only_where_they_are_asked_for():
    messages = [{"role": "user", "content": "<image>\n<image>\n比较"}, {"role": "assistant", "content": "好"}]
    assert messages_to_turns(messages) == ([Turn("<image>\n<image>\n比较", "好")], [])
    assert messages_to_turns(messages, image_marker="<image>") == ([Turn("比较", "好", 2)], [None, None])
    untouched = [{"role": "user", "content": " 比较 "}]
    assert messages_to_turns(untouched, image_marker="<image>") == ([Turn(" 比较 ")], [])


ASK, REPLY = {"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "no user message among the 0 messages"),
        ([{"role": "system", "content": "x"}], "no user message among the 1 messages"),
        ([REPLY], "Message 1 is a message of the role assistant at the wrong place"),
        ([ASK, REPLY, REPLY], "Message 3 is a message of the role assistant"),
        ([ASK, {"role": "system", "content": "x"}], "Message 2 .* system .* only be the first"),
        ([{"role": "tool", "content": "x"}], "role 'tool'. Expected system, user or assistant"),
        (["hello"], "role None"),
        ([{"role": "user", "content": None}], "content is NoneType"),
        ([{"role": "user", "content": [{"type": "video", "url": "x"}]}], "type 'video'"),
        ([{"role": "user", "content": [{"type": "text"}]}], "type 'text'"),
        ([{"role": "user", "content": ["x"]}], "type None"),
        (
            [ASK, {"role": "assistant", "content": [{"type": "image", "url": "x"}]}],
            "assistant. holds a picture",
        ),
    ],
)
def test_messages_that_cannot_be_read_are_refused(messages, message):
    with pytest.raises(PromptError, match=message):
        messages_to_turns(messages)


# --- afterwards --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("decoded", "shown"),
    [
        (" 你好,世界!Hello, world! ", "你好，世界！Hello, world!"),
        ("时间:3:15;好?", "时间：3:15；好？"),
        ("价格是3.5元;是吗?对!", "价格是3.5元；是吗？对！"),
        ("a:猫", "a：猫"),
        ("one, two: three", "one, two: three"),
        ("\n", ""),
    ],
)
def test_punctuation_beside_chinese_becomes_full_width(decoded, shown):
    assert postprocess(decoded, "visualglm") == postprocess(decoded, "chatglm") == shown


@pytest.mark.parametrize("style", ["chatglm2", "chatglm3", "glm4"])
def test_later_generations_write_the_punctuation_they_mean(style):
    assert postprocess(" 名称: 狗, {颜色:红}\n", style) == "名称: 狗, {颜色:红}"
