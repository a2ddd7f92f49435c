"""A damaged folder is one clear error, or the model it was: never a traceback, a hang, gigabytes, or a question."""

from __future__ import annotations

import resource
import shutil
import sys
from collections import Counter

import pytest
import torch
from PIL import Image
from transformers import GlmConfig, GlmForCausalLM

from tests.checkpoint.damage import damage
from tests.checkpoint.test_glm import glm4_vocabulary, vocabulary  # noqa: F401 (fixtures)
from tests.tiny import GOLDEN_CHATGLM2, GOLDEN_HF, GOLDEN_SAT
from visglm import VisGLM
from visglm.checkpoint import convert, open_source
from visglm.errors import VisGLMError, printable

PICTURE = Image.new("RGB", (40, 30), "red")
PROMPT = "What is it? 这是什么？"
MEMORY = 700 * 2**20  # more than that is more than any of the folders can be worth
UNIT = 1 if sys.platform == "darwin" else 1024  # of `ru_maxrss`


@pytest.fixture(scope="module")
def folders(tmp_path_factory, vocabulary, glm4_vocabulary):  # noqa: F811
    root = tmp_path_factory.mktemp("damaged")
    shutil.copytree(GOLDEN_HF, root / "hf-legacy")
    shutil.copytree(GOLDEN_SAT, root / "sat")
    shutil.copy(GOLDEN_HF / "ice_text.model", root / "sat/ice_text.model")
    shutil.copytree(GOLDEN_CHATGLM2, root / "chatglm2")
    shutil.copy(vocabulary, root / "chatglm2/tokenizer.model")
    convert(open_source(GOLDEN_HF), root / "native", "native")
    convert(open_source(root / "chatglm2"), root / "native-glm", "native")
    torch.manual_seed(0)
    config = GlmConfig(
        vocab_size=280, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, pad_token_id=262, eos_token_id=[262, 269],
    )  # fmt: skip
    GlmForCausalLM(config).save_pretrained(root / "glm4")
    shutil.copy(glm4_vocabulary, root / "glm4/tokenizer.model")
    convert(open_source(root / "glm4"), root / "native-fast", "native")
    for folder in ("native", "native-fast"):  # which transformers wrote once, and still reads
        (root / folder / "special_tokens_map.json").write_text('{"pad_token": "<pad>"}')
        (root / folder / "added_tokens.json").write_text('{"<extra>": 600}')
    return root


def ask(folder) -> tuple[str, torch.Tensor]:
    """What the model says of a picture, if it sees any, and its logits for some ids."""
    vlm = VisGLM.from_pretrained(folder, device="cpu")
    sees = vlm.model.config.vision_config is not None
    reply = vlm.chat(PICTURE if sees else None, PROMPT, max_new_tokens=3)
    ids = [5, 9, 77] + ([505, 508] if sees else [])
    with torch.no_grad():
        return reply.text, vlm.model(torch.tensor([ids]), logits_to_keep=1).logits


def run(folder, numbers) -> Counter[str]:
    """How many of the damages were told, changed nothing, or changed what the model says."""
    text, logits = ask(folder)
    outcomes: Counter[str] = Counter()
    for number in numbers:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        what, undo = damage(folder, number)
        try:
            answer = ask(folder)
            same = answer[0] == text and torch.equal(answer[1], logits)
            outcomes["as before" if same else f"another answer: {what}"] += 1
        except VisGLMError as error:
            outcomes["told"] += 1
            assert all(printable(line) == line for line in str(error).split("\n")), what
        except BaseException as error:
            raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error
        finally:
            undo()
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * UNIT
        assert grown < MEMORY, f"{what}: {grown:,} bytes"
    return outcomes


LAYOUTS = ("native", "native-glm", "native-fast", "hf-legacy", "sat", "chatglm2", "glm4")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_damage_is_told_or_harmless(folders, layout):
    check(run(folders / layout, range(60)))


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_much_damage_is_told_or_harmless(folders, layout):
    check(run(folders / layout, range(1000, 1600)))


def check(outcomes: Counter[str]) -> None:
    """A flipped bit of a weight or of a vocabulary is another number or word, which nothing can tell."""
    other = [what for what in outcomes if "JSON" in what and "tokenizer.json" not in what]
    assert not other, "\n".join(other)
    assert outcomes["told"] and outcomes["as before"]
