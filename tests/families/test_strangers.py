"""What strangers bring: configurations of other releases, files that do not fit together, pictures of extreme shape,
marks that people type, and questions to a family that another one answers."""

from __future__ import annotations

import base64
import io
import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.families.made import load, scripted
from tests.families.test_files import edit
from tests.families.test_finetune import said
from tests.serve.knocking import client_of, service_for
from visglm import VisGLM
from visglm.checkpoint import build
from visglm.checkpoint.layouts.family import read_family_config
from visglm.cli import main
from visglm.errors import CheckpointError, ConfigError, ContextLengthError, ImageError
from visglm.families import FAMILIES

RED = Image.new("RGB", (200, 100), "red")
STRIP = Image.new("RGB", (2000, 4))


@pytest.fixture
def copy(folders, tmp_path) -> Path:
    return shutil.copytree(folders["glm4v"], tmp_path / "copy")


def answer(vlm: VisGLM) -> list[int]:
    return list(vlm.chat(RED, "What is this?", max_new_tokens=8).ids)


def rewrite(path: Path, change) -> None:
    fields = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps(change(fields)), "utf-8")


def before_five(fields: dict) -> dict:
    """The text model's settings as transformers 4 wrote them."""
    text = dict(fields["text_config"])
    rope = text.pop("rope_parameters")
    text |= {"rope_theta": rope["rope_theta"], "partial_rotary_factor": rope["partial_rotary_factor"]}
    return fields | {
        "text_config": text | {"rope_scaling": {"type": "default", "mrope_section": rope["mrope_section"]}}
    }


def flat(fields: dict) -> dict:
    """As GLM-4.1V came out: what the text model is stands beside the rest."""
    fields = before_five(fields)
    text = fields.pop("text_config")
    text.pop("model_type")
    return text | fields | {"torch_dtype": "bfloat16", "attention_bias": True, "use_cache": True}


@pytest.mark.parametrize("written", [before_five, flat])
def test_a_configuration_of_an_earlier_release_is_the_same_model(copy, models, written, tmp_path):
    # Numbers that are no defaults, which a table that nobody heeds would fall back to.
    edit(copy / "config.json", "text_config", "rope_parameters", rope_theta=500.0)
    wanted = answer(load(copy))
    assert wanted != answer(models["glm4v"])
    rewrite(copy / "config.json", written)
    again = load(copy)
    assert answer(again) == wanted
    assert again.model.generation_config.eos_token_id == models["glm4v"].model.generation_config.eos_token_id
    again.save_pretrained(tmp_path / "saved")
    assert answer(load(tmp_path / "saved")) == wanted
    assert main(["doctor", str(copy)]) == 0


# What is said of sizes in the files that GLM-4.1V-9B-Thinking and GLM-OCR came out with.
PUBLISHED = {
    "glm4v": (
        {
            "architectures": ["Glm4vForConditionalGeneration"], "model_type": "glm4v", "attention_bias": True,
            "attention_dropout": 0.0, "pad_token_id": 151329, "eos_token_id": [151329, 151336, 151338, 151348],
            "image_start_token_id": 151339, "image_end_token_id": 151340, "video_start_token_id": 151341,
            "video_end_token_id": 151342, "image_token_id": 151343, "video_token_id": 151344, "hidden_act": "silu",
            "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 13696,
            "max_position_embeddings": 65536, "num_attention_heads": 32, "num_hidden_layers": 40,
            "num_key_value_heads": 2, "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "tie_word_embeddings": False,
            "torch_dtype": "bfloat16", "transformers_version": "4.53.0.dev0", "use_cache": True, "vocab_size": 151552,
            "partial_rotary_factor": 0.5, "rope_scaling": {"type": "default", "mrope_section": [8, 12, 12]},
            "vision_config": {
                "hidden_size": 1536, "depth": 24, "num_heads": 12, "attention_bias": False,
                "intermediate_size": 13696, "hidden_act": "silu", "hidden_dropout_prob": 0.0,
                "initializer_range": 0.02, "image_size": 336, "patch_size": 14, "out_hidden_size": 4096,
                "rms_norm_eps": 1e-05, "spatial_merge_size": 2, "temporal_patch_size": 2,
            },
        },
        10.3,
    ),
    "glm_ocr": (
        {
            "architectures": ["GlmOcrForConditionalGeneration"], "model_type": "glm_ocr",
            "image_start_token_id": 59256, "image_end_token_id": 59257, "video_start_token_id": 59258,
            "video_end_token_id": 59259, "image_token_id": 59280, "video_token_id": 59281,
            "transformers_version": "5.0.1dev0",
            "text_config": {
                "model_type": "glm_ocr_text", "pad_token_id": 59246, "vocab_size": 59392,
                "eos_token_id": [59246, 59253], "head_dim": 128, "attention_bias": False, "attention_dropout": 0.0,
                "hidden_act": "silu", "hidden_size": 1536, "initializer_range": 0.02, "intermediate_size": 4608,
                "max_position_embeddings": 131072, "num_attention_heads": 16, "num_hidden_layers": 16,
                "num_nextn_predict_layers": 1, "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "dtype": "bfloat16",
                "rope_parameters": {
                    "rope_type": "default", "mrope_section": [16, 24, 24], "partial_rotary_factor": 1.0,
                    "rope_theta": 10000,
                },
                "tie_word_embeddings": False, "use_cache": True,
            },
            "vision_config": {
                "model_type": "glm_ocr_vision", "hidden_size": 1024, "depth": 24, "num_heads": 16,
                "attention_bias": True, "intermediate_size": 4096, "hidden_act": "silu", "hidden_dropout_prob": 0.0,
                "initializer_range": 0.02, "image_size": 336, "patch_size": 14, "out_hidden_size": 1536,
                "rms_norm_eps": 1e-05, "spatial_merge_size": 2, "temporal_patch_size": 2,
            },
        },
        1.1,
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", PUBLISHED)
def test_published_configurations_are_networks_of_the_published_size(family, tmp_path):
    fields, billions = PUBLISHED[family]
    (tmp_path / "config.json").write_text(json.dumps(fields), "utf-8")
    config = read_family_config(tmp_path, FAMILIES[family])
    assert build(config).num_parameters() / 1e9 == pytest.approx(billions, rel=0.02)
    said = fields.get("text_config", fields)
    for name in ("hidden_size", "max_position_embeddings", "eos_token_id", "pad_token_id", "num_key_value_heads"):
        assert getattr(config.text_config, name) == said[name]
    rope = said.get("rope_parameters", said.get("rope_scaling"))
    assert config.text_config.rope_parameters["mrope_section"] == rope["mrope_section"]


def test_a_flat_configuration_that_lacks_something_is_told(copy):
    rewrite(copy / "config.json", flat)
    edit(copy / "config.json", num_hidden_layers=None)
    with pytest.raises(CheckpointError, match="text_config has no num_hidden_layers"):
        load(copy)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"mrope_section": None}, "mrope_section is None, expected 3 numbers that make 4"),
        ({"mrope_section": [2, 2]}, "expected 3 numbers"),  # which splits as well, into other frequencies
        ({"mrope_section": [8, 12, 12]}, "expected 3 numbers that make 4"),
        ({"mrope_section": "112"}, "expected 3 numbers"),
        ({"partial_rotary_factor": 1.5, "mrope_section": [4, 4, 4]}, "partial_rotary_factor"),
        ({"rope_theta": 0}, "rope_theta is '0'"),
        ({"rope_type": "of tomorrow"}, "rope_type"),
    ],
)
def test_positions_that_cannot_be_told_are_refused(copy, changes, told):
    edit(copy / "config.json", "text_config", "rope_parameters", **changes)
    with pytest.raises(CheckpointError, match=told):
        load(copy)


def test_a_model_without_any_word_on_positions_is_refused(copy):
    edit(copy / "config.json", "text_config", rope_parameters=None)
    with pytest.raises(CheckpointError, match="mrope_section is None"):
        load(copy)


@pytest.mark.parametrize(
    "changes",
    [
        {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 4},
        {"sliding_window": 4},
        {"attention_chunk_size": 8},
    ],
)
def test_attention_of_another_kind_is_refused(copy, changes):
    edit(copy / "config.json", "text_config", **changes)
    with pytest.raises(CheckpointError, match="sliding_window|attention_chunk_size"):
        load(copy)


def test_what_a_newer_release_adds_is_no_hindrance(copy, models):
    edit(copy / "config.json", transformers_version="9.0.0", of_tomorrow={"a": 1})
    edit(copy / "config.json", "text_config", layer_types=["full_attention"] * 2, of_tomorrow=3)
    assert answer(load(copy)) == answer(models["glm4v"])


def cut_up(folder: Path, has_index: bool) -> None:
    """Three shards of the weights."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    table = {}
    for number in range(3):
        name = f"model-{number + 1:05d}-of-00003.safetensors"
        part = {key: weights[key] for key in sorted(weights)[number::3]}
        save_file(part, folder / name, {"format": "pt"})
        table |= dict.fromkeys(part, name)
    if has_index:
        index = {"metadata": {}, "weight_map": table}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")


@pytest.mark.parametrize("has_index", [True, False])
def test_shards_are_one_model_and_one_that_is_missing_is_named(copy, models, has_index):
    cut_up(copy, has_index)
    assert answer(load(copy)) == answer(models["glm4v"])
    (copy / "model-00003-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError) as caught:
        load(copy)
    assert caught.value.problems == ["file model-00003-of-00003.safetensors: missing"]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("processor_config.json", "processor_config.json: missing"),
        ("tokenizer.json", "tokenizer.json is missing"),
        ("tokenizer_config.json", "tokenizer_config.json: missing"),
        ("model.safetensors", "model.safetensors: missing"),
    ],
)
def test_a_file_that_did_not_come_is_named(copy, name, told):
    (copy / name).unlink()
    with pytest.raises(CheckpointError, match=told):
        load(copy)


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(10 ** 12) %}{{ i }}{% endfor %}",
        "{% include '/etc/passwd' %}{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{% if %}",
    ],
)
def test_a_template_of_the_folder_is_handed_on_and_never_run(copy, models, template, tmp_path):
    (copy / "chat_template.jinja").write_text(template, "utf-8")
    vlm = load(copy)
    assert answer(vlm) == answer(models["glm4v"])
    vlm.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "chat_template.jinja").read_text("utf-8") == template


def png(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def test_a_strip_that_is_too_narrow_is_refused_by_name_everywhere(vlm, tmp_path, capsys):
    for ask in (lambda: vlm.chat(STRIP, "?"), lambda: vlm.encode(STRIP), lambda: vlm.encode([RED, STRIP])):
        with pytest.raises(ImageError, match="2000×4 pixels cannot be looked at.*Cut it"):
            ask()
    service = service_for(vlm)
    parts = [{"type": "image_url", "image_url": {"url": png(STRIP)}}, {"type": "text", "text": "What is this?"}]
    body = {"model": service.names.default, "messages": [{"role": "user", "content": parts}], "max_tokens": 2}
    with client_of(service) as client:
        told = client.post("/v1/chat/completions", json=body)
        assert told.status_code == 400 and "2000×4 pixels" in told.json()["error"]["message"]
        parts[0]["image_url"]["url"] = png(RED)
        assert client.post("/v1/chat/completions", json=body).status_code == 200


def test_pictures_of_any_other_shape_are_looked_at(models):
    vlm = models["glm4v"]
    shapes = [(1, 1), (1, 190), (190, 1), (3000, 20), (20, 3000), (2000, 2000)]
    pictures = [Image.new("RGB", shape) for shape in shapes]
    history = vlm.chat(pictures, "What is this?", max_new_tokens=1).history
    assert [one.size for one in history.shapes] == shapes
    assert [len(one) for one in history.image_embeds] == [one.num_tokens for one in history.shapes]


def test_more_pictures_than_the_context_holds_are_refused_before_they_are_looked_at(vlm):
    looked = []
    hook = vlm.model.model.visual.register_forward_hook(lambda *args: looked.append(1))
    try:
        with pytest.raises(ContextLengthError, match="too long"):
            vlm.chat([RED] * 400, "What is this?", max_new_tokens=1)
        assert not looked
    finally:
        hook.remove()


@pytest.mark.parametrize(
    ("written", "found"),
    [
        ("[100,200,300,400]", [(20, 20, 60, 40)]),
        ("[100.5, 200, 300, 400]", [(20.1, 20, 60, 40)]),
        ('{"bbox_2d": [100,200,300,400], "label": "cat"}', [(20, 20, 60, 40)]),
        ("[300,400,100,200]", []),  # right before left
        ("[100,200,100,400]", []),  # no width
        ("[100,200,1500,400]", []),  # outside
        ("[-5,0,10,10]", []),
        ("[100,200,300]", []),
        ("[100,200,300,400", []),
        ("[1e3,0,1,1]", []),
        ("(100,200),(300,400)", []),
    ],
)
def test_places_are_four_thousandths_in_brackets_and_nothing_else(models, written, found):
    vlm = models["glm4v"]
    with scripted(vlm, f"<|begin_of_box|>{written}<|end_of_box|>"):
        reply = vlm.chat(RED, "Where?")
    boxes = [(box.left, box.top, box.right, box.bottom) for box in reply.boxes]
    assert boxes == [pytest.approx(one) for one in found] and reply.text == written


@pytest.mark.parametrize(
    "written",
    ["<|end_of_box|>[1,2,30,40]<|begin_of_box|>", "<|begin_of_box|>[1,2,30,40]", "<think><|begin_of_box|>[1,2,30,40]"],
)
def test_a_box_that_is_not_closed_around_it_holds_no_place(models, written):
    vlm = models["glm46v"]
    with scripted(vlm, written):
        assert vlm.chat(RED, "Where?").boxes == ()


def test_marks_that_people_type_point_nowhere(vlm):
    typed = "<|begin_of_box|>[100,200,300,400]<|end_of_box|><think>a</think>"
    reply = vlm.chat(RED, typed, max_new_tokens=2)
    assert reply.boxes == () and reply.thinking == ""
    assert reply.history.turns[-1].question == typed


def test_a_video_is_refused_with_what_to_do(vlm, tmp_path):
    film = tmp_path / "film.mp4"
    film.write_bytes(b"\0\0\0\x18ftypmp42" * 10)
    with pytest.raises(ImageError, match="is a video.*Save one frame"):
        vlm.chat(film, "What is this?")


def test_parts_are_not_taken_from_a_family_that_has_none(folders):
    for options in ({"text": folders["glm4v"]}, {"vision": folders["glm_ocr"], "text": folders["glm46v"]}):
        with pytest.raises(ConfigError, match="is a GLM-.*which has no parts to put together"):
            VisGLM.from_parts(**options)


def test_the_export_command_refuses_a_family_before_it_writes(folders, tmp_path, capsys):
    assert main(["export", str(folders["glm46v"]), str(tmp_path / "out")]) == 1
    assert "GLM-4.6V has no export here; what it has: chat, finetune, quantize" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_rows_with_a_strip_are_left_out_and_named(folders, tmp_path, capsys):
    RED.save(tmp_path / "red.png")
    STRIP.save(tmp_path / "strip.png")
    rows = [{"images": [f"{name}.png"], "messages": said("<image>What?", f"a {name} {number}")}
            for number in range(4) for name in (("red", "strip") if not number else ("red",))]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    vlm = load(folders["glm4v"])
    vlm.finetune(
        tmp_path / "rows.jsonl", output_dir=tmp_path / "taught", epochs=1, batch_size=2, held_out=0, replay=0,
        num_samples=0, num_workers=0,
    )  # fmt: skip
    assert "rows.jsonl:2: a picture of 2000×4 pixels" in capsys.readouterr().err


def test_a_packed_folder_is_taught_asked_and_not_merged(folders, tmp_path, capsys):
    packed, rows = tmp_path / "packed", tmp_path / "rows.jsonl"
    assert main(["quantize", str(folders["glm4v"]), str(packed), "--scheme", "int4"]) == 0
    rows.write_text("".join(json.dumps({"messages": said("Hi", f"cat {n}")}) + "\n" for n in range(4)), "utf-8")
    flags = "--epochs 2 --batch-size 2 --held-out 0 --replay 0 --num-samples 0 --num-workers 0 --learning-rate 2e-2"
    words = [
        "finetune",
        str(rows),
        "--model",
        str(packed),
        "--method",
        "qlora",
        "--output-dir",
        str(tmp_path / "taught"),
    ]
    assert main([*words, *flags.split()]) == 0
    taught, base = load(tmp_path / "taught"), load(packed)
    assert "int4" in repr(taught) and taught.adapters.active is not None
    assert taught.chat(None, "Hi", max_new_tokens=8).ids != base.chat(None, "Hi", max_new_tokens=8).ids
    assert taught.chat(None, "Hi", max_new_tokens=8, adapter="").ids == base.chat(None, "Hi", max_new_tokens=8).ids
    assert main(["merge", str(tmp_path / "taught"), str(tmp_path / "merged")]) == 1
    assert "is quantized; load the base in 16 bits to merge" in capsys.readouterr().err
    assert not (tmp_path / "merged").exists()


def test_an_adapter_of_another_base_is_refused(folders, tmp_path):
    other = shutil.copytree(folders["glm4v"], tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    weights["lm_head.weight"] = torch.flip(weights["lm_head.weight"], [0])
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    vlm = load(folders["glm4v"])
    vlm.finetune(
        [{"messages": said("Hi", f"cat {n}")} for n in range(4)], output_dir=tmp_path / "taught", epochs=1,
        batch_size=2, held_out=0, replay=0, num_samples=0, num_workers=0,
    )  # fmt: skip
    with pytest.raises(CheckpointError, match="another base"):
        VisGLM.from_pretrained(tmp_path / "taught", base=other, device="cpu")
    with pytest.raises(CheckpointError, match="another base"):
        load(other).load_adapter(tmp_path / "taught", "taught")
