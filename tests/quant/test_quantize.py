"""Loading in fewer bits: which modules, what the configuration says, the way back, and what is refused."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from tests.tiny import expected, golden_config, golden_model
from visglm import VisGLM, checkpoint
from visglm.config import VisGLMConfig
from visglm.errors import ConfigError
from visglm.quant import SCHEMES, Quantization, QuantizedEmbedding, QuantizedLinear, modules_of, quantize_network
from visglm.quant.products import Int8Product

LAYER_LINEARS = ("attention.query_key_value", "attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h")
# Scheme → largest relative error of logits after one layer of the golden network. Its weights are random and large, so
# that float32 itself drifts by 1e-3 over its three layers: errors of the weights (0.9 % and 9 %) come out fourfold.
LOGIT_ERRORS = {"int8": 0.04, "int4": 0.45, "nf4": 0.40}
schemes = pytest.mark.parametrize("scheme", SCHEMES)
pytestmark = pytest.mark.filterwarnings("ignore:int4 is several times slower")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The embedded model's folder with the weights of a random network, which need not be the embedded ones."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("tiny")
    VisGLM.from_pretrained().save_pretrained(folder)
    return folder


def packed_names(network) -> set[str]:
    return {
        name for name, module in network.named_modules() if isinstance(module, QuantizedLinear | QuantizedEmbedding)
    }


def layer_linears(network) -> set[str]:
    count = network.config.text_config.num_hidden_layers
    return {f"model.text.layers.{index}.{name}" for index in range(count) for name in LAYER_LINEARS}


@schemes
@pytest.mark.parametrize("vision", [False, True])
def test_exactly_the_named_modules_are_packed(folder, scheme, vision):
    network, *_ = checkpoint.load(folder, quantize=scheme, quantize_vision=vision)
    names = layer_linears(network)
    if scheme != "nf4":
        names |= {"model.text.embed_tokens", "lm_head"}
    if vision:
        names |= {
            name
            for name, module in network.named_modules()
            if name.startswith("model.vision.") and isinstance(module, torch.nn.Linear)
        } - {"model.vision.projection"}
    assert packed_names(network) == names
    for name in ("vit.blocks.0.attn.qkv", "qformer.encoder.layer.0.attention.attention.query", "recogniser.gate"):
        assert (f"model.vision.{name}" in names) == vision
    assert network.config.quantization["scheme"] == scheme


@torch.no_grad()
@schemes
def test_golden_logits_stay_within_their_bound(scheme):
    input_ids = expected("visualglm")["text_ids"]
    exact, packed = golden_model(), golden_model()
    for network in (exact, packed):
        network.model.text.layers = network.model.text.layers[:1]
    quantize_network(packed, Quantization(scheme, 32, SCHEMES[scheme].parts))
    wanted = exact(input_ids=input_ids).logits
    error = float((packed(input_ids=input_ids).logits - wanted).norm() / wanted.norm())
    assert 1e-3 < error < LOGIT_ERRORS[scheme]


@schemes
def test_saved_and_loaded_it_is_the_same_network(folder, tmp_path, scheme):
    first = VisGLM.from_pretrained(folder, quantize=scheme)
    first.save_pretrained(tmp_path)
    again = VisGLM.from_pretrained(tmp_path)
    assert packed_names(again.model) == packed_names(first.model)
    before, after = first.model.state_dict(), again.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert json.loads((tmp_path / "config.json").read_text())["quantization"]["scheme"] == scheme
    assert first.chat(None, "hello", max_new_tokens=4).text == again.chat(None, "hello", max_new_tokens=4).text


def test_quantizing_at_load_equals_quantizing_afterwards(folder):
    at_load = VisGLM.from_pretrained(folder, quantize="int4").model
    afterwards = VisGLM.from_pretrained(folder).model
    quantize_network(afterwards, Quantization.choose("int4", afterwards.config))
    before, after = at_load.state_dict(), afterwards.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_vision_keeps_its_16_bits_while_the_network_computes_in_float32(folder, tmp_path):
    VisGLM.from_pretrained(folder, dtype="float16").save_pretrained(tmp_path)
    model = VisGLM.from_pretrained(tmp_path, quantize="int8", dtype="float32").model
    qkv = model.model.vision.vit.blocks[0].attn.qkv
    assert qkv.weight.dtype == torch.float16
    assert model.model.vision.projection.weight.dtype == torch.float32
    side = model.config.vision_config.image_size
    embeds = model.get_image_features(torch.zeros(1, 3, side, side)).pooler_output
    assert embeds.dtype == torch.float32 and torch.isfinite(embeds).all()


def test_twice_is_refused(folder, tmp_path):
    VisGLM.from_pretrained(folder, quantize="int8").save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="quantized to int8 already"):
        VisGLM.from_pretrained(tmp_path, quantize="int4")


def test_unknown_schemes_are_refused(folder, tmp_path):
    with pytest.raises(ConfigError, match="no quantization scheme 'int3'; the schemes are int8, int4, nf4"):
        VisGLM.from_pretrained(folder, quantize="int3")
    config = json.loads((folder / "config.json").read_text())
    for record, message in (({"scheme": "int3", "group_size": 32, "parts": []}, "int3"), ({"bits": 4}, "the keys")):
        (tmp_path / "config.json").write_text(json.dumps({**config, "quantization": record}))
        with pytest.raises(ConfigError, match=message):
            VisGLM.from_pretrained(tmp_path)


def test_vision_alone_is_refused(folder):
    with pytest.raises(ConfigError, match="needs a scheme"):
        VisGLM.from_pretrained(folder, quantize_vision=True)


def test_tied_embeddings_and_head_are_left_alone():
    config = golden_config()
    config.text_config.tie_word_embeddings = config.tie_word_embeddings = True
    network = checkpoint.build(config)
    assert modules_of(network, ("layers", "embeddings", "head")).keys() == layer_linears(network)


def test_large_models_share_a_scale_among_more_numbers():
    assert Quantization.choose("int4", VisGLMConfig.preset("visualglm-6b")).group_size == 128
    assert Quantization.choose("int4", VisGLMConfig.preset("chatglm-6b"), vision=True).parts[-1] == "vision"


@pytest.mark.parametrize("scheme", ["int4", "nf4"])
def test_lora_trains_over_a_packed_base(folder, scheme):
    peft = pytest.importorskip("peft")
    network = VisGLM.from_pretrained(folder, quantize=scheme).model.train()
    frozen = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    targets = r"model\.text\.layers\.\d+\.attention\.query_key_value"
    network = peft.get_peft_model(network, peft.LoraConfig(r=4, target_modules=targets, init_lora_weights=True))
    adapters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    assert len(adapters) == 2 * network.config.text_config.num_hidden_layers
    text = network.config.text_config
    input_ids = torch.tensor([[20, 21, text.gmask_token_id, text.bos_token_id, 30, 31, 32]])
    labels = torch.where(torch.arange(7) > 3, input_ids, -100)
    optimizer = torch.optim.AdamW(adapters, lr=1e-2)
    losses = []
    for _ in range(6):
        loss = network(input_ids=input_ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    assert losses[-1] < losses[0] - 0.1
    after = network.get_base_model().state_dict()
    for name, tensor in frozen.items():
        module, _, leaf = name.rpartition(".")
        kept = after[name] if name in after else after[f"{module}.base_layer.{leaf}"]
        assert torch.equal(kept, tensor)


def test_a_head_of_any_number_of_words_is_multiplied_wherever_it_lies_in_its_file():
    """Behind scales of two bytes, int8's rows begin at any even address; there torch's product of seven is a crash."""
    torch.manual_seed(0)
    memory = torch.randint(-127, 128, (7 * 64 + 128,), dtype=torch.int8)
    start = -memory.data_ptr() % 64 + 62
    weight = memory[start : start + 7 * 64].view(7, 64)
    product = Int8Product(SimpleNamespace(weight=weight, weight_scale=torch.ones(7, 1)))
    hidden_states = torch.randn(1, 1, 64).bfloat16().float()
    torch.testing.assert_close(product(hidden_states), hidden_states @ weight.float().T, rtol=0.01, atol=2.0)
