"""Fine-tuning methods: which parameters each trains, and which settings mean nothing."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch

from tests.adapters.taught import golden
from visglm import VisGLM
from visglm.adapters import lora_layers
from visglm.errors import ConfigError
from visglm.quant import QuantizedLinear
from visglm.recipe import FinetuneArguments
from visglm.training import METHODS
from visglm.training.methods import check_method, make_part, parse_layers, tower_of, trainable


@pytest.fixture(scope="module")
def base() -> VisGLM:
    return golden()


@pytest.fixture
def vlm(base: VisGLM) -> VisGLM:
    return VisGLM(copy.deepcopy(base.model), base.processor)


def prepare(vlm: VisGLM, **settings: Any) -> None:
    arguments = FinetuneArguments(**settings)
    vlm.adapters.learn(arguments.method, partial(make_part, arguments=arguments))


# qlora needs a quantized base.
PLAIN = [method for method in METHODS if not METHODS[method].quantizes]
LEARNT = {
    "lora": lambda name: ".lora_" in name and tower_of(name) == "text",
    "ptuning": lambda name: name.endswith(".prefix"),
    "qformer": lambda name: tower_of(name) == "qformer",
    "full": lambda name: True,
}


@pytest.mark.parametrize("method", PLAIN)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_what_the_method_declares_is_trained(vlm, method, dtype):
    vlm.model.to(dtype)
    prepare(vlm, method=method)
    names = {name for name, _ in vlm.model.named_parameters()}
    assert set(trainable(vlm.model)) == {name for name in names if LEARNT[method](name)}
    assert all(parameter.dtype == torch.float32 for parameter in trainable(vlm.model).values())


def test_lora_is_put_where_it_is_asked_for(vlm):
    prepare(vlm, layers="0,2-3", targets="query_key_value", towers="text")
    assert list(lora_layers(vlm.model)) == [
        f"model.text.layers.{number}.attention.query_key_value"
        for number in (0, 2, 3)
        if number < vlm.model.config.text_config.num_hidden_layers
    ]


def test_towers_get_lora_of_their_own(vlm):
    prepare(vlm, towers="qformer")
    assert {tower_of(name + ".") for name in lora_layers(vlm.model)} == {"qformer"}


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
def test_settings_that_train_nothing_are_refused_and_change_nothing(vlm, settings, problem):
    with pytest.raises(ConfigError, match=problem):
        prepare(vlm, **settings)
    assert not vlm.adapters.names and not lora_layers(vlm.model)


@pytest.mark.parametrize("method, towers", [("full", None), ("full", "text"), ("qformer", "qformer,text")])
def test_packed_weights_do_not_learn_themselves(tmp_path, method, towers):
    """What is left of a packed tower, its biases and norms, would learn alone, under the name of everything."""
    vlm = VisGLM.from_pretrained(quantize="int8")
    with pytest.raises(ConfigError, match="text is packed .*int8.* do not learn.*lora"):
        vlm.finetune([{"image": "a.png", "caption": "b"}], method=method, towers=towers, output_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    check_method(vlm.model, FinetuneArguments(method="qformer"))


def test_packed_weights_are_not_kept_twice_while_training():
    vlm = golden(quantize="int8")  # whose products need no package

    def with_products() -> set[bool]:
        return {module.product is not None for module in vlm.model.modules() if isinstance(module, QuantizedLinear)}

    with pytest.raises(ConfigError):
        prepare(vlm, method="qlora", targets="nothing")
    assert with_products() == {True}
    prepare(vlm, method="qlora")
    assert with_products() == {False}
    vlm.adapters.withdraw()
    assert with_products() == {True}
    prepare(vlm, method="qlora")
    vlm.adapters.settle(keeps_base=True)
    assert with_products() == {True}


def test_layers_are_numbers_and_ranges():
    assert parse_layers("0-2,5") == {0, 1, 2, 5}
    assert parse_layers(None) is None
