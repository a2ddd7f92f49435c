"""The family's own int8 and int4 checkpoints: packed as its documentation says, kept as they are, to the bit."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from transformers import AutoModel

from tests.tiny import GOLDEN_HF, expected
from visglm import VisGLM
from visglm.cli import main
from visglm.errors import CheckpointError, ConfigError
from visglm.quant import QuantizedEmbedding, QuantizedLinear
from visglm.quant.memory import stretch_of
from visglm.quant.schemes import SCHEMES

LINEARS = ("attention.query_key_value", "attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h")
CPU = {"device": "cpu", "dtype": "float32"}
pytestmark = pytest.mark.filterwarnings("ignore:int4 is several times slower")


def pack(weight, bits):
    largest = 2 ** (bits - 1) - 1
    scale = weight.abs().amax(dim=-1) / largest
    values = (weight / scale[:, None]).round().clamp(-largest, largest).to(torch.int8)
    stored = values if bits == 8 else (values[:, 0::2] << 4) | (values[:, 1::2] & 15)
    return stored, scale.half(), values * scale.half().float()[:, None]


@pytest.fixture(scope="module", params=[8, 4])
def folders(request, tmp_path_factory):
    """The scheme, a folder as the family packs it, and one with the numbers that it means."""
    folder = tmp_path_factory.mktemp("packed")
    for name in ("packed", "meant"):
        shutil.copytree(GOLDEN_HF, folder / name)
    config = folder / "packed/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"quantization_bit": request.param}))
    for shard in (folder / "packed").glob("*.bin"):
        packed = torch.load(shard, weights_only=True)
        meant = dict(packed)
        for name in [name for name in packed if name.endswith(".weight")]:
            if name.startswith("transformer.layers.") and any(part in name for part in LINEARS):
                packed[name], packed[name + "_scale"], meant[name] = pack(packed[name], request.param)
        torch.save(packed, shard)
        torch.save(meant, folder / "meant" / shard.name)
    return f"int{request.param}", folder / "packed", folder / "meant"


def packed_modules(vlm):
    return {
        name: module
        for name, module in vlm.model.named_modules()
        if isinstance(module, QuantizedLinear | QuantizedEmbedding)
    }


@torch.no_grad()
def test_it_keeps_its_bits_and_its_numbers(folders):
    scheme, packed, meant = folders
    vlm, reference = VisGLM.from_pretrained(packed, **CPU), VisGLM.from_pretrained(meant, **CPU)
    modules = packed_modules(vlm)
    assert len(modules) == len(LINEARS) * vlm.model.config.text_config.num_hidden_layers
    for name, module in modules.items():
        found = SCHEMES[scheme].unpack(module.weight, module.weight_scale)
        assert torch.equal(found, reference.model.get_submodule(name).weight), name
    assert vlm.model.config.quantization["scheme"] == scheme
    assert vlm.model.config.quantization["parts"] == ["layers"]
    assert vlm.chat(None, "你好", max_new_tokens=2).usage.completion_tokens
    for module in modules.values():
        module.product = None  # the fast ones round what they multiply with, too
    ids = expected("visualglm")["text_ids"]
    torch.testing.assert_close(vlm.model(ids).logits, reference.model(ids).logits, rtol=0, atol=1e-3)


def test_its_own_scheme_packs_what_it_left(folders):
    scheme, packed, _ = folders
    as_it_is = packed_modules(VisGLM.from_pretrained(packed, **CPU))
    vlm = VisGLM.from_pretrained(packed, quantize=scheme, **CPU)
    modules = packed_modules(vlm)
    assert modules.keys() - as_it_is.keys() == {"model.text.embed_tokens", "lm_head"}
    for name, module in as_it_is.items():
        assert torch.equal(module.weight, modules[name].weight)
        assert torch.equal(module.weight_scale, modules[name].weight_scale)
    assert vlm.model.config.quantization["parts"] == ["layers", "embeddings", "head"]


def test_another_scheme_is_refused(folders, tmp_path, capsys):
    scheme, packed, _ = folders
    other = {"int4": "int8", "int8": "int4"}[scheme]
    message = f"quantized to {scheme} already, and quantizing it to {other} as well would add up the errors"
    with pytest.raises(ConfigError, match=message):
        VisGLM.from_pretrained(packed, quantize=other)
    assert main(["quantize", str(packed), str(tmp_path / "out"), "--scheme", other]) != 0
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_converted_it_stays_packed(folders, tmp_path):
    scheme, packed, _ = folders
    assert main(["convert", str(packed), str(tmp_path / "native"), "--to", "native"]) == 0
    assert main(["quantize", str(packed), str(tmp_path / "all"), "--scheme", scheme]) == 0
    for folder, options in (("native", {}), ("all", {"quantize": scheme})):
        wanted = VisGLM.from_pretrained(packed, **options, **CPU).model.state_dict()
        found = VisGLM.from_pretrained(tmp_path / folder, **CPU).model.state_dict()
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_old_scripts_load_it(folders):
    scheme, packed, _ = folders
    assert AutoModel.from_pretrained(str(packed)).half().config.quantization["scheme"] == scheme
    model = AutoModel.from_pretrained(str(packed), trust_remote_code=True, dtype="float32")
    assert model.config.quantization["scheme"] == scheme
    ids, reference = expected("visualglm")["text_ids"], VisGLM.from_pretrained(packed, **CPU).model
    with torch.no_grad():
        assert torch.equal(model(ids).logits, reference(ids).logits)
    bits = int(scheme[-1])
    assert model.quantize(bits).config.quantization["parts"] == ["layers", "embeddings", "head"]
    with pytest.raises(ConfigError, match=f"quantized to {scheme} already"):
        model.quantize(12 - bits)


def test_its_text_model_behind_another_tower(folders):
    scheme, packed, meant = folders
    vlm = VisGLM.from_parts(vision=meant, text=packed, **CPU)
    assert packed_modules(vlm).keys() == packed_modules(VisGLM.from_pretrained(packed, **CPU)).keys()
    assert vlm.model.config.quantization["parts"] == ["layers"]


def test_a_quantized_tower_is_refused_as_a_part(folders, tmp_path):
    _, _, meant = folders
    VisGLM.from_pretrained(meant, quantize="int8", quantize_vision=True, **CPU).save_pretrained(tmp_path / "all")
    with pytest.raises(CheckpointError, match="its vision tower is quantized"):
        VisGLM.from_parts(vision=tmp_path / "all", text=meant)


def test_a_missing_scale_is_named(folders, tmp_path):
    _, packed, _ = folders
    shutil.copytree(packed, tmp_path / "model")
    shard = next(
        path for path in (tmp_path / "model").glob("*.bin")
        if any(name.endswith("_scale") for name in torch.load(path, weights_only=True))
    )  # fmt: skip
    content = torch.load(shard, weights_only=True)
    lost = next(name for name in content if name.endswith("_scale"))
    del content[lost]
    torch.save(content, shard)
    with pytest.raises(CheckpointError, match=f"missing: {lost}"):
        VisGLM.from_pretrained(tmp_path / "model", **CPU)


def test_packed_weights_stay_in_the_files_they_were_saved_to(tmp_path):
    """Loading copies none of them; a folder may be saved over, and what is written over a weight is not in the file."""
    folder = tmp_path / "int8"
    VisGLM.from_pretrained(GOLDEN_HF, device="cpu", quantize="int8").save_pretrained(folder)
    vlm = VisGLM.from_pretrained(folder, device="cpu")
    linears = [module for module in vlm.model.modules() if isinstance(module, QuantizedLinear)]
    assert linears and all(stretch_of(linear.weight) is not None for linear in linears)
    before = [linear.weight.clone() for linear in linears]
    vlm.save_pretrained(folder)
    assert all(torch.equal(linear.weight, weight) for linear, weight in zip(linears, before, strict=True))
    linears[0].weight.zero_()
    assert stretch_of(linears[0].weight) is None  # nobody may forget it
    again = VisGLM.from_pretrained(folder, device="cpu")
    found = [module.weight for module in again.model.modules() if isinstance(module, QuantizedLinear)]
    assert all(torch.equal(one, other) for one, other in zip(found, before, strict=True))
