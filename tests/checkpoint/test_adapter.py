"""An adapter's folder is a checkpoint like any other: recognised, inspected, counted, merged, refused in one line."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from tests.adapters.taught import ROWS, golden, logits, teach
from visglm import VisGLM
from visglm.adapters import LORA_CONFIG_NAME, METADATA_NAME
from visglm.checkpoint import find_delta, open_source
from visglm.cli import main
from visglm.errors import CheckpointError


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "model"
    golden().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def taught(base, tmp_path_factory) -> tuple[Path, torch.Tensor]:
    folder = tmp_path_factory.mktemp("taught") / "run"
    return folder, logits(teach(VisGLM.from_pretrained(base, device="cpu"), folder))


def run(capsys, *words: object) -> tuple[int, str]:
    status = main([str(word) for word in words])
    told = capsys.readouterr()
    return status, told.out + told.err


def test_doctor_looks_at_base_and_adapter(taught, capsys, tmp_path):
    status, told = run(capsys, "doctor", taught[0])
    assert status == 0, told
    assert re.search(r"ok +format +adapter \(lora\) over visglm", told)
    assert re.search(r"ok +adapter +lora, \d+ tensors of lora, fits its base", told)
    assert "adapter_model.safetensors" in told and "model.safetensors" in told and "greedy self-test" in told
    folder = tmp_path / "spoilt"
    shutil.copytree(taught[0], folder, ignore=shutil.ignore_patterns("checkpoint-*"))
    weights = load_file(folder / "adapter_model.safetensors")
    name = sorted(weights)[0]
    save_file({**weights, name: weights[name] * float("nan")}, folder / "adapter_model.safetensors")
    status, told = run(capsys, "doctor", folder)
    assert status == 3 and "FAIL numbers" in told


def test_estimate_counts_the_adapter(taught, base, capsys):
    status, told = run(capsys, "estimate", taught[0])
    assert status == 0 and re.search(r"adapter +0\.0", told)
    together = {}
    for folder in (taught[0], base):
        found = open_source(folder)
        together[folder] = len(found.keys())
    assert together[taught[0]] == together[base]


@pytest.mark.parametrize("command", ["convert", "quantize"])
def test_weights_alone_would_lose_the_adapter(taught, capsys, tmp_path, command):
    words = [command, taught[0], tmp_path / "out", *(["--scheme", "int4"] if command == "quantize" else [])]
    status, told = run(capsys, *words)
    assert status == 1 and f"visglm merge {taught[0]}" in told
    assert not (tmp_path / "out").exists()


def test_data_is_checked_with_the_tokenizer_of_its_base(taught, capsys, tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    for row in ROWS:
        shutil.copy(row["image"], tmp_path)
    path.write_text("".join(json.dumps({**row, "image": Path(row["image"]).name}) + "\n" for row in ROWS))
    status, told = run(capsys, "data", "check", path, "--model", taught[0])
    assert status == 0 and "2 rows can be used" in told


def test_merge_makes_one_model(taught, capsys, tmp_path):
    status, told = run(capsys, "merge", taught[0], tmp_path / "merged")
    assert status == 0 and "lora and its base in one" in told
    merged = VisGLM.from_pretrained(tmp_path / "merged", device="cpu")
    assert not merged.adapters.names
    assert torch.allclose(logits(merged), taught[1], atol=1e-4)
    assert run(capsys, "quantize", tmp_path / "merged", tmp_path / "small", "--scheme", "int4")[0] == 0
    status, told = run(capsys, "merge", tmp_path / "merged", tmp_path / "again")
    assert status == 1 and "nothing to merge" in told


def test_a_name_of_a_base_is_not_downloaded_unless_its_user_says_so(taught, tmp_path, monkeypatch):
    folder = tmp_path / "adapter"
    shutil.copytree(taught[0], folder, ignore=shutil.ignore_patterns("checkpoint-*"))
    metadata = json.loads((folder / METADATA_NAME).read_text())
    metadata["base"] = {"name": "somebody/model", "revision": "a" * 40, "fingerprint": None}
    (folder / METADATA_NAME).write_text(json.dumps(metadata))
    asked = []

    def look_up(host, *rest, **options):
        asked.append(host)
        raise OSError("no network")

    monkeypatch.setattr("socket.getaddrinfo", look_up)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # as tests are otherwise, and users are not
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(CheckpointError, match=r"(?s)somebody/model \(revision a+\), is not on this machine.*downloads"):
        VisGLM.from_pretrained(folder)
    assert not asked
    with pytest.raises(CheckpointError, match="the hub did not give it"):
        VisGLM.from_pretrained(folder, base="somebody/model")
    assert asked


def in_cache(folder: Path, name: str, cache: Path, revision: str = "b" * 40) -> None:
    """As if a hub id had been downloaded."""
    home = cache / f"models--{name.replace('/', '--')}"
    (home / "refs").mkdir(parents=True)
    (home / "refs/main").write_text(revision)
    shutil.copytree(folder, home / "snapshots" / revision, ignore=shutil.ignore_patterns("checkpoint-*"))


def test_hub_ids_of_bases_and_adapters_are_remembered_and_loaded(taught, base, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    in_cache(base, "owner/model", tmp_path / "hub")
    vlm = teach(VisGLM.from_pretrained("owner/model", device="cpu"), tmp_path / "run")
    metadata = json.loads((tmp_path / "run" / METADATA_NAME).read_text())
    assert metadata["base"]["name"] == "owner/model" and metadata["base"]["revision"] == "b" * 40
    assert str(tmp_path) not in (tmp_path / "run" / METADATA_NAME).read_text()
    in_cache(tmp_path / "run", "owner/adapter", tmp_path / "hub", "c" * 40)
    again = VisGLM.from_pretrained("owner/adapter", device="cpu")
    assert torch.equal(logits(again), logits(vlm))
    other = VisGLM.from_pretrained("owner/model", device="cpu")
    other.load_adapter("owner/adapter", "theirs")
    assert torch.equal(logits(other), logits(vlm))


def test_a_folder_under_home_is_found(taught, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(taught[0], tmp_path / "run", ignore=shutil.ignore_patterns("checkpoint-*"))
    assert torch.equal(logits(VisGLM.from_pretrained("~/run")), taught[1])
    vlm = VisGLM.from_pretrained(find_delta("~/run").base.name, device="cpu")
    vlm.load_adapter("~/run", "run")
    assert torch.equal(logits(vlm), taught[1])


FOREIGN = {
    "megatron_config": {"tensor_model_parallel_size": 1}, "use_dora": True, "modules_to_save": ["lm_head"],
    "bias": "all", "layer_replication": [[0, 1]], "lora_bias": True, "trainable_token_indices": [1],
    "alpha_pattern": {"(a+)+$": 3}, "lora_alpha": "16", "use_rslora": "yes", "peft_type": "IA3",
}  # fmt: skip


@pytest.mark.parametrize("field", FOREIGN)
def test_of_pefts_settings_only_those_that_are_computed_here_are_taken(taught, tmp_path, field):
    folder = tmp_path / "adapter"
    shutil.copytree(taught[0], folder, ignore=shutil.ignore_patterns("checkpoint-*"))
    path = folder / LORA_CONFIG_NAME
    path.write_text(json.dumps({**json.loads(path.read_text()), field: FOREIGN[field]}))
    if field == "peft_type":
        (folder / METADATA_NAME).unlink()
    with pytest.raises(CheckpointError, match=field if field != "use_rslora" else "lora_alpha"):
        VisGLM.from_pretrained(folder)


def test_no_module_that_a_file_names_is_imported(taught, tmp_path, monkeypatch):
    folder = tmp_path / "adapter"
    shutil.copytree(taught[0], folder, ignore=shutil.ignore_patterns("checkpoint-*"))
    (tmp_path / "evil_core.py").write_text("raise SystemExit('it ran')")
    monkeypatch.syspath_prepend(tmp_path)
    path = folder / LORA_CONFIG_NAME
    fields = {"megatron_core": "evil_core", "target_modules": "(a+)+$", "peft_version": "99"}
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    assert torch.equal(logits(VisGLM.from_pretrained(folder)), taught[1])


def test_what_peft_alone_wrote_is_read_and_what_visglm_wrote_is_read_by_peft(taught, base, tmp_path):
    import peft

    folder = tmp_path / "adapter"
    shutil.copytree(taught[0], folder, ignore=shutil.ignore_patterns("checkpoint-*", "visglm*", "processor*", "token*"))
    assert torch.equal(logits(VisGLM.from_pretrained(folder)), taught[1])
    vlm = VisGLM.from_pretrained(base, device="cpu")
    vlm.model = peft.PeftModel.from_pretrained(vlm.model, str(folder)).base_model.model.eval()
    assert torch.allclose(logits(vlm), taught[1], atol=1e-5)


def test_rslora_and_patterns_count_as_in_peft(base, tmp_path):
    import peft

    vlm = VisGLM.from_pretrained(base, device="cpu")
    config = peft.LoraConfig(
        r=4, lora_alpha=6, use_rslora=True, init_lora_weights=False, base_model_name_or_path=str(base),
        target_modules=["query_key_value", "dense"], rank_pattern={"dense": 2},
        alpha_pattern={r"model\.text\.layers\.0\.attention\.dense": 3},
    )  # fmt: skip
    wrapped = peft.get_peft_model(vlm.model, config)
    wrapped.save_pretrained(tmp_path / "theirs")
    vlm.model = wrapped.base_model.model.eval()
    assert torch.allclose(logits(VisGLM.from_pretrained(tmp_path / "theirs")), logits(vlm), atol=1e-5)


def test_results_of_the_first_format_load(taught, tmp_path):
    folder = tmp_path / "old"
    shutil.copytree(taught[0], folder, ignore=shutil.ignore_patterns("checkpoint-*"))
    metadata = json.loads((folder / METADATA_NAME).read_text())
    old = {"format": 1, "base": metadata["base"]["name"], "quantization": None, "method": "lora", "version": "0.1.0"}
    (folder / METADATA_NAME).write_text(json.dumps(old))
    assert torch.equal(logits(VisGLM.from_pretrained(folder)), taught[1])


def test_files_have_the_rights_that_new_files_have(taught, tmp_path):
    umask = os.umask(0o022)
    try:
        VisGLM.from_pretrained(taught[0]).save_pretrained(tmp_path / "saved")
    finally:
        os.umask(umask)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "saved").iterdir()} == {0o644}


@pytest.mark.parametrize("name", [METADATA_NAME, LORA_CONFIG_NAME])
def test_settings_that_no_adapter_has_are_not_read(taught, tmp_path, name):
    folder = tmp_path / "adapter"
    shutil.copytree(taught[0], folder, ignore=shutil.ignore_patterns("checkpoint-*"))
    os.truncate(folder / name, 2**27)
    with pytest.raises(CheckpointError, match=f"file {name}: 134,217,728 bytes, expected at most"):
        VisGLM.from_pretrained(folder)


MUTATIONS = ["", "{", "[]", "null", '{"format": 2}', '{"format": 99}', '{"format": 2, "method": 3, "base": {}}']


@pytest.mark.parametrize("content", MUTATIONS)
@pytest.mark.parametrize("name", [METADATA_NAME, LORA_CONFIG_NAME, "adapter_model.safetensors"])
def test_a_damaged_adapter_is_refused(taught, tmp_path, name, content):
    folder = tmp_path / "adapter"
    shutil.copytree(taught[0], folder, ignore=shutil.ignore_patterns("checkpoint-*"))
    (folder / name).write_text(content)
    with pytest.raises(CheckpointError):
        VisGLM.from_pretrained(folder)
