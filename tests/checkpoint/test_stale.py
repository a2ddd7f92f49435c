"""Two saves in one folder: what belongs together is loaded, or both sets are named."""

from __future__ import annotations

import shutil

import pytest
import torch

from tests.tiny import GOLDEN_HF
from visglm import VisGLM
from visglm.errors import CheckpointError

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture
def saved(tmp_path):
    vlm = VisGLM.from_pretrained(GOLDEN_HF, device="cpu")
    vlm.save_pretrained(tmp_path / "model")
    return vlm, tmp_path / "model"


def change(vlm) -> None:
    with torch.no_grad():
        vlm.model.lm_head.weight.mul_(1.5)


def holds(folder, vlm) -> bool:
    return torch.equal(VisGLM.from_pretrained(folder, device="cpu").model.lm_head.weight, vlm.model.lm_head.weight)


def test_a_stale_index_beside_a_whole_file(saved):
    """transformers writes an index with its shards and leaves it behind when it writes one file again."""
    vlm, folder = saved
    (folder / WHOLE).unlink()
    vlm.model.save_pretrained(folder, max_shard_size="300KB")
    assert holds(folder, vlm)
    change(vlm)
    vlm.model.save_pretrained(folder)
    assert (folder / INDEX).is_file() and (folder / WHOLE).is_file()
    assert holds(folder, vlm)


def test_shards_beside_a_whole_file_are_two_sets(saved):
    vlm, folder = saved
    change(vlm)
    vlm.model.save_pretrained(folder, max_shard_size="300KB")
    with pytest.raises(CheckpointError) as info:
        VisGLM.from_pretrained(folder, device="cpu")
    assert WHOLE in str(info.value) and INDEX in str(info.value) and "Remove" in str(info.value)
    (folder / WHOLE).unlink()
    assert holds(folder, vlm)


def test_our_save_over_shards(saved):
    vlm, folder = saved
    (folder / WHOLE).unlink()
    vlm.model.save_pretrained(folder, max_shard_size="300KB")
    change(vlm)
    vlm.save_pretrained(folder)
    assert [path.name for path in folder.glob("model*")] == [WHOLE]
    assert holds(folder, vlm)


def test_shards_of_two_counts(saved):
    vlm, folder = saved
    (folder / WHOLE).unlink()
    vlm.model.save_pretrained(folder, max_shard_size="300KB")
    (folder / INDEX).unlink()
    assert holds(folder, vlm)
    first = sorted(folder.glob("model-*"))[0]
    shutil.copy(first, folder / "model-00001-of-00001.safetensors")
    with pytest.raises(CheckpointError) as info:
        VisGLM.from_pretrained(folder, device="cpu")
    assert "model-00001-of-00001.safetensors" in str(info.value) and first.name in str(info.value)


def test_a_shard_that_the_index_names_is_missing(saved):
    vlm, folder = saved
    (folder / WHOLE).unlink()
    vlm.model.save_pretrained(folder, max_shard_size="300KB")
    lost = sorted(folder.glob("model-*"))[1]
    lost.unlink()
    with pytest.raises(CheckpointError) as info:
        VisGLM.from_pretrained(folder, device="cpu")
    assert info.value.problems == [f"file {lost.name}: missing"]
