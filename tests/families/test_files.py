"""Checkpoints of every family: recognised, loaded strictly, saved so that transformers' own classes load them."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from tests.families.made import MADE, Reference, load, picture, talks
from visglm import VisGLM
from visglm.cli import main
from visglm.errors import CheckpointError, ConfigError

THEIRS = """
import sys, torch, transformers
from PIL import Image
picture = Image.open(sys.argv[1])
for folder, stem, images in zip(*[iter(sys.argv[2:])] * 3):
    network, report = getattr(transformers, stem + "ForConditionalGeneration").from_pretrained(
        folder, output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"], report
    processor = transformers.AutoProcessor.from_pretrained(folder)
    assert type(processor).__name__ == images + "Processor", type(processor)
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]}
    text = processor.apply_chat_template([message], add_generation_prompt=True)
    inputs = processor(text=[text], images=[picture], return_tensors="pt")
    found = network.eval().generate(
        **inputs, max_new_tokens=8, do_sample=False, suppress_tokens=[network.config.image_token_id]
    )
    print(found[0, inputs["input_ids"].shape[1]:].tolist())
"""


def test_what_is_saved_is_loaded_by_their_own_classes(vlm, family, folder, tmp_path):
    shown = picture(random.Random(5))
    vlm.save_pretrained(tmp_path / "saved")
    ids = list(vlm.chat(shown, "What is this?", max_new_tokens=8).ids)
    load(tmp_path / "saved").save_pretrained(tmp_path / "saved")  # over itself
    assert list(load(tmp_path / "saved").chat(shown, "What is this?", max_new_tokens=8).ids) == ids
    reference = Reference(family, tmp_path / "saved")
    assert reference.answer([("What is this?", "", [shown])], 8)[1] == ids
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "saved")
    assert type(processor) is type(reference.processor)
    videos = json.loads((folder / "processor_config.json").read_text("utf-8"))["video_processor"]
    assert json.loads((tmp_path / "saved" / "video_preprocessor_config.json").read_text("utf-8")) == videos


@pytest.mark.slow
def test_what_is_saved_is_loaded_by_their_own_classes_in_another_process(models, tmp_path):
    shown, answers, arguments = picture(random.Random(5)), [], []
    shown.save(tmp_path / "shown.png")
    for family, vlm in models.items():
        vlm.save_pretrained(tmp_path / family)
        answers.append(list(vlm.chat(shown, "What is this?", max_new_tokens=8).ids))
        arguments += [str(tmp_path / family), MADE[family].stem, MADE[family].images]
    theirs = subprocess.run(
        [sys.executable, "-c", THEIRS, str(tmp_path / "shown.png"), *arguments],
        capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip
    assert theirs.returncode == 0, theirs.stderr[-2000:]
    assert [json.loads(line) for line in theirs.stdout.splitlines()[-3:]] == answers


@pytest.fixture
def copy(folders, tmp_path) -> Path:
    """Of GLM-4.1V; the files of the others are read by the same lines."""
    return shutil.copytree(folders["glm4v"], tmp_path / "copy")


def edit(path: Path, *keys: str, **changes) -> None:
    fields = json.loads(path.read_text("utf-8"))
    place = fields
    for key in keys:
        place = place[key]
    for name, value in changes.items():
        if value is None:
            place.pop(name)
        else:
            place[name] = value
    path.write_text(json.dumps(fields), "utf-8")


def test_doctor_tells_the_family(folder, capsys):
    assert main(["doctor", str(folder)]) == 0
    told = capsys.readouterr().out
    assert "family               GLM-" in told and "chat" in told and "greedy self-test" in told


def test_an_unknown_vision_model_is_refused_with_those_that_are_known(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2_vl"}), "utf-8")
    with pytest.raises(CheckpointError, match=r"qwen2_vl.*(?s:.)*GLM-4.1V; GLM-4.6V; GLM-OCR"):
        VisGLM.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("keys", "changes", "told"),
    [
        ((), {"image_token_id": None}, "image_token_id"),
        ((), {"image_token_id": 10**9}, "image_token_id"),
        ((), {"image_start_token_id": 10**9}, "image_start_token_id is no id of the vocabulary"),
        ((), {"image_end_token_id": -1}, "image_end_token_id is no id of the vocabulary"),
        ((), {"text_config": None}, "text_config is no table"),
        ((), {"to_dict": "x"}, "to_dict is no setting"),
        ((), {"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        (("text_config",), {"hidden_size": None}, "text_config has no hidden_size"),
        (("text_config",), {"model_type": "gpt2"}, "model type 'gpt2'"),
        (("text_config",), {"num_hidden_layers": 500}, "layers"),
        (("text_config",), {"hidden_size": 2**30}, "hidden_size"),
        (("text_config",), {"_attn_implementation": "somebody/kernel"}, "expected eager or sdpa"),
        (("vision_config",), {"_attn_implementation": "somebody/kernel"}, "expected eager or sdpa"),
        (("vision_config",), {"depth": "many"}, "depth"),
        (("vision_config",), {"spatial_merge_size": 10**6}, "spatial_merge_size"),
    ],
)
def test_a_configuration_that_is_none_is_refused(copy, keys, changes, told):
    edit(copy / "config.json", *keys, **changes)
    with pytest.raises((CheckpointError, ConfigError), match=told):
        load(copy)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"patch_size": 16}, "patch_size is 16"),
        ({"merge_size": 1}, "merge_size is 1 in the processor, and 2 in the model"),
        ({"temporal_patch_size": 1}, "temporal_patch_size is 1 in the processor, and 2"),
        ({"size": {"height": 224, "width": 224}}, "shortest_edge"),
        ({"size": {"shortest_edge": 2**30, "longest_edge": 2**31}}, "shortest_edge"),
        ({"image_processor_type": "EvilImageProcessor"}, "EvilImageProcessor"),
        ({"do_resize": False}, "do_resize"),
    ],
)
def test_an_image_processor_of_another_model_is_refused(copy, changes, told):
    edit(copy / "processor_config.json", "image_processor", **changes)
    with pytest.raises(CheckpointError, match=told):
        load(copy)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("image_token_id", r"<\|image\|> is 410 in the processor, and 409"),
        ("image_start_token_id", r"<\|begin_of_image\|> is 406 in the processor, and 409"),
        ("image_end_token_id", r"<\|end_of_image\|> is 407 in the processor, and 409"),
    ],
)
def test_tokens_of_pictures_that_are_others_are_told(copy, name, told):
    tokens = load(copy).tokenizer.convert_tokens_to_ids
    other, ids = tokens("<|end_of_video|>"), [tokens(token) for token in ("<|begin_of_image|>", "<|end_of_image|>")]
    told = told.replace("410", str(tokens("<|image|>"))).replace("406", str(ids[0])).replace("407", str(ids[1]))
    edit(copy / "config.json", **{name: other})
    with pytest.raises(CheckpointError, match=told.replace("409", str(other))):
        load(copy)


def test_a_vocabulary_larger_than_the_embedding_is_told(copy):
    tokenizer = load(copy).tokenizer
    tokenizer.add_tokens([f"<word {number}>" for number in range(50)])
    tokenizer.save_pretrained(copy)
    with pytest.raises(CheckpointError, match=f"it has {len(tokenizer)} tokens, the model's embedding 448"):
        load(copy)


@pytest.mark.parametrize("name", ["[gMASK]", "<sop>", "<|user|>", "<|assistant|>"])
def test_a_vocabulary_without_a_control_token_is_told(copy, name):
    for file in ("tokenizer.json", "tokenizer_config.json"):
        text = (copy / file).read_text("utf-8")
        (copy / file).write_text(text.replace(f'"{name}"', '"<|other|>"'), "utf-8")
    with pytest.raises(CheckpointError) as caught:
        load(copy)
    assert caught.value.problems == [f"the tokenizer has no {name}"]


def test_missing_tensors_and_tokens_are_told(copy):
    weights = load_file(copy / "model.safetensors")
    weights.pop("model.visual.merger.proj.weight")
    weights["model.visual.extra"] = torch.zeros(2)
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"missing: model.visual.merger.proj.weight(?s:.)*unexpected"):
        load(copy)


@pytest.mark.parametrize("family", ["glm4v", "glm_ocr"])
def test_a_layer_that_only_guesses_ahead_is_left_in_its_file(folders, tmp_path, family):
    copy = shutil.copytree(folders[family], tmp_path / "copy")
    weights = load_file(copy / "model.safetensors")
    weights["model.language_model.layers.16.embed_tokens.weight"] = torch.zeros(2)
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    if family == "glm_ocr":
        assert load(copy).chat(None, "Hi", max_new_tokens=2).ids
    else:
        with pytest.raises(CheckpointError, match="unexpected"):
            load(copy)


def test_settings_lie_in_either_of_two_files(copy, models):
    """Published folders have preprocessor_config.json; transformers 5 writes processor_config.json."""
    fields = json.loads((copy / "processor_config.json").read_text("utf-8"))
    (copy / "preprocessor_config.json").write_text(json.dumps(fields["image_processor"]), "utf-8")
    (copy / "processor_config.json").unlink()
    assert load(copy).processor.image_processor.size == models["glm4v"].processor.image_processor.size


def test_answers_end_though_no_file_says_where(copy, models):
    (copy / "generation_config.json").unlink()
    edit(copy / "config.json", "text_config", eos_token_id=None)
    ends = load(copy).model.generation_config.eos_token_id
    assert set(ends) == set(models["glm4v"].model.generation_config.eos_token_id)


def test_pictures_take_no_more_room_than_is_allowed(copy):
    small, shown = load(copy, image_size=56), picture(random.Random(9))
    assert small.processor.shapes([shown.resize((400, 400))])[0].num_tokens <= 4
    assert len(small.encode(shown.resize((400, 400)))[0]) <= 4
    with pytest.raises(ConfigError, match="image_size=20"):
        load(copy, image_size=20)


def test_the_least_room_is_one_token_and_is_kept(copy, tmp_path):
    least, shown = load(copy, image_size=28), picture(random.Random(9)).resize((90, 90))
    assert least.processor.shapes([shown])[0].num_tokens == len(least.encode(shown)[0]) == 1
    least.save_pretrained(tmp_path / "saved")
    assert load(tmp_path / "saved").processor.shapes([shown])[0].num_tokens == 1


def test_what_a_family_cannot_is_told(vlm, tmp_path):
    for ask in (lambda: vlm.explain(talks(1, 1)[0][0][2], "?"), lambda: vlm.export(tmp_path / "out")):
        with pytest.raises(ConfigError, match="what it has: chat"):
            ask()
