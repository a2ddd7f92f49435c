"""ChatGLM2, ChatGLM3 and GLM-4, with eyes and without: exported, they answer as torch does, tokenizers included."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GlmConfig, GlmForCausalLM

from tests.checkpoint.test_glm import glm4_vocabulary, vocabulary  # noqa: F401 (fixtures)
from tests.light.talks import EXAMPLES, compare
from tests.tiny import GOLDEN_CHATGLM2, GOLDEN_HF
from visglm import VisGLM
from visglm.errors import MissingDependencyError
from visglm.light import VisGLM as LightVisGLM

CHATGLM3 = {"name_or_path": "THUDM/chatglm3-6b", "tokenizer_class": "ChatGLMTokenizer"}
# Words in which a tokenizer may read what its own text path would not: control tokens, bytes, blanks, rare letters.
TEXTS = (
    "北京是中国的首都。",
    "Hello, world!\n\n  two spaces",
    "é 🐱 <|user|> [gMASK] sop <|image|> <0x41>",
    "\u3000\t𠮷 1234",
)


def chatglm2(folder: Path, vocabularies: dict[str, Path]) -> None:
    shutil.copytree(GOLDEN_CHATGLM2, folder)
    shutil.copy(vocabularies["pieces"], folder / "tokenizer.model")


def chatglm3(folder: Path, vocabularies: dict[str, Path]) -> None:
    chatglm2(folder, vocabularies)
    (folder / "tokenizer_config.json").write_text(json.dumps(CHATGLM3))


def glm4(folder: Path, vocabularies: dict[str, Path]) -> None:
    torch.manual_seed(0)
    config = GlmConfig(
        vocab_size=280, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, pad_token_id=262, eos_token_id=[262, 269], initializer_range=0.3,
    )  # fmt: skip
    GlmForCausalLM(config).save_pretrained(folder)
    shutil.copy(vocabularies["pairs"], folder / "tokenizer.model")


def glm4_of_transformers(folder: Path, vocabularies: dict[str, Path]) -> None:
    """As it is published for transformers: the vocabulary in `tokenizer.json`."""
    glm4(folder, vocabularies)
    VisGLM.from_pretrained(folder, device="cpu").tokenizer.save_pretrained(folder)
    (folder / "tokenizer.model").unlink()


FAMILIES: dict[str, Callable[[Path, dict[str, Path]], None]] = {
    "chatglm2": chatglm2, "chatglm3": chatglm3, "glm4": glm4, "glm4_of_transformers": glm4_of_transformers,
}  # fmt: skip


SLOW = ("chatglm2", "glm4")  # each of which shares its network with another


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in FAMILIES]
)
def exported(request, tmp_path_factory, vocabulary, glm4_vocabulary) -> tuple[VisGLM, Path]:  # noqa: F811
    """A text model of the family behind the golden model's eyes, and what was exported of it."""
    folder = tmp_path_factory.mktemp(request.param)
    FAMILIES[request.param](folder / "text", {"pieces": vocabulary, "pairs": glm4_vocabulary})
    torch.manual_seed(0)  # of the new projection
    vlm = VisGLM.from_parts(vision=GOLDEN_HF, text=folder / "text", device="cpu", dtype="float32")
    vlm.export(folder / "out")
    return vlm, folder / "out"


@pytest.fixture(scope="module")
def pair(exported) -> tuple[VisGLM, LightVisGLM]:
    return exported[0], LightVisGLM.from_pretrained(exported[1])


def test_conversations_about_pictures_have_the_same_answers(pair):
    assert compare(*pair, 12) == []


def test_text_is_the_same_tokens(pair):
    vlm, light = pair
    for text in TEXTS:
        ids = light.tokenizer.encode(text)
        assert ids == vlm.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        assert not set(ids) & set(light.tokenizer.all_special_ids)
        assert light.tokenizer.decode(ids) == vlm.tokenizer.decode(ids) == text


@pytest.mark.parametrize("settings", [
    {"regex": "(Hello|北)[0-9]{2}"}, {"json_schema": '{"type": "boolean"}'}, {"stop": ["e", "京"]}, {"logprobs": 2},
    {"choices": ["Hello", "北京"]}, {"min_new_tokens": 5, "max_new_tokens": 6, "repetition_penalty": 1.3},
])  # fmt: skip
def test_settings_mean_the_same(pair, settings):
    asked = [EXAMPLES / "cat.png", EXAMPLES / "pair.png"], "Which? 哪个？"
    one, other = (model.chat(*asked, **{"max_new_tokens": 12, **settings}) for model in pair)
    assert (one.text, one.ids, one.finish_reason, one.usage) == (
        other.text,
        other.ids,
        other.finish_reason,
        other.usage,
    )
    assert one.scores.keys() == other.scores.keys()


def test_a_stream_is_the_answer_in_pieces(pair):
    light = pair[1]
    asked: tuple[Any, str] = EXAMPLES / "cat.png", "What is it?"
    stream = light.stream_chat(*asked, max_new_tokens=12)
    assert "".join(stream) == light.chat(*asked, max_new_tokens=12).text == stream.reply.text


def test_the_heat_map_is_torchs(pair):
    asked = [EXAMPLES / "cat.png", EXAMPLES / "pair.png"], "Which? 哪个？", "Hello, 北京"
    one, other = (model.explain(*asked, picture=0) for model in pair)
    np.testing.assert_allclose(other.heat, one.heat, atol=1e-4, rtol=0)


def test_the_token_that_ends_an_answer_is_no_part_of_it(pair):
    """ChatGLM3 and GLM-4 stop where the next turn would begin, by a token that transformers does not call special."""
    for model in pair:
        ends = model.tokenizer.convert_tokens_to_ids("<|user|>"), model.tokenizer.eos_token_id
        for end in {end for end in ends if end != model.tokenizer.unk_token_id}:
            reply = model.chat(None, "Hello", logit_bias={end: 100.0}, max_new_tokens=3)
            assert reply.text == "" and reply.ids[0] == end


def test_nothing_of_torch_is_loaded(exported):
    vlm, folder = exported
    picture = str(EXAMPLES / "cat.png")
    code = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'timm', 'einops', 'safetensors', 'onnx', 'huggingface_hub'):\n"
        "    sys.modules[name] = None\n"
        "sys.orig_argv[1:2] = ['visglm-light']\n"
        "from visglm.light import VisGLM\n"
        f"print(VisGLM.from_pretrained({str(folder)!r}).chat({picture!r}, 'Hello', max_new_tokens=8).ids)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == str(vlm.chat(picture, "Hello", max_new_tokens=8).ids), result.stderr


def test_byte_pairs_without_their_package_are_told(exported, monkeypatch):
    _, folder = exported
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    if (folder / "tokenizer.json").is_file():
        with pytest.raises(MissingDependencyError, match=r"visglm-light\[glm4\]"):
            LightVisGLM.from_pretrained(folder)
    else:
        assert LightVisGLM.from_pretrained(folder).chat(None, "Hello", max_new_tokens=1).ids
