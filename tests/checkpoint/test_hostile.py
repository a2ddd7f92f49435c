"""Folders made to do harm: no code of theirs runs, nothing is downloaded, and sizes are what the files can hold."""

from __future__ import annotations

import ast
import json
import os
import pickle
import re
import resource
import shutil
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from tests.checkpoint.test_damage import MEMORY, UNIT
from tests.tiny import GOLDEN_CHATGLM2, GOLDEN_HF, GOLDEN_SAT
from visglm import VisGLM
from visglm.checkpoint import convert, inspect, open_source
from visglm.cli import main
from visglm.config import TEXT_CONFIGS, VisGLMConfig
from visglm.errors import CheckpointError, ConfigError, VisGLMError, printable
from visglm.text import BACKBONES

ROOT = Path(__file__).parents[2]
CODE = """
open("RAN", "w").close()
from transformers import AutoConfig, PreTrainedConfig, PreTrainedTokenizer, ProcessorMixin
class Evil(PreTrainedTokenizer): pass
"""
AUTO_MAP = {name: "evil.Evil" for name in ("AutoConfig", "AutoModel", "AutoProcessor", "AutoImageProcessor")}
AUTO_MAP = {"auto_map": AUTO_MAP | {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}}
KERNEL = {"attn_implementation": "somebody/kernel"}


def edit(path: Path, *keys: str, **changes) -> None:
    """Change a table inside a JSON file, the one that `keys` lead to."""
    fields = json.loads(path.read_text())
    table = fields
    for key in keys:
        table = table.setdefault(key, {})
    table.update(changes)
    path.write_text(json.dumps(fields))


HOSTILE = {
    "processor": lambda folder: edit(folder / "processor_config.json", processor_class="Evil", **AUTO_MAP),
    "image processor": lambda folder: edit(
        folder / "processor_config.json", "image_processor", image_processor_type="Evil", **AUTO_MAP
    ),
    "tokenizer": lambda folder: edit(folder / "tokenizer_config.json", tokenizer_class="Evil", **AUTO_MAP),
    "auto_map alone": lambda folder: [
        edit(folder / name, **AUTO_MAP) for name in ("config.json", "processor_config.json", "tokenizer_config.json")
    ],
    "text model": lambda folder: edit(folder / "config.json", "text_config", model_type="evil", **AUTO_MAP),
    "backbone": lambda folder: [
        edit(
            folder / "config.json", part, backbone="somebody/backbone", use_pretrained_backbone=True, backbone_config={}
        )
        for part in ("vision_config", "qformer_config", "text_config")
    ],
    **{
        f"kernel of {part}": lambda folder, part=part: edit(folder / "config.json", part, **KERNEL)
        for part in ("vision_config", "qformer_config", "text_config")
    },
    "kernel": lambda folder: edit(folder / "config.json", **KERNEL),
    "private kernel": lambda folder: edit(
        folder / "config.json", "text_config", _attn_implementation="somebody/kernel"
    ),
    "stem": lambda folder: edit(folder / "config.json", "vision_config", stem="hf-hub:somebody/model"),
    "recogniser": lambda folder: edit(folder / "config.json", "vision_config", recogniser="hf-hub:somebody/model"),
    "tokenizer of the hub": lambda folder: edit(
        folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast", name_or_path="somebody/model"
    ),
    "quantization": lambda folder: edit(folder / "config.json", quantization_config={"quant_method": "evil"}),
    "answers": lambda folder: edit(
        folder / "generation_config.json", custom_generate="somebody/loop", assistant_model="somebody/model"
    ),
}
DRIVER = """
import json, socket, sys
def look_up(host, *args, **kwargs):
    print("NETWORK", host)
    raise OSError("no network")
socket.getaddrinfo = look_up
import visglm
from visglm.errors import VisGLMError, printable
for folder in sys.argv[1:]:
    try:
        vlm = visglm.VisGLM.from_pretrained(folder, device="cpu")
        print("ANSWER", folder, vlm.chat(None, "Hi", max_new_tokens=2).finish_reason)
    except VisGLMError as error:
        print("TOLD", folder)
"""


def test_no_code_runs_and_nothing_is_fetched(tmp_path):
    """With a yes on the standard input, and the hub not switched off."""
    folders = []
    for name, change in HOSTILE.items():
        folders.append(tmp_path / name)
        convert(open_source(GOLDEN_HF), folders[-1], "native")
        (folders[-1] / "evil.py").write_text(CODE)
        change(folders[-1])
    for golden in (GOLDEN_HF, GOLDEN_CHATGLM2):
        folders.append(tmp_path / golden.name)
        shutil.copytree(golden, folders[-1])
        (folders[-1] / "evil.py").write_text(CODE)
        edit(folders[-1] / "config.json", **AUTO_MAP, **KERNEL)
        (folders[-1] / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Evil", **AUTO_MAP}))
        (folders[-1] / "tokenizer.json").write_text("{}")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {"PYTHONPATH": str(ROOT), "HF_HOME": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, *map(str, folders)], input="y\n" * 50, capture_output=True, text=True,
        cwd=tmp_path, env=environment, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "NETWORK" not in done.stdout and "run the custom code" not in done.stdout + done.stderr
    assert not (tmp_path / "RAN").exists()
    told = {Path(line.split(" ", 1)[1]).name for line in done.stdout.splitlines() if line.startswith("TOLD")}
    assert told >= {
        "processor",
        "image processor",
        "tokenizer",
        "text model",
        "backbone",
        "stem",
        "recogniser",
        "answers",
    }
    answered = {name for name in HOSTILE if f"ANSWER {tmp_path / name} " in done.stdout}
    assert answered >= {"auto_map alone"} and len(told) + len(answered) >= len(HOSTILE)


# What reads its files itself, configurations among it; everything else goes through the one helper.
OWN = re.compile(r"(light\.)?VisGLM|VisGLMConfig|cls")


def test_every_call_into_transformers_refuses_code():
    calls = []
    for path in sorted((ROOT / "visglm").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            refuses = "trust_remote_code" in ast.unparse(node)
            if node.func.attr == "from_pretrained" and not refuses and not OWN.fullmatch(ast.unparse(node.func.value)):
                calls.append(f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node.func)}")
    assert not calls, "\n".join(calls)


@pytest.fixture(params=["native", "hf-legacy", "sat", "chatglm2"])
def layout(request, tmp_path):
    """A folder, its configuration file, and what it calls layers, vocabulary and width of its text model."""
    folder, name = tmp_path / "model", request.param
    if name == "native":
        convert(open_source(GOLDEN_HF), folder, "native")
        return folder, folder / "config.json", ("text_config",), ("num_hidden_layers", "vocab_size", "hidden_size")
    golden, file = {"hf-legacy": (GOLDEN_HF, "config.json"), "sat": (GOLDEN_SAT, "model_config.json")}.get(
        name, (GOLDEN_CHATGLM2, "config.json")
    )
    shutil.copytree(golden, folder)
    words = "padded_vocab_size" if name == "chatglm2" else "vocab_size"
    return folder, folder / file, (), ("num_layers", words, "hidden_size")


@pytest.mark.parametrize("value", [300, 1_000_000, 10**12])
def test_sizes_beyond_the_files(layout, value):
    folder, file, keys, names = layout
    before, text = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file.read_text()
    for name in names:
        edit(file, *keys, **{name: value})
        with pytest.raises(VisGLMError) as info:
            VisGLM.from_pretrained(folder, tokenizer=GOLDEN_HF, device="cpu")
        assert len(str(info.value)) < 20_000
        file.write_text(text)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * UNIT < MEMORY


@pytest.fixture
def legacy(tmp_path):
    shutil.copytree(GOLDEN_HF, tmp_path / "model")
    return tmp_path / "model"


def weights(folder: Path) -> Path:
    return folder / "pytorch_model-00001-of-00002.bin"


def refused(folder: Path) -> str:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError) as info:
        VisGLM.from_pretrained(folder, device="cpu")
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * UNIT < MEMORY
    return str(info.value)


def test_tensors_that_are_larger_than_their_file(legacy):
    """A row that is repeated without being stored, and one tensor under many names."""
    shard = torch.load(weights(legacy), weights_only=True)
    name = "transformer.word_embeddings.weight"
    whole = dict(shard)
    torch.save(whole | {name: torch.zeros(1).expand(1_000_000, 1000)}, weights(legacy))
    assert f"{name} claims 4,000,000,000 bytes" in refused(legacy)
    torch.save(dict.fromkeys(whole, torch.zeros(1_000_000)), weights(legacy))
    assert "more than the file has" in refused(legacy)


class Bytes:
    def __reduce__(self):
        return (bytearray, (50_000_000_000,))


def test_pickles_that_grow(legacy):
    torch.save({"weight": Bytes()}, weights(legacy), pickle_module=pickle)
    assert "more than tensors" in refused(legacy)
    shard = torch.load(weights(GOLDEN_HF), weights_only=True)
    torch.save(shard, weights(legacy))
    packed = weights(legacy).with_suffix(".zip")
    with zipfile.ZipFile(weights(legacy)) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for part in old.infolist():
            new.writestr(part.filename, old.read(part))
    packed.rename(weights(legacy))
    assert "compressed" in refused(legacy)


def test_sparse_and_other_tensors(legacy):
    for tensor in (torch.zeros(2, 2).to_sparse(), torch.zeros(2, device="meta"), torch.zeros(2, dtype=torch.complex64)):
        torch.save({"weight": tensor}, weights(legacy))
        assert weights(legacy).name in refused(legacy)


@pytest.mark.skipif(os.name != "posix", reason="there are no pipes and devices elsewhere")
@pytest.mark.parametrize("name", [weights(Path()).name, "config.json", "ice_text.model", "tokenizer_config.json"])
@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_what_is_no_file(legacy, name, kind, capsys):
    (legacy / name).unlink()
    if kind == "pipe":
        os.mkfifo(legacy / name)
    elif kind == "device":
        (legacy / name).symlink_to("/dev/zero")
    else:
        (legacy / name).mkdir()
    if name == "tokenizer_config.json":  # the vocabulary is enough
        assert VisGLM.from_pretrained(legacy, device="cpu").chat(None, "Hi", max_new_tokens=1)
    else:
        refused(legacy)
    assert main(["doctor", str(legacy)]) in (0, 1, 3)
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.skipif(os.name != "posix", reason="there are no pipes and devices elsewhere")
@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")], ids=["pipe", "device"])
def test_a_processor_that_is_no_file(tmp_path, make):
    convert(open_source(GOLDEN_HF), tmp_path / "model", "native")
    path = tmp_path / "model/processor_config.json"
    path.unlink()
    make(path)
    assert "file processor_config.json: missing" in refused(tmp_path / "model")


def enlarge(path: Path) -> None:
    """To what takes no room on the disk, and would in memory."""
    path.touch()
    os.truncate(path, 2**27)


def test_vocabularies_and_settings_that_no_model_has_are_not_read(legacy, tmp_path):
    enlarge(legacy / "ice_text.model")
    assert "ice_text.model: 134,217,728 bytes, expected at most" in refused(legacy)
    second = tmp_path / "chatglm2"
    shutil.copytree(GOLDEN_CHATGLM2, second)
    enlarge(second / "tokenizer.model")
    assert "tokenizer.model: 134,217,728 bytes, expected at most" in refused(second)
    (second / "tokenizer.model").unlink()
    enlarge(second / "tokenizer_config.json")
    assert "tokenizer_config.json: 134,217,728 bytes, expected at most" in refused(second)
    for name in ("tokenizer.json", "special_tokens_map.json", "chat_template.jinja"):
        native = tmp_path / name
        convert(open_source(GOLDEN_HF), native, "native")
        edit(native / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
        (native / "tokenizer.json").write_text("{}")
        enlarge(native / name)
        assert f"{name}: 134,217,728 bytes, expected at most" in refused(native)


TRIE_BYTES = 179_200  # of the table in the golden vocabulary by which sentencepiece normalizes text


def test_a_vocabulary_whose_table_leads_out_of_it_ends_no_process(legacy):
    """sentencepiece looks characters up in it; before 0.2.3 it believed every step."""
    content = bytearray((legacy / "ice_text.model").read_bytes())
    start = content.index(struct.pack("<I", TRIE_BYTES)) + 4
    content[start : start + TRIE_BYTES] = struct.pack("<I", 0x3FFFFF << 10 | 1 << 8) * (TRIE_BYTES // 4)
    (legacy / "ice_text.model").write_bytes(content)
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, str(legacy)], cwd=ROOT, capture_output=True, text=True, timeout=100, check=False
    )
    assert (done.returncode, done.stdout) == (0, f"TOLD {legacy}\n"), done.stderr


@pytest.mark.skipif(os.name != "posix", reason="there are no pipes elsewhere")
def test_doctor_does_not_wait_for_a_pipe(legacy):
    os.mkfifo(legacy / "other.bin")
    assert {check.subject for check in inspect(open_source(legacy))} >= {weights(legacy).name, "numbers"}


def test_names_from_the_files_cannot_steer_a_terminal(legacy, tmp_path, capsys):
    shard = torch.load(weights(legacy), weights_only=True)
    steering = "a\x1b]0;owned\x07\r\nb"
    torch.save(shard | {steering: torch.zeros(1)}, weights(legacy))
    edit(legacy / "config.json", position_encoding_2d=steering)
    assert main(["convert", str(legacy), str(tmp_path / "out")]) == 1
    edit(legacy / "config.json", position_encoding_2d=True)
    assert main(["convert", str(legacy), str(tmp_path / "out")]) == 1
    assert main(["doctor", str(legacy)]) == 3
    torch.save(shard | {"lm_head.weight": shard["lm_head.weight"] * float("nan")}, weights(legacy))
    weights(legacy).with_name("x\x1b[2J.bin").write_bytes(b"")
    assert main(["doctor", str(legacy)]) == 3
    found = capsys.readouterr()
    for text in (found.out, found.err):
        assert all(printable(line) == line for line in text.split("\n"))
    assert "unexpected: a\\x1b]0;owned\\x07\\r\\nb" in found.err and "\\x1b]0;owned" in found.out
    assert "x\\x1b[2J.bin" in found.out


def test_a_part_names_no_kernel_of_the_hub():
    """Whoever loads it can: transformers takes it beside the folder's name."""
    with pytest.raises(ConfigError, match="attn_implementation"):
        VisGLMConfig(text_config={"attn_implementation": "somebody/kernel"})
    with pytest.raises(ConfigError, match="'bert'.*visglm_chatglm"):
        VisGLMConfig(text_config={"model_type": "bert"})
    assert all(TEXT_CONFIGS[kind] is backbone.config_class for kind, backbone in BACKBONES.items())


def test_numbers_of_pictures_and_prompts_are_those_of_the_model(tmp_path):
    convert(open_source(GOLDEN_HF), tmp_path / "model", "native")
    file = tmp_path / "model/processor_config.json"
    text = file.read_text()
    edit(file, num_query_tokens=10**9)
    assert re.search("num_query_tokens is '1000000000'", refused(tmp_path / "model"))
    file.write_text(text)
    edit(file, "image_processor", size={"height": 10**6, "width": 10**6})
    assert "height and width up to 448" in refused(tmp_path / "model")
