"""What is attached, over which base: nothing by halves, nothing forgotten, nothing of another."""

from __future__ import annotations

import copy
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiny import GOLDEN_HF
from visglm import VisGLM
from visglm.adapters import FILES, METADATA_NAME, Lora, is_adapter, lora_layers
from visglm.errors import CheckpointError, ConfigError
from visglm.training import METHODS
from visglm.training.saving import checkpoints
from visglm.training.trainer import VisGLMTrainer

from .taught import golden, logits, teach

PLAIN = [method for method in METHODS if not METHODS[method].quantizes]


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, torch.Tensor]]:
    """By method: the folder of a run over the golden model, and the logits with it."""
    found = {}
    for method in ("lora", "ptuning", "qformer"):
        folder = tmp_path_factory.mktemp(method) / "run"
        found[method] = (folder, logits(teach(golden(), folder, method)))
    return found


def state(vlm: VisGLM) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in vlm.model.state_dict().items()}


def assert_untouched(vlm: VisGLM, before: dict[str, torch.Tensor]) -> None:
    after = vlm.model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_adapters_stand_side_by_side(taught):
    vlm, expected = golden(), {"base": logits(golden())}
    for method, (folder, found) in taught.items():
        vlm.load_adapter(folder, method)
        expected[method] = found
    for name in ("qformer", "lora", "ptuning", "lora", "qformer"):
        vlm.use_adapter(name)
        assert torch.allclose(logits(vlm), expected[name], atol=1e-5), name
    with vlm.adapter_disabled():
        assert torch.equal(logits(vlm), expected["base"])
    vlm.use_adapter(None)
    assert torch.equal(logits(vlm), expected["base"])
    with pytest.raises(ConfigError, match="lora, ptuning, qformer"):
        vlm.use_adapter("third")


def test_two_prefixes_stand_side_by_side(taught):
    vlm, (folder, expected) = golden(), taught["ptuning"]
    vlm.load_adapter(folder, "first")
    vlm.load_adapter(folder, "second")
    vlm.use_adapter("first")
    assert torch.equal(logits(vlm), expected)


@pytest.mark.parametrize("name", ["text", "b", "a.b", "keys", "layers", "名字", "model.text"])
def test_an_adapter_may_have_any_name(taught, name, tmp_path):
    vlm = golden()
    vlm.load_adapter(taught["lora"][0], "first")
    vlm.load_adapter(taught["qformer"][0], name)
    assert torch.allclose(logits(vlm), taught["qformer"][1], atol=1e-5)
    vlm.use_adapter("first")
    vlm.save_pretrained(tmp_path / "saved")
    assert torch.allclose(logits(VisGLM.from_pretrained(tmp_path / "saved")), taught["lora"][1], atol=1e-5)


@pytest.mark.parametrize("first", ["lora", "qformer", "full"])
@pytest.mark.parametrize("second", ["lora", "ptuning", "qformer"])
def test_a_base_that_changed_in_memory_is_kept_with_what_was_learnt_over_it(first, second, tmp_path):
    vlm = teach(golden(), tmp_path / "first", first)
    if vlm.adapters.names:
        vlm.merge()
    teach(vlm, tmp_path / "second", second)
    found = logits(vlm)
    assert torch.equal(logits(VisGLM.from_pretrained(tmp_path / "second")), found)
    vlm.save_pretrained(tmp_path / "saved")
    assert torch.equal(logits(VisGLM.from_pretrained(tmp_path / "saved")), found)


def test_a_base_that_somebody_edited_goes_beside_its_adapter(tmp_path):
    vlm = golden()
    with torch.no_grad():
        vlm.model.lm_head.weight.mul_(1.5)
    teach(vlm, tmp_path / "run")
    assert torch.equal(logits(VisGLM.from_pretrained(tmp_path / "run")), logits(vlm))


def test_a_run_moves_as_one_folder(tmp_path):
    vlm = teach(VisGLM.from_parts(vision=GOLDEN_HF, text=GOLDEN_HF, device="cpu"), tmp_path / "here/run")
    (tmp_path / "here").rename(tmp_path / "there")
    assert torch.equal(logits(VisGLM.from_pretrained(tmp_path / "there/run")), logits(vlm))
    checkpoints = sorted((tmp_path / "there/run").glob("checkpoint-*"))
    assert torch.equal(logits(VisGLM.from_pretrained(checkpoints[-1])), logits(vlm))


def test_another_base_of_the_same_shapes_is_refused(taught, tmp_path):
    other = golden()
    with torch.no_grad():
        other.model.lm_head.weight.add_(1e-3)
    other.save_pretrained(tmp_path / "other")
    other = VisGLM.from_pretrained(tmp_path / "other")
    before = state(other)
    with pytest.raises(CheckpointError, match="another base of the same shapes"):
        other.load_adapter(taught["lora"][0], "lora")
    assert_untouched(other, before)
    with pytest.raises(CheckpointError, match="another base of the same shapes"):
        VisGLM.from_pretrained(taught["lora"][0], base=tmp_path / "other")


def test_a_base_that_moved_is_named_by_its_user(tmp_path):
    golden().save_pretrained(tmp_path / "base")
    vlm = teach(VisGLM.from_pretrained(tmp_path / "base", device="cpu"), tmp_path / "run")
    (tmp_path / "base").rename(tmp_path / "moved")
    with pytest.raises(CheckpointError, match=r"its base, .*base, is not on this machine\n.*base="):
        VisGLM.from_pretrained(tmp_path / "run")
    again = VisGLM.from_pretrained(tmp_path / "run", base=tmp_path / "moved")
    assert torch.equal(logits(again), logits(vlm))
    with pytest.raises(ConfigError, match="is for adapters"):
        VisGLM.from_pretrained(tmp_path / "moved", base=tmp_path / "moved")


def test_a_copy_of_the_base_in_a_wider_type_is_the_same_base(taught, tmp_path):
    golden(dtype="float32").save_pretrained(tmp_path / "wide")
    vlm = VisGLM.from_pretrained(tmp_path / "wide", device="cpu")
    vlm.load_adapter(taught["lora"][0], "lora")
    assert torch.allclose(logits(vlm), taught["lora"][1], atol=1e-5)


ITSELF = "adapter's folder itself"


@pytest.mark.parametrize(
    ("base", "problem"),
    [(".", r"config\.json is missing"), ("../run", ITSELF), ("{run}", ITSELF), ("../other", ITSELF)],
)
def test_a_base_that_is_an_adapter_is_refused(taught, tmp_path, base, problem):
    """Itself, too: no folder is opened within itself."""
    folder = tmp_path / "run"
    shutil.copytree(taught["lora"][0], folder)
    shutil.copytree(taught["ptuning"][0], tmp_path / "other")
    metadata = json.loads((folder / METADATA_NAME).read_text())
    metadata["base"]["name"] = base.format(run=folder)
    (folder / METADATA_NAME).write_text(json.dumps(metadata))
    with pytest.raises(CheckpointError, match=problem):
        VisGLM.from_pretrained(folder)


def test_the_models_own_folder_is_no_place_for_what_it_learns(tmp_path, monkeypatch):
    golden().save_pretrained(tmp_path / "model")
    before = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    vlm = VisGLM.from_pretrained(tmp_path / "model", device="cpu")
    monkeypatch.chdir(tmp_path)
    for method in PLAIN:
        for name in (tmp_path / "model", "model", "x/../model"):
            with pytest.raises(ConfigError, match="holds the model that is to be taught"):
                teach(vlm, name, method)
    teach(vlm, tmp_path / "run")
    with pytest.raises(ConfigError, match="holds the base model of this adapter"):
        vlm.save_pretrained(tmp_path / "model")
    assert {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()} == before


@pytest.mark.parametrize("first", ["lora", "ptuning", "qformer"])
@pytest.mark.parametrize("second", ["lora", "ptuning", "qformer", "base"])
def test_a_used_folder_holds_what_was_saved_last(taught, tmp_path, first, second):
    for method in (first, second):
        vlm = golden()
        if method != "base":
            vlm.load_adapter(taught[method][0], method)
        vlm.save_pretrained(tmp_path / "folder")
    (tmp_path / "folder/notes.txt").write_text("mine")
    vlm.save_pretrained(tmp_path / "folder")
    expected = logits(golden()) if second == "base" else taught[second][1]
    assert torch.allclose(logits(VisGLM.from_pretrained(tmp_path / "folder")), expected, atol=1e-5)
    names = {path.name for path in (tmp_path / "folder").iterdir()}
    assert is_adapter(tmp_path / "folder") == (second != "base")
    assert (FILES[3] in names) == (second == "lora") and "notes.txt" in names


def spoil_shape(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    name = sorted(tensors)[-1]
    return {**tensors, name: tensors[name][..., :-1].contiguous()}


def spoil_name(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    name = sorted(tensors)[-1]
    return {**tensors, "x" + name: tensors[name].clone()}


def spoil_count(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return dict(sorted(tensors.items())[:-1])


@pytest.mark.parametrize(
    "method, spoil",
    [
        *((method, spoil) for method in ("lora", "ptuning", "qformer") for spoil in (spoil_shape, spoil_name)),
        *((method, spoil_count) for method in ("lora", "ptuning")),  # any number of whole tensors is an adapter
    ],
)
@pytest.mark.parametrize("in_use", [None, "lora", "ptuning", "qformer"])
def test_an_adapter_that_does_not_fit_changes_nothing(taught, tmp_path, method, spoil, in_use):
    folder = tmp_path / "spoilt"
    shutil.copytree(taught[method][0], folder, ignore=shutil.ignore_patterns("checkpoint-*"))
    file = folder / (FILES[3] if method == "lora" else FILES[1])
    save_file(spoil(load_file(file)), file)
    vlm = golden()
    if in_use is not None:
        vlm.load_adapter(taught[in_use][0], "in use")
    before, found = state(vlm), logits(vlm)
    with pytest.raises(CheckpointError):
        vlm.load_adapter(folder, "spoilt")
    assert_untouched(vlm, before)
    assert torch.equal(logits(vlm), found) and "spoilt" not in vlm.adapters.names


@pytest.mark.parametrize("in_use", [None, "lora", "qformer"])
def test_an_adapter_for_which_memory_ends_changes_nothing(taught, monkeypatch, in_use):
    """It fits, and is half in the network when that happens."""
    vlm, original = golden(), Lora.inject
    if in_use is not None:
        vlm.load_adapter(taught[in_use][0], "in use")
    before, found = state(vlm), logits(vlm)

    def inject(*arguments: Any) -> Lora:
        part = original(*arguments)

        def end() -> None:
            raise MemoryError

        monkeypatch.setattr(part, "off", end)
        return part

    monkeypatch.setattr(Lora, "inject", inject)
    with pytest.raises(MemoryError):
        vlm.load_adapter(taught["lora"][0], "second")
    assert_untouched(vlm, before)
    assert torch.equal(logits(vlm), found)
    assert vlm.adapters.active == (in_use and "in use") and "second" not in vlm.adapters.names


def test_a_merge_leaves_no_other_adapter_over_the_base_that_it_makes(taught):
    """They were learnt over the one before."""
    vlm = golden()
    for name in ("ptuning", "qformer", "lora"):
        vlm.load_adapter(taught[name][0], name)
    vlm.merge()
    assert not vlm.adapters.names and not lora_layers(vlm.model)
    assert torch.allclose(logits(vlm), taught["lora"][1], atol=1e-3)


@pytest.mark.parametrize("method", PLAIN)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("when", ["compute_loss", "save_last"])
def test_a_run_that_fails_leaves_the_model_as_it_was(tmp_path, monkeypatch, method, dtype, when):
    vlm = golden(dtype=dtype)
    before, found = state(vlm), logits(vlm)
    original, calls = getattr(VisGLMTrainer, when), []

    def fail(self: Any, *arguments: Any, **options: Any) -> Any:
        calls.append(0)
        if len(calls) == (2 if when == "compute_loss" else 1):
            raise KeyboardInterrupt
        return original(self, *arguments, **options)

    monkeypatch.setattr(VisGLMTrainer, when, fail)
    with pytest.raises(KeyboardInterrupt):
        teach(vlm, tmp_path / "run", method, gradient_checkpointing=True)
    assert_untouched(vlm, before)
    assert torch.equal(logits(vlm), found)
    assert {name: tensor.dtype for name, tensor in vlm.model.state_dict().items()} == {
        name: tensor.dtype for name, tensor in before.items()
    }
    assert not lora_layers(vlm.model) and not hasattr(vlm.model, "peft_config")
    assert "forward" not in vars(vlm.model) and "use_cache" not in vars(vlm.model.config)
    copy.deepcopy(vlm.model)
    monkeypatch.undo()
    teach(vlm, tmp_path / "again", method)
    assert not torch.equal(logits(vlm), found)


@pytest.mark.parametrize("method", PLAIN)
def test_training_in_bfloat16_leaves_no_trace_in_the_model(tmp_path, method):
    vlm = golden(dtype="bfloat16")
    dtypes = {name: tensor.dtype for name, tensor in vlm.model.state_dict().items()}
    teach(vlm, tmp_path / "run", method, precision="bf16")
    after = {name.replace(".base_layer", ""): tensor.dtype for name, tensor in vlm.model.state_dict().items()}
    assert {name: after[name] for name in dtypes} == dtypes
    assert "forward" not in vars(vlm.model)
    found = logits(vlm)
    copy.deepcopy(vlm.model)
    assert torch.equal(logits(VisGLM.from_pretrained(tmp_path / "run", dtype="bfloat16")), found)
    assert vlm.chat(None, "hi", max_new_tokens=2).finish_reason in ("stop", "length")


@pytest.mark.parametrize("changed", [{"batch_size": 1}, {"accumulation": 2}, {"method": "qformer"}, {"seed": 3}])
def test_a_run_goes_on_only_as_it_was_started(tmp_path, changed):
    teach(golden(), tmp_path / "run", batch_size=2)
    name = {"method": "method", "seed": "seed"}.get(next(iter(changed)), "examples per step")
    with pytest.raises(ConfigError, match=f"cannot go on from .*{name} was"):
        teach(golden(), tmp_path / "run", **{"batch_size": 2, "max_steps": 4, "resume": True, **changed})


def test_a_run_goes_on_over_its_own_base_only(tmp_path):
    other = golden()
    with torch.no_grad():
        other.model.lm_head.weight.mul_(1.1)
    teach(golden(), tmp_path / "run", "lora")
    with pytest.raises(ConfigError, match="its base is another one"):
        teach(other, tmp_path / "run", "lora", max_steps=4, resume=True)
    teach(golden(), tmp_path / "run", "lora", max_steps=4, resume=True)


def test_fp16_on_a_cpu_is_not_silently_something_else(tmp_path):
    with pytest.raises(ConfigError, match="needs a GPU"):
        teach(golden(), tmp_path / "run", precision="fp16")


def test_networks_that_peft_has_wrapped_are_not_taken_over():
    import peft

    vlm = golden()
    config = peft.LoraConfig(r=2, target_modules="all-linear")
    peft.inject_adapter_in_model(config, vlm.model, "somebody's")
    with pytest.raises(ConfigError, match="merge_and_unload"):
        VisGLM(vlm.model, vlm.processor)


def test_a_second_adapter_is_not_trained_over_the_first(taught, tmp_path):
    vlm = golden()
    vlm.load_adapter(taught["lora"][0], "lora")
    with pytest.raises(ConfigError, match="merge"):
        teach(vlm, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_prefix_and_packed_weights_cannot_be_merged(taught, tmp_path):
    vlm = golden()
    vlm.load_adapter(taught["ptuning"][0], "prefix")
    with pytest.raises(ConfigError, match="P-Tuning"):
        vlm.merge()
    vlm = teach(golden(quantize="int8"), tmp_path / "run", "lora")
    found = logits(vlm)
    with pytest.raises(ConfigError, match="quantized"):
        vlm.merge()
    assert torch.equal(logits(vlm), found)


def test_a_best_checkpoint_elsewhere_is_not_taken(tmp_path):
    """`trainer_state.json` comes with a folder that somebody may have sent."""
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "key.txt").write_text("a key")
    teach(golden(), tmp_path / "run")
    state_path = sorted((tmp_path / "run").glob("checkpoint-*"))[-1] / "trainer_state.json"
    content = json.loads(state_path.read_text())
    text = json.dumps({**content, "best_model_checkpoint": str(secret), "best_global_step": None})
    padding = state_path.stat().st_size - len(text.encode())
    marker = state_path.parent / "complete.json"
    sizes = json.loads(marker.read_text())
    sizes["trainer_state.json"] += -padding
    state_path.write_text(text)
    marker.write_text(json.dumps(sizes))
    teach(golden(), tmp_path / "run", max_steps=4, resume=True)
    assert not list((tmp_path / "run").rglob("key.txt"))


@pytest.mark.skipif(os.name != "posix", reason="there are no pipes elsewhere")
def test_notes_of_a_run_that_are_none_count_as_missing(tmp_path):
    """They come with the folder as well."""
    teach(golden(), tmp_path)
    (checkpoint,) = checkpoints(tmp_path)
    facts, marker = checkpoint / "run.json", checkpoint / "complete.json"
    sizes = json.loads(marker.read_text())
    facts.write_text("[]")
    marker.write_text(json.dumps({**sizes, facts.name: 2}))
    teach(golden(), tmp_path, resume=True)
    facts.unlink()
    os.mkfifo(facts)
    marker.write_text(json.dumps({**sizes, facts.name: 0}))
    assert not checkpoints(tmp_path)
    del sizes[facts.name]
    marker.write_text(json.dumps(sizes))
    teach(golden(), tmp_path, resume=True)
    marker.unlink()
    os.mkfifo(marker)
    assert not checkpoints(tmp_path)
