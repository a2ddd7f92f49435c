"""Every block of the documentation and of README is run, and prints what is shown under it."""

from __future__ import annotations

import contextlib
import glob
import io
import itertools
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import (
    ENGLISH,
    README,
    README_ZH,
    ROOT,
    SINGLE,
    Block,
    Command,
    blocks_of,
    commands_of,
    matches,
)
from tests.families.made import make
from visglm import cli

# Chinese pages have the blocks of the English ones: test_languages.py.
DOCUMENTS = [README, *ENGLISH, *SINGLE]
# In all others, what is taught is mixed with fewer of the answers that a reader's run asks itself for.
SHOWS_WHAT_WAS_LEARNT = "teaching.md"
LANGUAGES = {"python", "text", "bash", "console", "json", "yaml"}


@pytest.fixture
def desk(tmp_path, monkeypatch, request) -> Path:
    """A folder as a reader has it: the repository's, with a file of captions and a checkpoint to try things on."""
    for name in ("examples", "finetune", "benchmarks"):
        (tmp_path / name).symlink_to(ROOT / name)
    # In VisualGLM-6B's layout, with random weights of a few kilobytes.
    shutil.copytree(ROOT / "tests/golden/visualglm-hf", tmp_path / "visualglm-6b")
    for name in ("cat.png", "picture.jpg"):
        shutil.copy(ROOT / "examples/cat.png", tmp_path / name)
    # All but said already: what is new takes longer to learn, and test_pupil.py and docs/en/teaching.md teach it.
    rows = [{"image": "cat.png", "caption": "It is a cat."}, {"image": "cat.png", "caption": "这是猫。"}]
    for name in ("train.jsonl", "test.jsonl"):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    shutil.copy(ROOT / "examples/car.jpg", tmp_path)
    (tmp_path / "pictures.csv").write_text("file_name,text\ncat.png,It is a cat.\ncar.jpg,It is a car.\n", "utf-8")
    (tmp_path / "questions.txt").write_text("What is this?\n这是什么？\n", "utf-8")
    if request.node.callspec.params["document"].name == "families.md":
        make("glm4v", tmp_path / "GLM-4.1V-9B-Thinking", do_sample=True, temperature=0.8, top_p=0.6, top_k=2)
        make("glm_ocr", tmp_path / "GLM-OCR")
    if request.node.callspec.params["document"].name != SHOWS_WHAT_WAS_LEARNT:
        monkeypatch.setattr("visglm.training.replay.MAX_SMALL_ANSWERS", 24)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(line: str) -> tuple[int, str]:
    """A command's status and what it printed: stdout, and stderr as well where it failed."""
    words = [name for word in shlex.split(line) for name in (sorted(glob.glob(word)) or [word])]
    typed = ""
    if "<" in words:
        typed = Path(words[words.index("<") + 1]).read_text("utf-8")
        words = words[: words.index("<")]
    if words[0] == "python":
        done = subprocess.run([sys.executable, *words[1:]], input=typed, capture_output=True, text=True)
        return done.returncode, done.stdout + (done.stderr if done.returncode else "")
    assert words[0] == "visglm", f"nothing runs {words[0]!r} here"
    out, error = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(error),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(sys, "stdin", io.StringIO(typed))
        status = cli.main(words[1:])
    return status, out.getvalue() + (error.getvalue() if status in (1, 2) else "")


def heard(printed: str) -> str:
    """What was printed, without what a package that happens to be installed says of itself while it is imported."""
    return re.sub(r"^\[\d{4}-.*\] \[WARNING\] .*\n", "", printed, flags=re.MULTILINE)


def check_command(command: Command, block: Block) -> None:
    words = shlex.split(command.line)
    if words[0] == "visglm" and "…" not in words:
        cli.build_parser(words[1]).parse_args(words[1:])
    if command.reason:
        return
    status, printed = run(command.line)
    if command.shown is None:
        assert status == 0, f"{block}: {command.line}\n{printed}"
    else:
        printed = re.sub(r"^Loading .*\n|^.*, loaded in .*\n", "", printed, flags=re.MULTILINE)
        assert matches(heard(printed), command.shown), f"{block}: {command.line}\n{printed}"


def check_python(block: Block, shown: str | None, names: dict) -> None:
    code = compile(block.text, str(block), "exec")
    if block.reason:
        return
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(code, names)
    if shown is not None:
        assert matches(heard(out.getvalue()), shown), f"{block}:\n{out.getvalue()}"


@pytest.mark.timeout(600)
@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_what_is_written_runs_and_prints_what_is_shown(document, desk):
    """One session: a block goes on from what those before it have made."""
    names: dict = {"__name__": "__main__"}
    blocks = blocks_of(document)
    for block, following in itertools.zip_longest(blocks, blocks[1:]):
        if block.language == "python":
            check_python(block, following.text if following and following.language == "text" else None, names)
        elif block.language in ("bash", "console"):
            for command in commands_of(block):
                check_command(command, block)
        elif block.language == "json":
            check_rows(block)
        elif block.language == "yaml":
            check_recipe(block, desk)


def check_rows(block: Block) -> None:
    from visglm.training.formats import FORMATS

    for line in block.text.splitlines():
        row = json.loads(line)
        assert any(form[0](row) for form in FORMATS.values()), f"{block}: nobody reads {line}"


def check_recipe(block: Block, desk: Path) -> None:
    from visglm.recipe import FinetuneArguments, read_recipe

    (desk / "recipe.yaml").write_text(block.text, "utf-8")
    settings = read_recipe(desk / "recipe.yaml")
    FinetuneArguments(**{name: value for name, value in settings.items() if name not in ("data", "model")})


@pytest.mark.parametrize("document", [*DOCUMENTS, README_ZH], ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_block_is_of_a_kind_that_is_tested(document):
    blocks = blocks_of(document)
    assert [str(block) for block in blocks if block.language not in LANGUAGES] == []
    for before, block in zip([None, *blocks], blocks, strict=False):
        is_tree = block.text.startswith("visglm/")
        is_output = before is not None and before.language == "python"
        assert block.language != "text" or is_tree or is_output, f"{block} belongs to no code"
