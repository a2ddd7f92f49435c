"""ChatGLM2, ChatGLM3 and GLM-4 as text models: tokenizers, prompts, other layouts, a new bridge in front."""

from __future__ import annotations

import base64
import json
import shutil

import pytest
import sentencepiece
import torch
from PIL import Image
from transformers import GlmConfig, GlmForCausalLM

from tests.tiny import GOLDEN_CHATGLM2, GOLDEN_HF
from visglm import VisGLM
from visglm.checkpoint import open_source
from visglm.errors import PromptError
from visglm.prompt import Turn, render
from visglm.tokenizers import StreamDecoder, load_glm_tokenizer

TEXTS = ["北京是中国的首都。", "Hello, world!\n\n  two spaces", "é 🐱 <|user|> [gMASK]"]


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    """A sentencepiece model like ChatGLM2's: byte pairs with byte fallback, whitespace kept."""
    folder = tmp_path_factory.mktemp("vocabulary")
    lines = ["北京是中国的首都。上海很大。", "Hello, world! How are you today?", "问：你好\n答：你好"] * 30
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_prefix=str(folder / "tokenizer"), vocab_size=340, model_type="bpe",
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2,
        character_coverage=0.999, unk_id=0, bos_id=1, eos_id=2,
    )  # fmt: skip
    return folder / "tokenizer.model"


@pytest.fixture
def chatglm2(tmp_path, vocabulary):
    shutil.copytree(GOLDEN_CHATGLM2, tmp_path / "chatglm2")
    shutil.copy(vocabulary, tmp_path / "chatglm2/tokenizer.model")
    return tmp_path / "chatglm2"


@pytest.fixture(scope="module")
def glm4_vocabulary(tmp_path_factory):
    path = tmp_path_factory.mktemp("glm4") / "tokenizer.model"
    words = [bytes([byte]) for byte in range(256)] + [b"He", b"ll", b"Hell", b"Hello", "北".encode()[:2], "北".encode()]
    path.write_text("".join(f"{base64.b64encode(word).decode()} {rank}\n" for rank, word in enumerate(words)))
    return path


def stream(tokenizer, ids):
    decoder = StreamDecoder(tokenizer)
    return "".join(decoder.push([index]) for index in ids) + decoder.finish()


def test_text_survives_both_tokenizers(vocabulary, glm4_vocabulary):
    for path, style in ((vocabulary, "chatglm3"), (glm4_vocabulary, "glm4")):
        tokenizer = load_glm_tokenizer(path.parent, style)
        for text in TEXTS:
            ids = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
            assert not set(ids) & {tokenizer.convert_tokens_to_ids(name) for name in ("<|user|>", "[gMASK]")}
            assert tokenizer.decode(ids) == text
            assert stream(tokenizer, ids) == text
    assert tokenizer.encode("Hello北", add_special_tokens=False) == [259, 261]


def test_each_generation_has_its_prompt(vocabulary, glm4_vocabulary):
    turns = [Turn("你好", "你好"), Turn("再见")]
    for style, start, path in (
        ("chatglm2", ["[gMASK]", "sop"], vocabulary),
        ("chatglm3", ["[gMASK]", "sop", "<|user|>"], vocabulary),
        ("glm4", ["[gMASK]", "<sop>", "<|user|>"], glm4_vocabulary),
    ):
        tokenizer = load_glm_tokenizer(path.parent, style)
        ids = render(turns, tokenizer=tokenizer, style=style, num_query_tokens=4).input_ids
        assert ids[: len(start)] == tokenizer.convert_tokens_to_ids(start)
        assert ("[Round 2]" in tokenizer.decode(ids)) == (style == "chatglm2")


def test_chat_save_and_stream(chatglm2, tmp_path):
    vlm = VisGLM.from_pretrained(chatglm2, device="cpu")
    assert vlm.model.config.prompt_style == "chatglm2"
    reply = vlm.chat(None, "你好", max_new_tokens=6)
    pieces = vlm.stream_chat(None, "你好", max_new_tokens=6)
    assert "".join(pieces) == reply.text
    vlm.save_pretrained(tmp_path / "saved")
    again = VisGLM.from_pretrained(tmp_path / "saved", device="cpu")
    assert again.chat(None, "你好", max_new_tokens=6).text == reply.text
    assert type(again.tokenizer) is type(vlm.tokenizer)
    with pytest.raises(PromptError, match="cannot fill blanks"):
        vlm.fill("北京是[MASK]的首都")


def test_chatglm3_stops_at_the_next_turn(chatglm2):
    settings = {"name_or_path": "THUDM/chatglm3-6b", "tokenizer_class": "ChatGLMTokenizer"}
    (chatglm2 / "tokenizer_config.json").write_text(json.dumps(settings))
    source = open_source(chatglm2)
    tokenizer = source.processor().tokenizer
    assert source.config.prompt_style == "chatglm3"
    assert source.config.eos_token_id == [2, *tokenizer.convert_tokens_to_ids(["<|user|>", "<|observation|>"])]


def test_a_new_bridge_on_chatglm2(chatglm2):
    vlm = VisGLM.from_parts(vision=GOLDEN_HF, text=chatglm2, device="cpu")
    assert vlm.model.config.prompt_style == "chatglm2" and vlm.model.config.num_query_tokens == 32
    vit = VisGLM.from_pretrained(GOLDEN_HF, device="cpu").model.model.vision.vit
    assert torch.equal(vlm.model.model.vision.vit.pos_embed, vit.pos_embed)
    reply = vlm.chat(Image.new("RGB", (56, 56), "red"), "这是什么？", max_new_tokens=3)
    assert reply.usage.prompt_tokens > 32


@torch.no_grad()
def test_glm4_as_transformers_writes_it(tmp_path, glm4_vocabulary):
    torch.manual_seed(0)
    config = GlmConfig(
        vocab_size=280, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, pad_token_id=262, eos_token_id=[262, 269],
    )  # fmt: skip
    theirs = GlmForCausalLM(config).eval()
    theirs.save_pretrained(tmp_path / "glm4")
    shutil.copy(glm4_vocabulary, tmp_path / "glm4/tokenizer.model")
    vlm = VisGLM.from_pretrained(tmp_path / "glm4", device="cpu", dtype="float32")
    ids = torch.randint(0, 262, (2, 9))
    torch.testing.assert_close(vlm.model(ids).logits, theirs(ids).logits, rtol=0, atol=1e-5)
    assert vlm.model.config.prompt_style == "glm4"
    assert isinstance(vlm.chat(None, "Hello", max_new_tokens=3).text, str)


def test_blanks_are_filled_by_the_first_generation():
    vlm = VisGLM.from_pretrained(GOLDEN_HF, device="cpu")
    reply = vlm.fill("北京是[MASK]的首都", max_new_tokens=3)
    tokenizer = vlm.tokenizer
    ids = [*tokenizer.encode("北京是", add_special_tokens=False), tokenizer.convert_tokens_to_ids("[MASK]")]
    ids += [*tokenizer.encode("的首都", add_special_tokens=False), tokenizer.bos_token_id]
    output = vlm.model.generate(torch.tensor([ids]), max_new_tokens=3, do_sample=False)[0, len(ids) :]
    assert reply.text == tokenizer.decode(output, skip_special_tokens=True).strip()
    with pytest.raises(PromptError, match="2 blanks"):
        vlm.fill("[MASK]是[MASK]")
