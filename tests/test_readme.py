"""What the README and its siblings say is there, is there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from visglm import cli

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    path for name in ("README.md", "README_zh.md", "CONTRIBUTING.md", "CHANGELOG.md") for path in [ROOT / name]
]


def blocks(document: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", document.read_text("utf-8"), re.MULTILINE | re.DOTALL)


def tree(document: Path) -> list[str]:
    """Paths of the annotated tree, the only text block in which lines begin with a path and a comment."""
    [text] = [block for block in blocks(document, "text") if block.startswith("visglm/")]
    paths, folder = [], ""
    for line in text.splitlines():
        names = re.split(r" {2,}", line.strip())[0].split(", ")
        if not line.startswith(" "):
            folder = ""
        paths += [folder + name for name in names]
        if not line.startswith(" ") and names[0].endswith("/"):
            folder = names[0]
    return paths


def make_targets() -> set[str]:
    text = (ROOT / "Makefile").read_text("utf-8")
    included = [ROOT / name for name in re.findall(r"^-?include (.+)$", text, re.MULTILINE)]
    texts = [text, *(path.read_text("utf-8") for path in included if path.is_file())]
    return {target for text in texts for target in re.findall(r"^([a-z-]+):.*##", text, re.MULTILINE)}


@pytest.mark.parametrize("document", [ROOT / "README.md", ROOT / "README_zh.md"], ids=lambda path: path.name)
def test_the_tree_is_the_one_there_is(document):
    paths = tree(document)
    assert [path for path in paths if not (ROOT / path).exists()] == []
    public = {
        path.name for path in (ROOT / "visglm").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    named = {Path(path).name for path in paths if path.startswith("visglm/")}
    assert public - named - {"__init__.py", "__main__.py", "auto.py"} == set(), "parts the tree leaves out"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document):
    text = document.read_text("utf-8")
    targets = re.findall(r"\]\(([^)#]+)\)", text) + re.findall(r'src="([^"]+)"', text)
    local = [target for target in targets if not target.startswith("https://")]
    assert [target for target in local if not (ROOT / target).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_exist(document):
    """Every `visglm …` names a command and, written out in a block, parses; every `make …` is a target."""
    written_out = re.findall(r"^(visglm|make) (.*)$", "\n".join(blocks(document, "bash")), re.MULTILINE)
    mentioned = re.findall(r"`(visglm|make) ([^`\n]+)`", document.read_text("utf-8"))
    for program, line in written_out + mentioned:
        words = shlex.split(line, comments=True)
        if program == "make":
            assert words[0] in make_targets()
        elif words[0] != "COMMAND":
            assert words[0] in cli.COMMANDS, line
    for words in (shlex.split(line, comments=True) for program, line in written_out if program == "visglm"):
        cli.build_parser(words[0]).parse_args(words)


def test_the_commands_of_the_table_are_in_the_readme():
    text = (ROOT / "README.md").read_text("utf-8")
    assert [name for name in cli.COMMANDS if f"visglm {name}" not in text] == []


@pytest.mark.parametrize("document", [ROOT / "README.md", ROOT / "README_zh.md"], ids=lambda path: path.name)
def test_python_runs_and_prints_what_is_shown(document, monkeypatch, capsys):
    """The first block's output is shown under it; the others run."""
    monkeypatch.chdir(ROOT)
    first, *others = blocks(document, "python")
    exec(compile(first, str(document), "exec"), {})
    shown = blocks(document, "text")[0]
    assert capsys.readouterr().out == shown
    for code in others:
        exec(compile(code, str(document), "exec"), {})
        assert capsys.readouterr().out.strip()


def test_the_extras_and_marks_of_the_credits_name_what_is_used():
    notice = (ROOT / "NOTICE").read_text("utf-8")
    drawing = (ROOT / "examples/draw_pictures.py").read_text("utf-8")
    for style, name in re.findall(r'\("([a-z-]+)", "([a-z-]+)", \(', drawing):
        assert f"@iconify-json/{style} " in notice and name.replace("-", " ") in notice
