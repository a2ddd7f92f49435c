"""Fine-tuning methods: what each trains, how it comes back from disk, what merging and switching off do."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from visglm import VisGLM, checkpoint
from visglm.checkpoint.adapter import METADATA_NAME, lora_layers
from visglm.errors import CheckpointError, ConfigError
from visglm.quant import QuantizedLinear
from visglm.recipe import FinetuneArguments
from visglm.training import METHODS
from visglm.training.adapters import parse_layers, prepare, save_trained, settle, tower_of, trainable, withdraw

from .samples import picture


@pytest.fixture(scope="module")
def base() -> VisGLM:
    return VisGLM.from_pretrained()


@pytest.fixture
def vlm(base: VisGLM) -> VisGLM:
    return VisGLM(copy.deepcopy(base.model), base.processor)


def logits(vlm: VisGLM) -> torch.Tensor:
    messages = [
        {"role": "user", "content": [{"type": "image", "image": picture(1)}, {"type": "text", "text": "What is this?"}]}
    ]
    inputs = vlm.processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    with torch.no_grad():
        return vlm.model(**inputs, use_cache=False).logits[0, -1]


def learn(vlm: VisGLM, method: str, **settings: Any) -> None:
    """As if training had moved every trainable number a little."""
    torch.manual_seed(0)
    prepare(vlm.model, FinetuneArguments(method=method, **settings))
    with torch.no_grad():
        for parameter in trainable(vlm.model).values():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    settle(vlm.model)


# qlora needs a quantized base: tests of quantization have it.
PLAIN = [method for method in METHODS if not METHODS[method].quantizes]
LEARNT = {
    "lora": lambda name: ".lora_" in name and name.startswith("model.text."),
    "ptuning": lambda name: name.endswith(".prefix"),
    "qformer": lambda name: tower_of(name) == "qformer",
    "full": lambda name: True,
}


@pytest.mark.parametrize("method", PLAIN)
def test_only_what_the_method_declares_is_trained(vlm, method):
    prepare(vlm.model, FinetuneArguments(method=method))
    names = {name for name, _ in vlm.model.named_parameters()}
    assert set(trainable(vlm.model)) == {name for name in names if LEARNT[method](name)}
    assert all(parameter.dtype == torch.float32 for parameter in trainable(vlm.model).values())


@pytest.mark.parametrize("method", PLAIN)
def test_a_result_comes_back_from_its_folder_by_the_same_call(vlm, base, method, tmp_path):
    learn(vlm, method)
    assert not torch.allclose(logits(vlm), logits(base), atol=1e-3)
    save_trained(tmp_path, vlm.model, vlm.processor, method)
    again = VisGLM.from_pretrained(tmp_path)
    assert torch.allclose(logits(again), logits(vlm), atol=1e-5)
    if METHODS[method].keeps_base:
        with again.adapter_disabled():
            assert torch.equal(logits(again), logits(base))
        assert torch.allclose(logits(again), logits(vlm), atol=1e-5)
        again.save_pretrained(tmp_path / "copy")
        assert torch.allclose(logits(VisGLM.from_pretrained(tmp_path / "copy")), logits(vlm), atol=1e-5)


@pytest.mark.parametrize("method", ["lora", "qformer"])
def test_merged_is_unmerged(vlm, method, tmp_path):
    learn(vlm, method)
    before = logits(vlm)
    vlm.merge()
    assert not lora_layers(vlm.model) and checkpoint.active(vlm.model) is None
    assert torch.allclose(logits(vlm), before, atol=1e-4)
    vlm.save_pretrained(tmp_path)
    assert not checkpoint.is_adapter(tmp_path)
    assert torch.allclose(logits(VisGLM.from_pretrained(tmp_path)), before, atol=1e-4)


def test_a_prefix_cannot_be_merged(vlm):
    learn(vlm, "ptuning")
    with pytest.raises(ConfigError, match="P-Tuning"):
        vlm.merge()


def test_adapters_stand_side_by_side(vlm, base, tmp_path):
    expected = {"base": logits(base)}
    for method in ("lora", "qformer"):
        other = VisGLM(copy.deepcopy(base.model), base.processor)
        learn(other, method)
        save_trained(tmp_path / method, other.model, other.processor, method)
        expected[method] = logits(other)
        vlm.load_adapter(tmp_path / method, method)
    for name in ("qformer", "lora", "qformer"):
        vlm.use_adapter(name)
        assert torch.allclose(logits(vlm), expected[name], atol=1e-5)
    vlm.use_adapter(None)
    assert torch.equal(logits(vlm), expected["base"])
    with pytest.raises(ConfigError, match="lora, qformer"):
        vlm.use_adapter("third")


def test_lora_is_put_where_it_is_asked_for(vlm):
    prepare(vlm.model, FinetuneArguments(layers="0,2-3", targets="query_key_value", towers="text"))
    assert [name for name, _ in lora_layers(vlm.model)] == [
        f"model.text.layers.{number}.attention.query_key_value" for number in (0, 2, 3)
    ]


def test_towers_get_lora_of_their_own(vlm):
    prepare(vlm.model, FinetuneArguments(towers="qformer"))
    assert {tower_of(name + ".") for name, _ in lora_layers(vlm.model)} == {"qformer"}


@pytest.mark.parametrize(
    "settings, problem",
    [
        ({"targets": "nothing"}, "no linear layer"),
        ({"layers": "99"}, "no linear layer"),
        ({"layers": "one"}, "numbers and ranges"),
        ({"method": "ptuning", "towers": "vision"}, "prefix of the text model only"),
        ({"method": "qlora"}, "4 bits"),
    ],
)
def test_settings_that_train_nothing_are_refused(vlm, settings, problem):
    with pytest.raises(ConfigError, match=problem):
        prepare(vlm.model, FinetuneArguments(**settings))


@pytest.mark.parametrize("scheme", ["int4", "nf4"])
def test_qlora_learns_over_four_bits_and_comes_back_over_them(scheme, tmp_path):
    vlm = VisGLM.from_pretrained(quantize=scheme)
    before = logits(vlm)
    learn(vlm, "qlora")
    assert {name for name in trainable(vlm.model)} == set()
    save_trained(tmp_path, vlm.model, vlm.processor, "qlora")
    again = VisGLM.from_pretrained(tmp_path)
    assert again.model.config.quantization["scheme"] == scheme
    assert torch.allclose(logits(again), logits(vlm), atol=1e-4)
    with again.adapter_disabled():
        assert torch.allclose(logits(again), before, atol=1e-4)
    with pytest.raises(ConfigError, match="quantized"):
        again.merge()


@pytest.mark.parametrize("finish", [settle, withdraw])
def test_packed_weights_are_not_kept_twice_while_training(finish):
    vlm = VisGLM.from_pretrained(quantize="int8")  # whose products need no package

    def with_products() -> set[bool]:
        return {module.product is not None for module in vlm.model.modules() if isinstance(module, QuantizedLinear)}

    with pytest.raises(ConfigError):
        prepare(vlm.model, FinetuneArguments(method="qlora", targets="nothing"))
    assert with_products() == {True}
    prepare(vlm.model, FinetuneArguments(method="qlora"))
    assert with_products() == {False}
    finish(vlm.model)
    assert with_products() == {True}


def test_layers_are_numbers_and_ranges():
    assert parse_layers("0-2,5") == {0, 1, 2, 5}
    assert parse_layers(None) is None


def test_a_second_adapter_is_not_trained_over_the_first(vlm):
    learn(vlm, "lora")
    with pytest.raises(ConfigError, match="merge"):
        prepare(vlm.model, FinetuneArguments())


@pytest.fixture
def folder(vlm: VisGLM, tmp_path: Path) -> Path:
    learn(vlm, "lora")
    save_trained(tmp_path, vlm.model, vlm.processor, "lora")
    return tmp_path


@pytest.mark.parametrize(
    "spoil, problem",
    [
        (lambda folder: (folder / METADATA_NAME).write_text("{"), "cannot be read"),
        (lambda folder: (folder / METADATA_NAME).write_text('{"format": 99, "base": null}'), "Upgrade"),
        (lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"half"), "damaged"),
    ],
)
def test_a_damaged_adapter_folder_is_refused(folder, spoil, problem):
    spoil(folder)
    with pytest.raises(CheckpointError, match=problem):
        VisGLM.from_pretrained(folder)


def test_an_adapter_over_another_base_is_refused(folder):
    from ..tiny import golden_model

    with pytest.raises(CheckpointError):
        checkpoint.attach(golden_model(), folder)
