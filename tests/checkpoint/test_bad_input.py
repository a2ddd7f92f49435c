"""Every broken checkpoint is one clear error that lists all problems and the next step; nothing is half loaded."""

from __future__ import annotations

import json
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiny import GOLDEN_HF, GOLDEN_SAT
from visglm import VisGLM
from visglm.checkpoint import convert, inspect, open_source
from visglm.errors import CheckpointError, ConfigError

FIRST, SECOND = (f"pytorch_model-0000{number}-of-00002.bin" for number in (1, 2))


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(GOLDEN_HF, tmp_path / "model")
    return tmp_path / "model"


def edit(path, change):
    fields = json.loads(path.read_text())
    change(fields)
    path.write_text(json.dumps(fields))


def refused(folder, **options):
    with pytest.raises(CheckpointError) as info:
        VisGLM.from_pretrained(folder, device="cpu", **options)
    return info.value


def test_all_problems_are_told_together(folder):
    shard = torch.load(folder / FIRST, weights_only=True)
    del shard["lm_head.weight"]
    shard["transformer.layers.0.mlp.dense_h_to_4h.bias"] = torch.zeros(7)
    shard["transformer.final_layernorm.bias"] = torch.zeros(64, dtype=torch.int64)
    shard["transformer.surprise"] = torch.zeros(1)
    torch.save(shard, folder / FIRST)
    error = refused(folder)
    for problem in (
        "missing: lm_head.weight",
        "unexpected: transformer.surprise",
        "shape: transformer.layers.0.mlp.dense_h_to_4h.bias is [7], expected [256]",
        "dtype: transformer.final_layernorm.bias is torch.int64, expected a floating-point type",
    ):
        assert problem in error.problems
    assert len(error.problems) == 4
    assert "Nothing was loaded" in str(error)


def damage_cut(path):
    path.write_bytes(path.read_bytes()[:2000])


def damage_html(path):
    path.write_text("<!DOCTYPE html><html>rate limit</html>")


def damage_pointer(path):
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


def damage_empty(path):
    path.write_bytes(b"")


class Malicious:
    def __reduce__(self):
        return (print, ("run",))


def damage_pickle(path):
    torch.save({"weight": Malicious()}, path, pickle_module=pickle)


@pytest.mark.parametrize(
    "damage, told",
    [
        (damage_cut, "no PyTorch file"),
        (damage_html, "a web page"),
        (damage_pointer, "git lfs pull"),
        (damage_empty, "empty"),
        (damage_pickle, "more than tensors"),
        (lambda path: path.unlink(), "missing"),
    ],
)
def test_a_damaged_shard_is_named_and_its_tensors_are_not(folder, damage, told, capsys):
    damage(folder / FIRST)
    error = refused(folder)
    assert len(error.problems) == 1 and error.problems[0].startswith(f"file {FIRST}: ") and told in error.problems[0]
    assert "run" not in capsys.readouterr().out


def test_a_cut_safetensors_file(tmp_path):
    convert(open_source(GOLDEN_HF), tmp_path / "model", "native")
    damage_cut(tmp_path / "model/model.safetensors")
    assert "header" in refused(tmp_path / "model").problems[0]


def test_no_weights(folder):
    for name in (FIRST, SECOND, "pytorch_model.bin.index.json"):
        (folder / name).unlink()
    assert refused(folder).problems == ["file pytorch_model.bin: missing"]


def test_no_folder_no_config_no_json(tmp_path, folder):
    assert "no such folder" in str(refused(tmp_path / "nothing"))
    assert "config.json is missing" in str(refused(tmp_path))
    (folder / "config.json").write_text("<html>")
    assert "config.json: no JSON" in str(refused(folder))


def test_no_network_and_a_hub_id():
    error = refused("THUDM/visualglm-6b")
    assert "the hub did not give it" in str(error) and "name it by its path" in error.next_step


def test_two_formats_in_one_folder(folder):
    shutil.copytree(GOLDEN_SAT, folder, dirs_exist_ok=True)
    error = refused(folder)
    assert "2 formats at once" in str(error) and "SwissArmyTransformer" in str(error)


def test_two_different_sets_of_weights(folder):
    save_file({"other": torch.zeros(1)}, folder / "model.safetensors")
    assert "two different sets of weights" in str(refused(folder))


def test_a_missing_and_a_wrong_tokenizer(folder):
    edit(folder / "config.json", lambda fields: fields.update(bos_token_id=7))
    assert "tokenizer: bos_token_id is 508, the model has 7" in str(refused(folder))
    (folder / "ice_text.model").unlink()
    assert "ice_text.model is part of the releases" in refused(folder).next_step
    assert "ice_text.model" in str(refused(GOLDEN_SAT))


def test_another_network_or_scheme(folder):
    edit(folder / "config.json", lambda fields: fields.update(position_encoding_2d=False))
    assert "position_encoding_2d is False, expected True" in str(refused(folder))
    edit(folder / "config.json", lambda fields: fields.update(position_encoding_2d=True, quantization_bit=3))
    assert "quantization_bit is 3, an unknown scheme" in str(refused(folder))


def test_an_adapter_over_another_base(folder, tmp_path):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules="all", base_model_name_or_path=str(folder))
    (tmp_path / "adapter").mkdir()
    config.save_pretrained(tmp_path / "adapter")
    name = "base_model.model.model.text.layers.9.attention.dense.lora_A.weight"
    save_file({name: torch.zeros(2, 64)}, tmp_path / "adapter/adapter_model.safetensors")
    error = refused(tmp_path / "adapter")
    assert "model.text.layers.9.attention.dense: not in the base" in error.problems


def test_a_quantized_checkpoint_is_inspected_as_it_is_stored(tmp_path):
    VisGLM.from_pretrained(GOLDEN_HF, device="cpu", quantize="int4").save_pretrained(tmp_path / "model")
    assert all(check.good for check in inspect(open_source(tmp_path / "model")))
    convert(open_source(tmp_path / "model"), tmp_path / "copy", "native")
    assert open_source(tmp_path / "copy").keys() == open_source(tmp_path / "model").keys()
    edit(tmp_path / "model/config.json", lambda fields: fields["quantization"].update(scheme="int3"))
    with pytest.raises(ConfigError, match="no quantization scheme 'int3'; the schemes are"):
        VisGLM.from_pretrained(tmp_path / "model", device="cpu")


def test_numbers_that_are_none_are_found(tmp_path):
    convert(open_source(GOLDEN_HF), tmp_path / "model", "native")
    found = {check.subject: check for check in inspect(open_source(tmp_path / "model"))}
    assert all(check.good for check in found.values()) and "sha256" in found["model.safetensors"].found
    weights = load_file(tmp_path / "model/model.safetensors")
    weights["lm_head.weight"][0, 0] = float("nan")
    save_file(weights, tmp_path / "model/model.safetensors", metadata={"format": "pt"})
    bad = [check for check in inspect(open_source(tmp_path / "model")) if not check.good]
    assert [check.found for check in bad] == ["not finite in lm_head.weight"]


@pytest.mark.parametrize("equal", [False, True])
def test_two_tensors_that_the_configuration_makes_one(folder, tmp_path, equal):
    """A head of its own is not silently replaced by the embeddings; one that equals them is no fault."""
    native = tmp_path / "native"
    convert(open_source(folder), native, "native")
    edit(native / "config.json", lambda fields: fields["text_config"].update(tie_word_embeddings=True))
    weights = load_file(native / "model.safetensors")
    assert not torch.equal(weights["lm_head.weight"], weights["model.text.embed_tokens.weight"])
    if equal:
        weights["lm_head.weight"] = weights["model.text.embed_tokens.weight"].clone()
        save_file(weights, native / "model.safetensors", {"format": "pt"})
        assert VisGLM.from_pretrained(native, device="cpu").chat(None, "Hello", max_new_tokens=2).text is not None
    else:
        assert any("'tie_word_embeddings' is true" in problem for problem in refused(native).problems)
