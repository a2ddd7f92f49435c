"""Round trips to the bit, folders that appear whole or not at all, and what the old formats cannot hold."""

from __future__ import annotations

import json
import os

import pytest
import torch

from tests.tiny import GOLDEN_HF, GOLDEN_SAT, make_fine_tuned
from visglm import VisGLM
from visglm.checkpoint import convert, open_source
from visglm.checkpoint.owned import MARKER_NAME
from visglm.checkpoint.writer import ShardWriter, replacing
from visglm.errors import CheckpointError, ConfigError


def tensors(path, tokenizer=None):
    return {name: tensor.clone() for name, tensor in open_source(path, tokenizer).tensors()}


def raw(path):
    """What the files of a foreign layout hold, under their own names."""
    content = {}
    for file in sorted([*path.glob("*.bin"), *path.glob("1/*.pt")]):
        loaded = torch.load(file, weights_only=True)
        content |= loaded.get("module", loaded)
    return content


def same(first, second):
    return first.keys() == second.keys() and all(
        first[name].dtype == second[name].dtype and torch.equal(first[name], second[name]) for name in first
    )


@pytest.fixture
def native(tmp_path):
    convert(open_source(GOLDEN_HF), tmp_path / "native", "native")
    return tmp_path / "native"


@pytest.mark.parametrize("to", ["hf-legacy", "sat"])
def test_native_to_an_old_format_and_back(native, tmp_path, to):
    convert(open_source(native), tmp_path / "old", to)
    convert(open_source(tmp_path / "old"), tmp_path / "again", "native")
    assert same(tensors(native), tensors(tmp_path / "again"))
    for name in ("config.json", "generation_config.json", "processor_config.json", "ice_text.model"):
        assert (native / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


@pytest.mark.parametrize("source, to", [(GOLDEN_HF, "hf-legacy"), (GOLDEN_SAT, "sat"), (GOLDEN_HF, "sat")])
def test_an_old_checkpoint_survives_the_way_through_native(tmp_path, source, to):
    """Tensor by tensor what the reference implementations wrote, buffers included."""
    convert(open_source(source, GOLDEN_HF), tmp_path / "native", "native")
    convert(open_source(tmp_path / "native"), tmp_path / "old", to)
    assert same(raw(tmp_path / "old"), raw(GOLDEN_HF if to == "hf-legacy" else GOLDEN_SAT))


def test_settings_survive(native, tmp_path):
    convert(open_source(native), tmp_path / "old", "hf-legacy")
    written, golden = (json.loads((path / "config.json").read_text()) for path in (tmp_path / "old", GOLDEN_HF))
    different = {key for key in golden if key in written and written[key] != golden[key]}
    assert different <= {"eva_config", "qformer_config"}
    for part in ("eva_config", "qformer_config"):
        assert golden[part].items() <= written[part].items()


def test_half_precision_stays(tmp_path):
    vlm = VisGLM.from_pretrained(GOLDEN_HF, device="cpu", dtype="float16")
    vlm.save_pretrained(tmp_path / "native")
    convert(open_source(tmp_path / "native"), tmp_path / "sat", "sat")
    assert {tensor.dtype for tensor in raw(tmp_path / "sat").values()} == {torch.float16}
    assert json.loads((tmp_path / "native/config.json").read_text())["dtype"] == "float16"


@pytest.mark.parametrize("kind", ["lora", "ptuning"])
def test_a_base_with_its_adapter_is_saved_and_loaded(tmp_path, kind):
    folder = make_fine_tuned(kind, tmp_path / "sat")
    vlm = VisGLM.from_pretrained(folder, tokenizer=GOLDEN_HF, device="cpu")
    vlm.save_pretrained(tmp_path / "saved")
    again = VisGLM.from_pretrained(tmp_path / "saved", device="cpu")
    ids = torch.tensor([[5, 9, 77, 505, 508, 30]])
    with torch.no_grad():
        assert torch.equal(vlm.model(ids).logits, again.model(ids).logits)
    assert same(tensors(GOLDEN_HF), tensors(tmp_path / "saved"))
    with pytest.raises(ConfigError, match="holds an adapter over a base model, and would lose it"):
        convert(open_source(folder, GOLDEN_HF), tmp_path / "lost", "native")


def test_shards_have_an_index(tmp_path):
    writer = ShardWriter(tmp_path, "model", ".safetensors", shard_bytes=100)
    for name in "abc":
        writer.add(name, torch.ones(20))
    writer.close()
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["weight_map"]["c"] == "model-00003-of-00003.safetensors"
    assert sorted(path.name for path in tmp_path.glob("*.safetensors")) == sorted(index["weight_map"].values())


def test_a_failed_save_leaves_what_was_there(tmp_path):
    target = tmp_path / "model"
    with replacing(target) as partial:
        (partial / "config.json").write_text("old")
    (target / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="What was there before is intact"), replacing(target) as partial:
        (partial / "config.json").write_text("new")
        raise OSError(28, os.strerror(28))
    assert (target / "config.json").read_text() == "old"
    with replacing(target) as partial:
        (partial / "model.safetensors").write_text("new")
    assert sorted(path.name for path in target.iterdir()) == ["model.safetensors", "notes.txt", MARKER_NAME]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_the_old_formats_cannot_hold(tmp_path):
    with pytest.raises(ConfigError, match="stem 'tf_efficientnet_lite2' and recogniser 'tf_efficientnet_lite2'"):
        convert(open_source(None), tmp_path / "out", "sat")
    with pytest.raises(ConfigError, match="'gguf'.*native, hf-legacy, sat"):
        convert(open_source(None), tmp_path / "out", "gguf")
    assert not list(tmp_path.iterdir())
