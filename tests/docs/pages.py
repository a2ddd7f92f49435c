"""Documents and their blocks: what is run in them, and what they show.

A `text` block is what the `python` block before it prints; a `console` block holds commands behind `$` and, under each,
what it prints; in both, `…` stands for anything. A command in a `bash` block prints what nobody compares. What no test
can run says so where the reader sees it, at the end of its line: `# untested: why`, in Chinese `# 未测试：为什么`; in
Python on the block's first line.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
README, README_ZH = ROOT / "README.md", ROOT / "README_zh.md"
ENGLISH = sorted((ROOT / "docs/en").glob("*.md"))
CHINESE = sorted((ROOT / "docs/zh").glob("*.md"))
# In one language only.
SINGLE = [ROOT / name for name in ("CONTRIBUTING.md", "SECURITY.md", "finetune/README.md", "benchmarks/RESULTS.md")]
SINGLE.append(ROOT / "finetune/visglm-tiny/MODEL_CARD.md")
UNTESTED = re.compile(r"# (?:untested: |未测试：)(?P<reason>\S.*)$")
COMMENT = re.compile(r"(?:^|\s{2,})# .*$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """One fenced block: its language, text, and place. `reason` is why it cannot be run, in words, or "" if it can."""

    document: Path
    line: int
    language: str
    text: str

    @property
    def reason(self) -> str:
        """Of a block of Python as a whole; commands have their own."""
        found = UNTESTED.search(self.text.splitlines()[0]) if self.language == "python" else None
        return found["reason"] if found else ""

    @property
    def code(self) -> str:
        """What is the same in both languages: all but comments and empty lines."""
        lines = COMMENT.sub("", self.text).splitlines()
        return "\n".join(line.rstrip() for line in lines if line.strip())

    @property
    def untested(self) -> list[int]:
        """Numbers of the lines of code that no test runs."""
        lines = [line for line in self.text.splitlines() if line.strip()]
        return [number for number, line in enumerate(lines) if UNTESTED.search(line)]

    def __str__(self) -> str:
        return f"{self.document.relative_to(ROOT)}:{self.line}"


def blocks_of(document: Path) -> list[Block]:
    found, text = [], document.read_text("utf-8")
    for match in re.finditer(r"^```(\w*)[^\n]*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        found.append(Block(document, text[: match.start()].count("\n") + 1, match[1], match[2]))
    return found


@dataclass(frozen=True)
class Command:
    """A line of a shell, what is shown under it (None where nothing is), and why no test runs it, or ""."""

    line: str
    shown: str | None
    reason: str


def commands_of(block: Block) -> list[Command]:
    text = block.text.replace("\\\n", " ")
    if block.language == "console":
        parts = re.split(r"^\$ ", text, flags=re.MULTILINE)
        assert parts[0] == "", f"{block} does not begin with a command"
        pairs = [part.partition("\n")[::2] for part in parts[1:]]
    else:
        pairs = [(line, None) for line in text.splitlines() if line.strip() and not line.startswith("#")]
    commands = []
    for line, shown in pairs:
        found = UNTESTED.search(line)
        commands.append(Command(COMMENT.sub("", line).strip(), shown, found["reason"] if found else ""))
    return commands


def matches(printed: str, shown: str) -> bool:
    """Whether this was printed; `…` is anything on a line, and alone on a line any lines."""
    lines = [
        r"(?:.*\n)*?" if line == "…" else re.escape(line).replace("…", ".*") + r"\n"
        for line in shown.strip().splitlines()
    ]
    said = "".join(line.rstrip() + "\n" for line in printed.strip().splitlines())
    return re.fullmatch("".join(lines), said) is not None
