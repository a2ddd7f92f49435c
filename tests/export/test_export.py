"""What is exported computes what the checkpoint does: golden logits, adapters, packed weights, every family."""

from __future__ import annotations

import json
import shutil
import weakref

import numpy as np
import pytest
import torch

from tests.checkpoint.test_glm import vocabulary  # noqa: F401 (a fixture)
from tests.light.talks import EXAMPLES
from tests.tiny import GOLDEN_CHATGLM2, GOLDEN_HF, expected, make_fine_tuned
from visglm import VisGLM
from visglm.checkpoint import EMBEDDED_MODEL, open_source
from visglm.errors import CheckpointError, ConfigError
from visglm.export import add_graphs, export
from visglm.light import VisGLM as LightVisGLM
from visglm.light import eyes
from visglm.light.network import Place

TOLERANCE = 1e-4  # of logits


def logits_of(light: LightVisGLM, ids: list[int], image_embeds: np.ndarray | None, start: int) -> np.ndarray:
    """Logits behind each id from `start` on: those before are the prompt."""
    place, cache = Place(light.manifest.positions, ids[: start + 1]), light.network.empty_cache()
    found = []
    for piece, positions in place.pieces():
        slots = piece.count(light.manifest.image_token_id)
        embeds = light.network.embed(piece, image_embeds if slots else None)
        logits, cache = light.network.step(embeds, positions, cache)
    found.append(logits)
    for id_ in ids[start + 1 :]:
        logits, cache = light.network.step(light.network.embed([id_]), place.go_on(), cache)
        found.append(logits)
    return np.stack(found)


def check_golden(light: LightVisGLM, wanted: dict[str, torch.Tensor], tolerance: float = TOLERANCE) -> None:
    golden, pictures = expected("visualglm"), expected("vision")
    seen = light.network.look(pictures["pixel_values"].numpy())
    np.testing.assert_allclose(seen, pictures["image_embeds"].numpy(), atol=TOLERANCE, rtol=0)
    seen = pictures["image_embeds"].numpy()  # each graph for itself, as the reference's figures are used for torch
    sop = light.manifest.positions["start"]
    slot = light.manifest.image_token_id  # the reference marks slots by its pad token
    for row, ids in enumerate(golden["input_ids"].masked_fill(golden["input_ids"] == 3, slot).tolist()):
        start = ids.index(sop)
        found = logits_of(light, ids, seen[row : row + 1], start)
        np.testing.assert_allclose(found, wanted["logits"][row, start:].numpy(), atol=tolerance, rtol=0)


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "golden"
    with pytest.MonkeyPatch.context() as patch:
        # Its heat map would take a minute to trace; those of other networks are compared below and by family.
        patch.setattr("visglm.export.can_have_heat", lambda config, weights: False)
        export(open_source(GOLDEN_HF), folder)
    return folder


def test_golden_logits(golden):
    check_golden(LightVisGLM.from_pretrained(golden), expected("visualglm"))


def test_the_eyes_of_a_large_model_are_cut_into_parts_of_which_one_is_open(golden, tmp_path, monkeypatch):
    """The golden model plays the large one."""
    graphs = {name: (golden / name).read_bytes() for name in ("decoder.onnx", "vision.onnx")}
    folder = shutil.copytree(golden, tmp_path / "parts")
    monkeypatch.setattr("visglm.export.SECTION_BYTES", 20_000)
    add_graphs(folder)
    manifest = json.loads((folder / "light.json").read_text())
    parts = [folder / name for key, name in manifest["graphs"].items() if key != "decoder"]
    assert "heat" not in manifest["graphs"]
    assert len(parts) >= 3 and parts[1].name == "vision-2.onnx"
    assert (folder / "decoder.onnx").read_bytes() == graphs["decoder.onnx"]
    light = LightVisGLM.from_pretrained(folder)
    opened = watch_sessions(monkeypatch)
    check_golden(light, expected("visualglm"))
    assert opened == {"at most": 1, "ever": len(parts) * len(expected("vision")["pixel_values"])}
    seen = light.encode(EXAMPLES / "cat.png")
    np.testing.assert_allclose(seen, LightVisGLM.from_pretrained(golden).encode(EXAMPLES / "cat.png"), atol=1e-5)
    VisGLM.from_pretrained(EMBEDDED_MODEL, device="cpu").save_pretrained(folder)
    assert not parts[1].exists()  # they were the checkpoint's, and went with it


def watch_sessions(monkeypatch) -> dict[str, int]:
    """How many sessions the eyes hold at a time, and make in all."""
    counts, alive = {"at most": 0, "ever": 0}, weakref.WeakSet()
    original = eyes.open_graph

    def opening(*arguments, **settings):
        session = original(*arguments, **settings)
        alive.add(session)
        counts["ever"], counts["at most"] = counts["ever"] + 1, max(counts["at most"], len(alive))
        return session

    monkeypatch.setattr(eyes, "open_graph", opening)
    return counts


def test_what_is_exported_is_a_checkpoint_too(golden, tmp_path):
    vlm, light = VisGLM.from_pretrained(golden, device="cpu"), LightVisGLM.from_pretrained(golden)
    one, other = (model.chat(EXAMPLES / "cat.png", "What?", max_new_tokens=6) for model in (vlm, light))
    assert one.ids == other.ids
    vlm.save_pretrained(tmp_path / "again")
    assert {"model.safetensors", "config.json"} <= {path.name for path in (tmp_path / "again").iterdir()}


@pytest.mark.slow
def test_nothing_of_the_users_is_lost(golden, tmp_path):
    folder = shutil.copytree(golden, tmp_path / "mine")
    (folder / "notes.txt").write_text("mine")
    for name in ("visglm_files.json", "light.json"):  # what says whose the graphs are
        (folder / name).unlink()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(CheckpointError, match="is no part of a checkpoint"):
        export(open_source(EMBEDDED_MODEL), folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_source_that_cannot_be_exported_is_told(tmp_path):
    with pytest.raises(ConfigError, match="quantize must be one of int8, int4"):
        export(open_source(None), tmp_path / "out", "nf4")
    assert not (tmp_path / "out").exists()


def test_what_is_exported_is_not_replaced_by_what_is_written(tmp_path):
    """In four bits nobody would get it back."""
    source = shutil.copytree(EMBEDDED_MODEL, tmp_path / "mine")
    before = {path.name: path.read_bytes() for path in source.iterdir()}
    (tmp_path / "link").symlink_to(source)
    for name in ("mine", "link"):
        with pytest.raises(ConfigError, match="Choose another folder"):
            export(open_source(source), tmp_path / name, "int4")
    assert {path.name: path.read_bytes() for path in source.iterdir()} == before


def test_the_embedded_model_has_its_graphs():
    """After new weights: `make tiny-record`."""
    fields = json.loads((EMBEDDED_MODEL / "light.json").read_text())
    assert fields["files"].keys() == {
        "decoder.onnx", "heat.onnx", "vision.onnx", "model.safetensors", "ice_text.model",
    }  # fmt: skip
    LightVisGLM.from_pretrained()
    graphs = [EMBEDDED_MODEL / name for name in ("decoder.onnx", "heat.onnx", "vision.onnx", "light.json")]
    assert sum(path.stat().st_size for path in graphs) < 2 * 10**6  # the weights are the checkpoint's


def test_a_causal_model(tmp_path, vocabulary):  # noqa: F811
    source = shutil.copytree(GOLDEN_CHATGLM2, tmp_path / "chatglm2")
    shutil.copy(vocabulary, source / "tokenizer.model")
    export(open_source(source), tmp_path / "out")
    light = LightVisGLM.from_pretrained(tmp_path / "out")
    golden = expected("chatglm2")
    for row, ids in enumerate(golden["input_ids"].tolist()):
        for start in (0, 9):
            found = logits_of(light, ids, None, start)
            np.testing.assert_allclose(found, golden["logits"][row, start:].numpy(), atol=TOLERANCE, rtol=0)
    vlm = VisGLM.from_pretrained(source, device="cpu")
    one, other = (model.chat(None, "Hello", max_new_tokens=8) for model in (vlm, light))
    assert one.ids == other.ids and one.text == other.text
    one, other = (
        model.chat(None, "你好", reply.history, max_new_tokens=8) for model, reply in ((vlm, one), (light, other))
    )
    assert one.ids == other.ids


@pytest.mark.slow
@pytest.mark.parametrize("kind, tolerance", [("lora", 2e-4), ("ptuning", TOLERANCE)])  # merging rounds once more
def test_golden_logits_of_what_was_fine_tuned(tmp_path, kind, tolerance):
    source = make_fine_tuned(kind, tmp_path / "sat")
    export(open_source(source, tokenizer=GOLDEN_HF), tmp_path / "out")
    light = LightVisGLM.from_pretrained(tmp_path / "out")
    check_golden(light, expected(kind), tolerance)
    vlm = VisGLM.from_pretrained(source, tokenizer=GOLDEN_HF, device="cpu", dtype="float32")
    one, other = (model.explain(EXAMPLES / "cat.png", "What?", "Cat") for model in (vlm, light))
    np.testing.assert_allclose(other.heat, one.heat, atol=1e-3, rtol=0)  # relative to the largest


@pytest.mark.slow
@pytest.mark.parametrize("scheme, most", [("int4", 2), ("int8", 6)])
def test_packed_weights_answer_as_torch_does_in_the_same_bits(tmp_path, scheme, most):
    """Products round what they are given to 8 bits (torch's in int8 to bfloat16): a last bit may tip a near tie.

    1 and 3 of 200 were seen."""
    from tests.light.talks import compare

    export(open_source(None), tmp_path / "out", scheme)
    vlm = VisGLM.from_pretrained(tmp_path / "out", device="cpu")
    assert vlm.model.config.quantization["scheme"] == scheme
    assert len(compare(vlm, LightVisGLM.from_pretrained(tmp_path / "out"), 200)) <= most


@pytest.mark.slow
def test_a_model_in_memory_is_exported_with_what_it_learnt(tmp_path):
    rows = [{"img": str(EXAMPLES / "cat.png"), "prompt": "Who?", "label": "Mimi."}] * 4
    vlm = VisGLM.from_pretrained(device="cpu")
    settings = {"max_steps": 20, "batch_size": 2, "num_workers": 0, "held_out": 0.0, "num_samples": 0}
    vlm.finetune(rows, method="lora", output_dir=tmp_path / "run", report_to="none", **settings)
    vlm.export(tmp_path / "out")
    asked = EXAMPLES / "cat.png", "Who?"
    assert LightVisGLM.from_pretrained(tmp_path / "out").chat(*asked).ids == vlm.chat(*asked).ids
    assert vlm.adapters.active is not None  # it stays as it is
