"""The shape of the code base, read from its syntax trees: layers, dependencies, and a few habits.

Each rule is a function from source files to violations. It is run twice: on the repository, where it must find
nothing, and on samples in which it must find something.
"""

from __future__ import annotations

import ast
import configparser
import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Lower never imports higher. A row is one layer; inside it imports go one way at most.
LAYERS = (
    ("errors", "imports"),
    ("config", "untrusted"),
    ("pictures", "tokenizers", "settings", "sampling", "recipe"),
    ("prompt",),
    ("processor", "vision", "text", "reply", "shapes", "writing"),
    ("model", "request", "stream", "explanation"),
    ("families",),
    ("light",),
    ("identity",),
    ("auto",),
    ("quant",),
    ("adapters",),
    ("checkpoint",),
    ("explain", "engine", "export"),
    ("training", "library", "remote"),
    ("chat",),
    ("cluster",),
    ("serve", "describe", "indexing", "selftest", "drop_in"),
    ("cli",),
    ("__init__", "__main__"),
)
LAYER = {unit: number for number, units in enumerate(LAYERS) for unit in units}
# The model knows ids, never text; pictures and words meet in the model only.
# What `light` stands on, and nothing else: all of it works where torch is not installed.
UNDER_LIGHT = (
    *("errors", "explanation", "pictures", "prompt", "reply", "request", "sampling", "settings", "shapes", "stream"),
    *("tokenizers", "untrusted", "writing"),
)
STRANGERS = {
    *(("light", unit) for unit in LAYER if unit not in (*UNDER_LIGHT, "light")),
    ("vision", "text"),
    ("text", "vision"),
    ("model", "tokenizers"),
    ("model", "prompt"),
    ("model", "processor"),
}
# Parts that stand on an extra as a whole: its packages may be imported at their tops.
ON_EXTRAS = {"serve": "serve", "quant": "quant-gpu"}
# What stands outside the package and uses it as its readers would.
OUTSIDE = ("demos", "finetune", "examples", "benchmarks")
# Distributions that are imported under another name.
IMPORT_NAMES = {
    "pillow": "PIL",
    "python-docx": "docx",
    "python-pptx": "pptx",
    "pyyaml": "yaml",
    "SwissArmyTransformer": "sat",
}


@dataclass(frozen=True)
class Import:
    module: str  # dotted and absolute
    name: str | None  # what is taken from it; None for `import module`
    line: int
    deferred: bool  # inside a function, or for type checkers only


@dataclass(frozen=True)
class Source:
    path: str  # relative to the repository
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, self.path)

    @cached_property
    def module(self) -> str:
        return ".".join(Path(self.path).with_suffix("").parts).removesuffix(".__init__")

    @property
    def unit(self) -> str:
        """The part of visglm that the file belongs to: `text` for visglm/text/chatglm.py."""
        return unit_of(self.module)

    @cached_property
    def imports(self) -> list[Import]:
        package = self.module.split(".")[: None if self.path.endswith("__init__.py") else -1]
        return list(find_imports(self.tree, package))

    def at(self, line: int, what: str) -> str:
        return f"{self.path}:{line}: {what}"


def find_imports(node: ast.AST, package: list[str], deferred: bool = False) -> Iterator[Import]:
    if isinstance(node, ast.Import):
        yield from (Import(alias.name, None, node.lineno, deferred) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = package[: len(package) - node.level + 1] if node.level else []
        module = ".".join([*base, *(node.module.split(".") if node.module else [])])
        yield from (Import(module, alias.name, node.lineno, deferred) for alias in node.names)
    deferred = (
        deferred
        or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
    )
    for child in ast.iter_child_nodes(node):
        yield from find_imports(child, package, deferred)


def unit_of(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def imported_unit(item: Import) -> str:
    """`errors` for each of: from visglm.errors import X, from visglm import errors, import visglm.errors."""
    if item.module == "visglm" and item.name in LAYER:
        return item.name
    return unit_of(item.module)


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def read_package() -> list[Source]:
    return [
        Source(str(path.relative_to(ROOT)), path.read_text("utf-8")) for path in sorted((ROOT / "visglm").rglob("*.py"))
    ]


def read_outside() -> list[Source]:
    sources = []
    for path in sorted(path for folder in OUTSIDE for path in (ROOT / folder).rglob("*.*")):
        if path.suffix not in (".py", ".ipynb") or {"node_modules", ".ipynb_checkpoints"} & set(path.parts):
            continue
        text = path.read_text("utf-8")
        if path.suffix == ".ipynb":
            text = notebook_code(text)
        sources.append(Source(str(path.relative_to(ROOT)), text))
    return sources


def notebook_code(text: str) -> str:
    """The code cells of a notebook, without the lines that only IPython understands."""
    cells = (cell["source"] for cell in json.loads(text)["cells"] if cell["cell_type"] == "code")
    return re.sub(r"(?m)^\s*[%!].*$", "", "\n".join("".join(source) for source in cells))


def read_requirements(extra: str | None = None) -> set[str]:
    """The names under which the packages that setup.cfg lists are imported."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", "utf-8")
    section, option = ("options.extras_require", extra) if extra else ("options", "install_requires")
    names = re.findall(r"(?m)^([\w.-]+)", config[section][option])
    return {IMPORT_NAMES.get(name, name.replace("-", "_")) for name in names}


# --- the rules ---


def upward_imports(sources: list[Source]) -> Iterator[str]:
    for source in sources:
        if source.unit not in LAYER:
            yield source.at(1, f"{source.unit!r} has no layer: give it one in LAYERS")
            continue
        for item in source.imports:
            if item.module.split(".")[0] != "visglm":
                continue
            unit = imported_unit(item)
            if unit not in LAYER:
                yield source.at(item.line, f"{unit!r} has no layer: give it one in LAYERS")
            elif LAYER[unit] > LAYER[source.unit]:
                yield source.at(item.line, f"{source.unit!r} must not import {unit!r}, which stands above it")
            elif (source.unit, unit) in STRANGERS:
                yield source.at(item.line, f"{source.unit!r} must not know {unit!r}")


def circles(sources: list[Source]) -> Iterator[str]:
    edges = {
        (source.unit, imported_unit(item))
        for source in sources
        for item in source.imports
        if item.module.split(".")[0] == "visglm"
    }
    for unit, other in sorted(edges):
        if unit < other and (other, unit) in edges:
            yield f"{unit!r} and {other!r} import each other"


def undeclared_imports(sources: list[Source]) -> Iterator[str]:
    core = {"visglm", *sys.stdlib_module_names, *read_requirements()}
    extras = (
        *(
            "evaluate",
            "finetune",
            "serve",
            "describe",
            "remote",
            "ray",
            "demo",
            "quant",
            "export",
            "heif",
            "shapes",
            "library",
            "ocr",
        ),
        "sat",
    )
    optional = set.union(*map(read_requirements, extras))
    for source in sources:
        for item in source.imports:
            package = item.module.split(".")[0]
            own = read_requirements(ON_EXTRAS[source.unit]) if source.unit in ON_EXTRAS else set()
            if package in core or package in own or (package in optional and item.deferred):
                continue
            if package in optional:
                problem = "is optional: import it inside the function that needs it, through require()"
            else:
                problem = "is not listed in setup.cfg"
            yield source.at(item.line, f"{package!r} {problem}")


def private_uses(sources: list[Source]) -> Iterator[str]:
    for source in sources:
        for item in source.imports:
            if item.module.split(".")[0] != "visglm":
                continue
            parts = item.module.split(".")
            if any(is_private(part) for part in (*parts, item.name or "")):
                yield source.at(item.line, f"{item.module}.{item.name} is private")
            elif len(parts) > 2 and not source.path.startswith("finetune/visglm-tiny/"):
                yield source.at(item.line, f"{item.module} is not a public module: take names from visglm.{parts[1]}")
        for node in ast.walk(source.tree):
            if not isinstance(node, ast.Attribute) or not is_private(node.attr):
                continue
            if ast.unparse(node.value) not in ("self", "cls"):
                yield source.at(node.lineno, f"{ast.unparse(node)} is private")


def asserts_and_prints(sources: list[Source]) -> Iterator[str]:
    for source in sources:
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Assert):
                yield source.at(node.lineno, "assert: raise a VisGLMError for what users can cause")
            elif isinstance(node, ast.Name) and node.id == "print" and source.unit != "cli":
                yield source.at(node.lineno, "print: return it, raise it or log it; only visglm/cli prints")


@pytest.mark.parametrize(
    "rule, read",
    [
        (upward_imports, read_package),
        (circles, read_package),
        (undeclared_imports, read_package),
        (private_uses, read_outside),
        (asserts_and_prints, read_package),
    ],
)
def test_rule_holds(rule: Callable[..., Iterator[str]], read: Callable[[], list[Source]]) -> None:
    violations = list(rule(read()))
    assert not violations, "\n".join(violations)


@pytest.mark.parametrize(
    "rule, path, text, found",
    [
        (upward_imports, "visglm/prompt/render.py", "from ..chat import VisGLM", "above"),
        (upward_imports, "visglm/prompt/render.py", "def f():\n    from visglm import chat", "above"),
        (upward_imports, "visglm/text/glm.py", "import visglm.model", "above"),
        (upward_imports, "visglm/text/glm.py", "from ..model import VisGLMModel", "above"),
        (upward_imports, "visglm/text/__init__.py", "from .. import VisGLM", "above"),
        (upward_imports, "visglm/text/__init__.py", "from ..vision import VisionEncoder", "must not know"),
        (upward_imports, "visglm/chat/vlm.py", "from ..helpers import x", "no layer"),
        (upward_imports, "visglm/helpers.py", "", "no layer"),
        (undeclared_imports, "visglm/chat/vlm.py", "import torchvision.io", "not listed"),
        (undeclared_imports, "visglm/chat/vlm.py", "def f():\n    import torchvision.io", "not listed"),
        (undeclared_imports, "visglm/adapters/parts/lora.py", "import peft", "optional"),
        (undeclared_imports, "visglm/serve/chat.py", "import peft", "optional"),
        (undeclared_imports, "visglm/cli/serve.py", "import fastapi", "optional"),
        (undeclared_imports, "visglm/checkpoint/sat.py", "try:\n    import sat\nfinally: pass", "optional"),
        (private_uses, "examples/a.py", "from visglm.prompt import _escape", "private"),
        (private_uses, "demos/a.py", "import visglm\nvisglm.VisGLM._load()", "private"),
        (private_uses, "benchmarks/a.py", "from visglm.text.glm import GlmTextModel", "not a public module"),
        (asserts_and_prints, "visglm/pictures/load.py", "assert True", "assert"),
        (asserts_and_prints, "visglm/pictures/load.py", "print(1)", "print"),
    ],
)
def test_rule_finds(rule: Callable[..., Iterator[str]], path: str, text: str, found: str) -> None:
    assert [found in violation for violation in rule([Source(path, text)])] == [True]


@pytest.mark.parametrize(
    "rule, path, text",
    [
        (
            upward_imports,
            "visglm/chat/vlm.py",
            "from ..prompt import render\nfrom .. import errors\nimport visglm.model",
        ),
        (upward_imports, "visglm/text/glm.py", "from . import chatglm\nfrom ..errors import PromptError"),
        (upward_imports, "visglm/__main__.py", "from visglm.cli import main"),
        (undeclared_imports, "visglm/pictures/load.py", "import os.path, PIL.Image\nfrom . import errors"),
        (undeclared_imports, "visglm/adapters/parts/lora.py", "def f():\n    import peft"),
        (undeclared_imports, "visglm/adapters/parts/lora.py", "if TYPE_CHECKING:\n    import peft"),
        (undeclared_imports, "visglm/serve/chat.py", "import fastapi, pydantic"),
        (private_uses, "examples/a.py", "from visglm import VisGLM, errors\nfrom visglm.pictures import SOURCES"),
        (private_uses, "finetune/visglm-tiny/a.py", "from visglm.text.chatglm import ChatGLMModel\nself._x = 1"),
        (asserts_and_prints, "visglm/cli/chat.py", "print(1)"),
    ],
)
def test_rule_allows(rule: Callable[..., Iterator[str]], path: str, text: str) -> None:
    assert list(rule([Source(path, text)])) == []


def test_circle_is_found() -> None:
    chat = Source("visglm/chat/vlm.py", "from ..training import train")
    training = Source("visglm/training/trainer.py", "def f():\n    from ..chat import VisGLM")
    assert list(circles([chat, training])) == ["'chat' and 'training' import each other"]
    assert list(circles([chat])) == []


def test_code_is_read_from_notebooks() -> None:
    cells = [
        {"cell_type": "markdown", "source": ["import nothing"]},
        {"cell_type": "code", "source": ["%matplotlib inline\n", "import visglm\n", "visglm._secret"]},
    ]
    source = Source("examples/a.ipynb", notebook_code(json.dumps({"cells": cells})))
    assert [item.module for item in source.imports] == ["visglm"]
    assert len(list(private_uses([source]))) == 1


def test_public_names_exist() -> None:
    import visglm

    missing = [name for name in visglm.__all__ if not hasattr(visglm, name)]
    assert not missing
    unknown = [
        source.at(item.line, f"visglm.{item.name} is not in visglm.__all__")
        for source in read_outside()
        for item in source.imports
        if item.module == "visglm" and item.name and item.name not in {*visglm.__all__, *LAYER}
    ]
    assert not unknown, "\n".join(unknown)
