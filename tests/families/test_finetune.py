"""Taught by the same rows and the same call: LoRA over transformers' own network, and what comes of it in their classes
and in another process."""

from __future__ import annotations

import json
import random
import subprocess
import sys

import pytest
import torch
from PIL import Image

from tests.families.made import Reference, load, picture
from visglm import VisGLM
from visglm.cli import main
from visglm.errors import ConfigError
from visglm.quant import QuantizedLinear

SETTINGS = {
    "epochs": 6, "batch_size": 2, "learning_rate": 2e-2, "rank": 8, "held_out": 0, "replay": 0, "num_samples": 2,
}  # fmt: skip
ELSEWHERE = """
import json, sys
from visglm import VisGLM
for folder in sys.argv[2:]:
    vlm = VisGLM.from_pretrained(folder, device="cpu", dtype="float32")
    print(json.dumps(list(vlm.chat(sys.argv[1], "What is this?", max_new_tokens=8).ids)))
"""


def said(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


@pytest.fixture
def rows(tmp_path):
    """Two pictures of different sizes, and one question without any."""
    dice, found = random.Random(3), []
    for number, answer in enumerate(("a red cat", "两只狗")):
        picture(dice).save(tmp_path / f"{number}.png")
        found.append({"images": [f"{number}.png"], "messages": said("<image>What is this?", answer)})
    found.append({"messages": said("Hi", "你好")})
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in found), "utf-8")
    return file


def test_the_loss_is_that_of_their_own_network(family, folder, reference, tmp_path):
    """Of an answer about two pictures, whose positions count, and of its end token."""
    shown, question, answer = [picture(random.Random(seed)) for seed in (1, 2)], "What is this?", "a red cat 两只狗"
    for number, one in enumerate(shown):
        one.save(tmp_path / f"{number}.png")
    rows = [{"images": ["0.png", "1.png"], "messages": said(f"<image><image>{question}", answer)}]
    (tmp_path / "rows.jsonl").write_text(json.dumps(rows[0]), "utf-8")
    report = load(folder).finetune(
        tmp_path / "rows.jsonl", output_dir=tmp_path / "taught", epochs=1, batch_size=1, accumulation=1, held_out=0,
        replay=0, num_samples=0, num_workers=0, every=1,
    )  # fmt: skip
    losses = [point["loss"] for point in report.history if "loss" in point]
    processor, network = reference.processor, reference.network
    told = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": question}]
    messages = [{"role": "user", "content": told}, {"role": "assistant", "content": answer}]
    text = processor.apply_chat_template(messages, tokenize=False) + "<|endoftext|>"
    inputs = processor(text=[text], images=shown, return_tensors="pt")
    ids = inputs["input_ids"]
    start = int((ids[0] == processor.tokenizer.convert_tokens_to_ids("<|assistant|>")).nonzero()[-1]) + 1
    start += family == "glm4v"  # whose prompts end with a newline
    labels = ids.clone()
    labels[:, :start] = -100
    with torch.inference_mode():
        wanted = float(network(**inputs, labels=labels).loss)
    assert losses == [pytest.approx(wanted, abs=1e-4)]


@pytest.mark.parametrize(
    "family", ["glm4v", *(pytest.param(name, marks=pytest.mark.slow) for name in ("glm46v", "glm_ocr"))]
)
def test_taught_saved_and_merged(family, folders, rows, tmp_path):
    vlm = load(folders[family])
    shown = str(rows.parent / "0.png")
    before = vlm.encode(shown)[0]
    report = vlm.finetune(rows, method="lora", output_dir=tmp_path / "taught", **SETTINGS)
    losses = [point["loss"] for point in report.history if "loss" in point]
    assert losses[-1] < losses[0] / 2
    assert torch.equal(vlm.encode(shown)[0], before)  # its eyes did not learn
    wanted = list(vlm.chat(shown, "What is this?", max_new_tokens=8).ids)
    assert list(load(folders[family]).chat(shown, "What is this?", max_new_tokens=8).ids) != wanted
    again = VisGLM.from_pretrained(tmp_path / "taught", device="cpu", dtype="float32")
    assert list(again.chat(shown, "What is this?", max_new_tokens=8).ids) == wanted
    vlm.merge()
    vlm.save_pretrained(tmp_path / "merged")
    assert sorted(path.suffix for path in (tmp_path / "merged").glob("model*")) == [".safetensors"]
    _, ids = Reference(family, tmp_path / "merged").answer([("What is this?", "", [Image.open(shown)])], 8)
    assert ids == wanted


def test_taught_by_the_command_and_loaded_elsewhere(folders, rows, tmp_path, capsys):
    """An adapter over its base, and weights as a whole, which transformers loads, too."""
    shown, wanted = str(rows.parent / "0.png"), []
    flags = [word for name, value in SETTINGS.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    base = load(folders["glm4v"])
    for method, rate in (("lora", "2e-2"), ("full", "5e-3")):
        words = ["--method", method, "--model", str(folders["glm4v"]), "--output-dir", str(tmp_path / method)]
        more = ["--learning-rate", rate, "--num-workers", "0", "--dtype", "float32"]
        assert main(["finetune", str(rows), *flags, *words, *more]) == 0
        again = load(tmp_path / method)
        wanted.append(list(again.chat(shown, "What is this?", max_new_tokens=8).ids))
    assert wanted[0] != list(base.chat(shown, "What is this?", max_new_tokens=8).ids) != wanted[1]
    assert not torch.equal(again.encode(shown)[0], base.encode(shown)[0])  # by full, its eyes learn as well
    other = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, shown, *(str(tmp_path / method) for method in ("lora", "full"))],
        capture_output=True, text=True, check=False, timeout=280,
    )  # fmt: skip
    assert other.returncode == 0, other.stderr[-2000:]
    assert list(map(json.loads, other.stdout.splitlines()[-2:])) == wanted
    _, ids = Reference("glm4v", tmp_path / "full").answer([("What is this?", "", [Image.open(shown)])], 8)
    assert ids == wanted[1]


@pytest.mark.parametrize("method", ["ptuning", "qformer"])
def test_a_method_of_others_is_refused_by_the_command(method, folders, rows, tmp_path, capsys):
    words = ["finetune", str(rows), "--method", method, "--model", str(folders["glm_ocr"])]
    assert main([*words, "--output-dir", str(tmp_path / "taught")]) == 1
    told = capsys.readouterr().err
    assert (
        f"GLM-OCR is not taught by '{method}' here; the methods are lora, qlora, full" in told and "take lora" in told
    )
    assert not (tmp_path / "taught" / "visglm_adapter.json").exists()


@pytest.mark.slow
def test_over_a_base_in_four_bits(folders, rows, tmp_path):
    vlm = load(folders["glm46v"], quantize="int4")
    vlm.finetune(rows, method="qlora", output_dir=tmp_path / "taught", **SETTINGS | {"epochs": 2})
    assert any(isinstance(module, QuantizedLinear) for module in vlm.model.modules())
    shown = str(rows.parent / "1.png")
    again = VisGLM.from_pretrained(tmp_path / "taught", device="cpu", dtype="float32")
    assert again.chat(shown, "这是什么？", max_new_tokens=6).ids == vlm.chat(shown, "这是什么？", max_new_tokens=6).ids


def test_what_the_family_does_not_learn_by_is_told(folders, rows, tmp_path):
    vlm = load(folders["glm4v"])
    with pytest.raises(ConfigError, match="not taught by 'qformer' here; the methods are lora, qlora"):
        vlm.finetune(rows, method="qformer", output_dir=tmp_path / "taught", **SETTINGS)
    with pytest.raises(ConfigError, match="has no qformer"):
        vlm.finetune(rows, method="lora", towers="text,qformer", output_dir=tmp_path / "taught", **SETTINGS)
    assert vlm.chat(None, "Hi", max_new_tokens=1).ids
