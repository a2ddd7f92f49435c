"""Folders that were cut off, changed or written by a stranger: told by name, and nothing of them is used."""

from __future__ import annotations

import json

import onnx
import pytest

from visglm.errors import CheckpointError
from visglm.light import VisGLM
from visglm.light.graph import locations
from visglm.light.manifest import hash_of


def change(folder, path, value):
    """Set one field of the manifest, given as "a.b"."""
    fields = json.loads((folder / "light.json").read_text())
    inside = fields
    *places, last = path.split("/")
    for place in places:
        inside = inside[place]
    inside[last] = value
    (folder / "light.json").write_text(json.dumps(fields))


def refused(folder) -> str:
    with pytest.raises(CheckpointError) as error:
        VisGLM.from_pretrained(folder)
    return str(error.value)


def test_a_copy_works(folder):
    assert VisGLM.from_pretrained(folder).chat(None, "你好").text


@pytest.mark.parametrize("name", ["decoder.onnx", "vision.onnx", "model.safetensors", "ice_text.model"])
def test_a_file_that_is_not_what_was_exported_is_told(folder, name):
    path = folder / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert f"file {name}: it is not what was exported" in refused(folder)
    path.write_bytes(content[:-1])
    assert f"file {name}: {len(content) - 1:,} bytes, expected" in refused(folder)
    path.unlink()
    assert name in refused(folder)


@pytest.mark.parametrize(
    "path, value, told",
    [
        ("format", 2, "its format is 2"),
        ("prompt_style", "gpt", "prompt_style must be one of"),
        ("num_query_tokens", 10**9, "num_query_tokens must be between"),
        ("hidden_size", "256", "hidden_size must be"),
        ("vocab_size", 8192, "the embeddings are"),
        ("cache/layers", 0, "layers must be between"),
        ("cache/heads", 4, "another model's"),
        ("tables/embeddings/offset", 2**40, "does not lie in its file"),
        ("tables/embeddings/shape", [4096, 2**30], "does not lie in its file"),
        ("tables/embeddings/file", "../secret", "cannot be used"),
        ("tables/embeddings/dtype", "O", "cannot be used"),
        ("graphs/decoder", "../decoder.onnx", "no hash"),
        ("graphs/vision_3", "vision.onnx", "which nothing plays"),
        ("tokenizer/file", "/etc/passwd", "no hash"),
        ("tokenizer/special_ids", ["0"], "special_ids"),
        ("pictures/height", 10**6, "height must be between"),
        ("pictures/mean", [0.5], "three numbers"),
        ("files", {}, "cannot be used"),
    ],
)
def test_a_manifest_that_makes_no_sense_is_told(folder, path, value, told):
    change(folder, path, value)
    assert told in refused(folder)


def test_files_outside_are_never_hashed(folder):
    (folder.parent / "secret").write_text("secret")
    fields = json.loads((folder / "light.json").read_text())
    fields["files"]["../secret"] = {"bytes": 6, "sha256": hash_of(folder.parent / "secret")}
    (folder / "light.json").write_text(json.dumps(fields))
    assert "no name of a file in the folder" in refused(folder)


def test_a_graph_that_reads_elsewhere_is_refused(folder):
    """Its hash is right: a stranger wrote both."""
    (folder.parent / "secret").write_bytes(bytes(4096))
    model = onnx.load(folder / "decoder.onnx", load_external_data=False)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.external_data)
    next(entry for entry in tensor.external_data if entry.key == "location").value = "../secret"
    onnx.save(model, folder / "decoder.onnx")
    seal(folder, "decoder.onnx")
    assert "file decoder.onnx: it takes weights from ../secret" in refused(folder)


def test_names_are_found_wherever_a_graph_may_hide_them(tmp_path):
    def elsewhere(name):
        tensor = onnx.TensorProto(name=name, data_type=1, dims=[1], data_location=onnx.TensorProto.EXTERNAL)
        tensor.external_data.add(key="location", value=name)
        return tensor

    helper = onnx.helper
    inner = helper.make_graph([], "inner", [], [], [elsewhere("in a branch")])
    nodes = [
        helper.make_node("Constant", [], ["a"], value=elsewhere("in a constant")),
        helper.make_node("If", ["c"], ["b"], then_branch=inner, else_branch=inner),
    ]
    function = helper.make_function(
        "own", "f", [], ["d"], [helper.make_node("Constant", [], ["d"], value=elsewhere("in a function"))],
        [helper.make_opsetid("", 21)],
    )  # fmt: skip
    graph = helper.make_graph(nodes, "outer", [], [], [elsewhere("in a weight")])
    onnx.save(helper.make_model(graph, functions=[function]), tmp_path / "a.onnx")
    assert locations(tmp_path / "a.onnx") == {"in a branch", "in a constant", "in a function", "in a weight"}


@pytest.mark.parametrize(
    "content", [b"", b"not a graph", b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", b"\x3a\x05ab"]
)
def test_what_is_no_graph_is_told(folder, content):
    (folder / "decoder.onnx").write_bytes(content)
    seal(folder, "decoder.onnx")
    assert "decoder.onnx: no" in refused(folder)


def test_a_folder_without_an_exported_model_is_told(tmp_path):
    assert "visglm export" in refused(tmp_path)
    (tmp_path / "light.json").write_text("{")
    assert "no JSON" in refused(tmp_path)


def seal(folder, name):
    """Write the right size and hash of a file into the manifest."""
    fields = json.loads((folder / "light.json").read_text())
    fields["files"][name] = {"bytes": (folder / name).stat().st_size, "sha256": hash_of(folder / name)}
    (folder / "light.json").write_text(json.dumps(fields))
