"""What strangers do with the player: calls that make no sense, models that are none, terminals without an end."""

from __future__ import annotations

import copy
import json
import math
import os
import pickle
import subprocess
import sys

import pytest

from tests.light.talks import EXAMPLES
from tests.light.test_damage import change, refused, seal
from visglm.errors import CheckpointError, ConfigError, EngineError, PromptError
from visglm.light import VisGLM as LightVisGLM
from visglm.sampling import MOST_BIASES

CAT = EXAMPLES / "cat.png"
# All digits are among the first tokens.
MOST_WORDS = dict.fromkeys(range(MOST_BIASES), -100.0)


@pytest.mark.parametrize(
    "requests", ["What?", None, 5, [5], [(CAT,)], [(CAT, "What?", None, 5)], [{"images": CAT, "prompt": "What?"}]]
)
def test_many_questions_that_are_none_are_refused_as_torch_does(vlm, light, requests):
    messages = []
    for model in (vlm, light):
        with pytest.raises(PromptError) as caught:
            model.batch(requests)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


def test_a_request_that_is_none_leaves_the_others_their_answers(light):
    replies = light.batch([(CAT,), (CAT, "What is it?")], on_error="return")
    assert isinstance(replies[0], PromptError) and replies[1].text


def test_no_picture_to_encode_is_told(light):
    for nothing in (None, []):
        with pytest.raises(PromptError, match="no picture"):
            light.encode(nothing)


@pytest.mark.parametrize("settings", [{}, {"temperature": 1.0, "seed": 0}])
def test_ruling_out_every_token_is_told(light, settings):
    with pytest.raises(ConfigError, match="rule out every token"):
        light.chat(CAT, "What?", logit_bias=MOST_WORDS, regex="[0-9]{3}", **settings)


@pytest.mark.parametrize("settings", [{}, {"temperature": 1.0, "seed": 0}, {"choices": ["a", "b"]}])
def test_a_network_that_computes_no_numbers_is_told(folder, settings):
    """Weights may be no numbers, and their hash right: a stranger wrote both."""
    spoil(folder)
    with pytest.raises(EngineError, match="no numbers"):
        LightVisGLM.from_pretrained(folder).chat(None, "你好", **settings)


def spoil(folder):
    """Embeddings that are no numbers."""
    table = json.loads((folder / "light.json").read_text())["tables"]["embeddings"]
    content = bytearray((folder / table["file"]).read_bytes())
    size = math.prod(table["shape"]) * 2
    content[table["offset"] : table["offset"] + size] = b"\xff" * size
    (folder / table["file"]).write_bytes(content)
    seal(folder, table["file"])


def test_what_people_ask_a_model_about_itself_is_torchs(vlm, light):
    for name in ("defaults", "max_pictures", "context_length", "allow_urls", "image_limits"):
        assert getattr(light, name) == getattr(vlm, name), name
    assert set(light.abilities) < set(vlm.abilities) and "explain" in light.abilities


def test_a_player_is_copied_and_goes_to_other_processes(light):
    wanted = light.chat(CAT, "What is it?").ids
    for other in (copy.deepcopy(light), pickle.loads(pickle.dumps(light))):
        assert other.chat(CAT, "What is it?").ids == wanted
        assert other.network is not light.network


def test_where_there_is_no_exported_model_the_reason_is_told(tmp_path):
    assert "there is no such folder" in refused(tmp_path / "nowhere")
    assert "DST" not in refused(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    assert "it is no folder" in refused(tmp_path / "file")
    assert "`visglm export SRC DST`" in refused(tmp_path)  # nothing that could be exported
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint/config.json").write_text("{}")
    assert f"`visglm export {tmp_path / 'checkpoint'} DST`" in refused(tmp_path / "checkpoint")


@pytest.mark.parametrize(
    "path, value, told",
    [
        ("format", True, "its format is True"),
        ("image_token_id", None, "image slots"),
        ("image_token_id", 3, "image slots"),
        ("tokenizer/image_token_id", 3, "image slots"),
        ("tokenizer/num_image_tokens", 3, "vocabulary"),
        ("positions/start", 0, "where the answer starts"),
        ("positions/blanks", 3, "blanks"),
        ("quantization", "int4", "quantization"),
        ("quantization", [], "quantization"),
        ("answers/end_ids", "", "end_ids"),
        ("answers/end_ids", [10**6], "end_ids"),
        ("tokenizer/special_ids", "", "special_ids"),
        ("pictures/mean", [float("nan"), 0.5, 0.5], "mean"),
        ("pictures/std", [0, 0.5, 0.5], "std"),
    ],
)
def test_a_manifest_that_would_break_an_answer_is_told_before(folder, path, value, told):
    change(folder, path, value)
    assert told in refused(folder)


BEGIN = (
    "import sys; sys.orig_argv[1:2] = ['visglm-light']; from visglm.cli.light import main; sys.exit(main(sys.argv[1:]))"
)


def ask(*words, closed="", **options):
    """`visglm-light`, with some of its three streams closed, as `<&-`, `>&-` and `2>&-` do in a shell."""
    command = [sys.executable, "-c", BEGIN, *words]
    close = f"import os, sys; [os.close(int(name)) for name in {closed!r}]; os.execv(sys.argv[1], sys.argv[1:])"
    return subprocess.run([sys.executable, "-c", close, *command], capture_output=True, text=True, **options)


def test_closed_streams_are_no_crash(light):
    wanted = light.chat(CAT, "What is it?").text
    without_status = ask(str(CAT), "-q", "What is it?", closed="2")
    assert (without_status.stdout, without_status.returncode) == (wanted + "\n", 0)  # and no status among the answers
    assert ask(str(CAT), "-q", "What is it?", closed="02").stdout == wanted + "\n"
    without_answer = ask(str(CAT), "-q", "What is it?", closed="1")
    assert "Traceback" not in without_answer.stderr and "standard output is closed" in without_answer.stderr
    assert without_answer.returncode == 1


def test_a_question_in_another_encoding_than_the_terminals_is_told():
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = ask("-q", "这是什么？", env=environment)
    assert done.returncode == 1 and "--question" in done.stderr and "PYTHONUTF8=1" in done.stderr


@pytest.mark.parametrize("name", ["model.safetensors", "ice_text.model", "decoder.onnx", "vision.onnx", "heat.onnx"])
@pytest.mark.parametrize("share", [0, 0.5])
def test_a_file_that_is_cut_and_has_the_right_hash_is_told(folder, name, share):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: int(len(content) * share)])
    seal(folder, name)
    with pytest.raises(CheckpointError):
        LightVisGLM.from_pretrained(folder).explain(CAT, "What?", "A cat.")
