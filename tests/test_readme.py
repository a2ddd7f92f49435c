"""What README and the documentation say is there, is there. Their blocks are run in tests/docs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.docs.pages import CHINESE, ENGLISH, README, README_ZH, ROOT, SINGLE, blocks_of, commands_of
from visglm import cli, errors

DOCUMENTS = [README, README_ZH, ROOT / "CHANGELOG.md", *SINGLE, *ENGLISH, *CHINESE]


def name_of(document: Path) -> str:
    return document.relative_to(ROOT).as_posix()


def tree(document: Path) -> list[str]:
    """Paths of the annotated tree, the only text block in which lines begin with a path and a comment."""
    [text] = [block.text for block in blocks_of(document) if block.text.startswith("visglm/")]
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
    return {target for text in texts for target in re.findall(r"^([a-z0-9-]+):.*##", text, re.MULTILINE)}


@pytest.mark.parametrize("document", [ROOT / "README.md", ROOT / "README_zh.md"], ids=lambda path: path.name)
def test_the_tree_is_the_one_there_is(document):
    paths = tree(document)
    assert [path for path in paths if not (ROOT / path).exists()] == []
    public = {
        path.name for path in (ROOT / "visglm").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    named = {Path(path).name for path in paths if path.startswith("visglm/")}
    assert public - named - {"__init__.py", "__main__.py", "auto.py"} == set(), "parts the tree leaves out"


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_links_lead_somewhere(document):
    text = re.sub(r"^```.*?^```$", "", document.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    targets = re.findall(r"\]\(([^)#]+)\)", text) + re.findall(r'src="([^"]+)"', text)
    # Pages of the reference are made when the site is built, which finds a link that leads to none of them.
    local = [target for target in targets if not target.startswith(("https://", "api/"))]
    assert [target for target in local if not (document.parent / target).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_commands_exist(document):
    """Every `visglm …` names a command and, written out in a block, parses; every `make …` is a target."""
    lines = [
        command.line for block in blocks_of(document) if block.language == "bash" for command in commands_of(block)
    ]
    written_out = re.findall(r"^(visglm|make) (.*)$", "\n".join(lines), re.MULTILINE)
    mentioned = re.findall(r"`(visglm|make) ([^`\n]+)`", document.read_text("utf-8"))
    for program, line in written_out + mentioned:
        words = shlex.split(line, comments=True)
        if program == "make":
            assert [word for word in words if "=" not in word and word not in make_targets()] == []
        elif words[0] != "COMMAND":
            assert words[0] in cli.COMMANDS, line
    for words in (shlex.split(line, comments=True) for program, line in written_out if program == "visglm"):
        cli.build_parser(words[0]).parse_args(words)


def test_every_command_of_the_table_is_on_its_page():
    text = (ROOT / "docs/en/commands.md").read_text("utf-8")
    assert [name for name in cli.COMMANDS if f"visglm {name}" not in text] == []


def test_every_error_is_on_its_page():
    text = (ROOT / "docs/en/errors.md").read_text("utf-8")
    kinds = [
        value for value in vars(errors).values() if isinstance(value, type) and value.__module__ == errors.__name__
    ]
    assert [kind.__name__ for kind in kinds if f"`{kind.__name__}`" not in text] == []


def test_the_extras_and_marks_of_the_credits_name_what_is_used():
    notice = (ROOT / "NOTICE").read_text("utf-8")
    drawing = (ROOT / "examples/draw_pictures.py").read_text("utf-8")
    for style, name in re.findall(r'\("([a-z-]+)", "([a-z-]+)", \(', drawing):
        assert f"@iconify-json/{style} " in notice and name.replace("-", " ") in notice
