"""Builds the documentation site, in both languages, into build/site: `make docs`.

Pages are docs/en and docs/zh, documents of the repository that stand for themselves (`INCLUDED`), and a reference made
of the package's public names. Whatever a page links to comes along. Any warning ends the build with status 1.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import inspect
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

import visglm

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build"
STAGE, SITE = BUILD / "docs", BUILD / "site"
MADE_OF = BUILD / "site.sha256"  # of all that it was made of; it is there where the site is whole
SOURCES = ("benchmarks", "demos", "docs", "examples", "finetune", "visglm")  # folders that pages are of, or lead to
GENERATORS = ("mkdocstrings-python", "pyyaml", "zensical")

# Document of the repository, in English → its page in both languages, and how each calls it.
INCLUDED = {
    "finetune/README.md": ("finetune.md", {"en": "Fine-tuning guide", "zh": "微调指南"}),
    "finetune/visglm-tiny/MODEL_CARD.md": ("model-card.md", {"en": "Model card", "zh": "模型卡"}),
    "benchmarks/RESULTS.md": ("results.md", {"en": "Results", "zh": "测量结果"}),
    "SECURITY.md": ("security.md", {"en": "Security", "zh": "安全"}),
    "CONTRIBUTING.md": ("contributing.md", {"en": "Contributing", "zh": "参与开发"}),
    "CHANGELOG.md": ("changes.md", {"en": "Changes", "zh": "更改"}),
}
# What the pages look like: file of the repository → file of the site.
ASSETS = {"docs/site.css": "site.css", "docs/site.js": "site.js", "demos/static/icon-180.png": "icon.png"}
GUIDES = (
    *("index.md", "asking.md", "page.md", "library.md", "serving.md", "deploying.md", "many.md"),
    *("teaching.md", "checkpoints.md", "families.md", "quantization.md", "light.md"),
    *("huggingface.md", "commands.md", "errors.md", "tiny.md", "measurements.md"),
)
LANGUAGES: dict[str, dict[str, str]] = {
    "en": {
        "name": "English", "reference": "Reference", "project": "In full", "overview": "Overview",
        "light": "Switch to light", "dark": "Switch to dark", "purpose": "What for",
        "huggingface": "Hugging Face layer",
        "about": "Everything that may be imported and stays as it is. `from visglm import …` has the names of the "
        "first table; the others come from the module they stand under.",
    },
    "zh": {
        "name": "中文", "reference": "接口", "project": "完整文档（英文）", "overview": "总览",
        "light": "切换到浅色", "dark": "切换到深色", "purpose": "用途",
        "huggingface": "Hugging Face 层",
        "about": "可以导入并会保持不变的名字。第一张表里的都能 `from visglm import …`；"
        "其余从所在的模块导入。说明取自代码里的 docstring，只有英文。",
    },
}  # fmt: skip
# Modules whose classes and functions are public beside the names of `visglm` itself.
MODULES = ("errors", "library", "recipe", "sampling", "training")

# Public constants → what they are for.
CONSTANTS = {"visglm.PRESETS": "Configurations by name, for `VisGLMConfig(**PRESETS[name])`."}
LINK = re.compile(r'(\]\(|src="|href=")([^)"\s]+)')
FENCE = re.compile(r"(^ *```.*?^ *```$)", re.MULTILINE | re.DOTALL)
FORWARD = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>visglm</title>
<script>location.replace((navigator.language.startsWith("zh") ? "zh" : "en") + "/index.html")</script>
<p><a href="en/index.html">English</a> · <a href="zh/index.html">中文</a></p>
</html>
"""


class DocumentationError(Exception):
    """A page cannot be made; the message names it."""


def page_of(path: Path, language: str) -> str | None:
    """The page on which a file of the repository is read, relative to its language's folder."""
    name = path.relative_to(ROOT).as_posix()
    if name in INCLUDED:
        return INCLUDED[name][0]
    own = f"docs/{language}/"
    return name.removeprefix(own) if name.startswith(own) and name.endswith(".md") else None


def follow(target: str, source: Path, language: str) -> str:
    """A link of `source` as it is on the site; what it leads to comes along unless it is a page.

    Raises:
        DocumentationError: it leads nowhere.
    """
    name, mark, anchor = target.partition("#")
    if not name or re.match(r"[a-z]+:", target) or target.startswith("api/"):
        return target
    path = Path(os.path.normpath(source.parent / name))
    if not path.is_file() or not path.is_relative_to(ROOT):
        raise DocumentationError(f"{source.relative_to(ROOT)}: the link {target!r} leads to no file of the repository.")
    if page := page_of(path, language):
        return page + mark + anchor
    # With an ending, so that a browser shows it in place of asking where to save it.
    copy = Path("files") / path.relative_to(ROOT)
    copy = copy if copy.suffix else copy.with_name(copy.name + ".txt")
    (STAGE / language / copy).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, STAGE / language / copy)
    return copy.as_posix() + mark + anchor


def stage_page(source: Path, name: str, language: str) -> None:
    def link(match: re.Match[str]) -> str:
        return match[1] + follow(match[2], source, language)

    parts = FENCE.split(source.read_text("utf-8"))
    text = "".join(part if FENCE.fullmatch(part) else LINK.sub(link, part) for part in parts)
    (STAGE / language / name).write_text(text, "utf-8")


def is_transformers(value: Any) -> bool:
    """Whether it is a class of the Hugging Face layer: one that transformers' own classes are above."""
    return inspect.isclass(value) and any(base.__module__.startswith("transformers.") for base in value.__mro__)


def is_secondary(name: str) -> bool:
    return name != "visglm.VisGLM"


def public_names() -> dict[str, list[str]]:
    """Page of the reference → the public names on it, whole: those of the package, and of `MODULES`."""
    own = {f"visglm.{name}": getattr(visglm, name) for name in visglm.__all__}
    pages = {
        "visglm": sorted((name for name, value in own.items() if not is_transformers(value)), key=is_secondary),
        "huggingface": [name for name, value in own.items() if is_transformers(value)],
    }
    for module in MODULES:
        found = importlib.import_module(f"visglm.{module}")
        named = getattr(found, "__all__", None) or [
            name for name, value in vars(found).items() if inspect.isclass(value) and value.__module__ == found.__name__
        ]
        kinds = {name: getattr(found, name) for name in named if name not in visglm.__all__}
        pages[f"visglm.{module}"] = [
            f"visglm.{module}.{name}"
            for name, value in kinds.items()
            if inspect.isclass(value) or inspect.isfunction(value)
        ]
    return pages


def place(path: str) -> str:
    """Where the reference finds a name: a function that a module of the same name hides lies in that module."""
    return f"{path}.{path.rpartition('.')[2]}" if path in sys.modules else path


def purpose(path: str) -> str:
    """The first sentence of a name's docstring; for a constant, which has none in Python, that of `CONSTANTS`.

    Raises:
        DocumentationError: there is none, or it is a class, and one of its members has none.
    """
    module, _, name = path.rpartition(".")
    value = getattr(importlib.import_module(module), name)
    text = value.__doc__ if inspect.isclass(value) or inspect.isfunction(value) else CONSTANTS.get(path)
    if not text:
        raise DocumentationError(f"{path} is public and has no docstring.")
    first = text.split("\n\n")[0].replace("\n", " ")
    if inspect.isclass(value):
        check_members(path, value)
    return re.match(r".*?[.:](?= |$)|.*", first)[0].rstrip(".:").replace("|", r"\|") + "."  # type: ignore[index]


def check_members(path: str, value: type) -> None:
    """Raise `DocumentationError` for a method or property without a docstring, unless it has its parents'."""
    for name, member in vars(value).items():
        member = getattr(member, "__func__", member)
        is_public = name[0] != "_" and (inspect.isfunction(member) or isinstance(member, property))
        if is_public and not member.__doc__ and not any(hasattr(base, name) for base in value.__bases__):
            raise DocumentationError(f"{path}.{name} is public and has no docstring.")


def stage_reference(language: str) -> list[Any]:
    """A page for each class that people hold, one for the rest of each module; returns their navigation."""
    words, folder = LANGUAGES[language], STAGE / language / "api"
    folder.mkdir(parents=True)
    overview = [f"# {words['reference']}\n\n{words['about']}\n"]
    pages = []
    for page, names in public_names().items():
        title = words.get(page, page)
        overview.append(f"\n## {title}\n\n| | {words['purpose']} |\n|---|---|")
        overview += [f"| [`{name.rpartition('.')[2]}`]({page}.md#{place(name)}) | {purpose(name)} |" for name in names]
        body = [f"# {title}\n", *(f"::: {place(name)}\n" for name in names)]
        (folder / f"{page}.md").write_text("\n".join(body), "utf-8")
        pages.append({title: f"api/{page}.md"})
    (folder / "index.md").write_text("\n".join(overview) + "\n", "utf-8")
    return [{words["overview"]: "api/index.md"}, *pages]


def settings(language: str, navigation: list[Any]) -> dict[str, Any]:
    words = LANGUAGES[language]
    shared = yaml.safe_load((ROOT / "docs/site.yml").read_text("utf-8"))
    shared["theme"] |= {
        "language": language,
        "palette": [
            {"media": "(prefers-color-scheme: light)", "scheme": "default",
             "toggle": {"icon": "lucide/moon", "name": words["dark"]}},
            {"media": "(prefers-color-scheme: dark)", "scheme": "slate",
             "toggle": {"icon": "lucide/sun", "name": words["light"]}},
        ],
    }  # fmt: skip
    [reference] = [plugin["mkdocstrings"] for plugin in shared["plugins"] if "mkdocstrings" in plugin]
    reference["locale"] = language
    return shared | {
        "docs_dir": f"docs/{language}",
        "site_dir": f"site/{language}",
        "nav": navigation,
        "extra": shared.get("extra", {})
        | {
            "alternate": [
                {"name": LANGUAGES[key]["name"], "link": f"../{key}/index.html", "lang": key} for key in LANGUAGES
            ]
        },
    }


def sources() -> Iterator[Path]:
    yield from (path for path in ROOT.iterdir() if path.suffix in (".md", ".toml", ".cfg", ".txt", ""))
    for name in SOURCES:
        yield from (path for path in (ROOT / name).rglob("*") if "__pycache__" not in path.parts)


def digest() -> str:
    """Of everything that a page can be made of."""
    found = hashlib.sha256(repr([importlib.metadata.version(name) for name in GENERATORS]).encode())
    for path in sorted(path for path in sources() if path.is_file()):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        found.update(f"{path.relative_to(ROOT).as_posix()}\0{content}\n".encode("utf-8", "backslashreplace"))
    return found.hexdigest()


def stage(language: str) -> Path:
    """Write what one language is made of; its settings."""
    (STAGE / language).mkdir(parents=True)
    for name in GUIDES:
        stage_page(ROOT / "docs" / language / name, name, language)
    for name, (page, _) in INCLUDED.items():
        stage_page(ROOT / name, page, language)
    reference = stage_reference(language)
    for name, asset in ASSETS.items():
        shutil.copyfile(ROOT / name, STAGE / language / asset)
    words = LANGUAGES[language]
    project = [{titles[language]: page} for page, titles in INCLUDED.values()]
    navigation = [*GUIDES, {words["reference"]: reference}, {words["project"]: project}]
    file = BUILD / f"docs.{language}.yml"
    file.write_text(yaml.safe_dump(settings(language, navigation), allow_unicode=True, sort_keys=False), "utf-8")
    return file


def build(language: str, file: Path) -> None:
    """Build one language.

    Raises:
        DocumentationError: there was a warning.
    """
    words_of_command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean", "-f", str(file)]
    done = subprocess.run(words_of_command, cwd=BUILD, capture_output=True, text=True, encoding="utf-8")
    said = done.stdout + done.stderr
    # What is wrong with docstrings is said by griffe, of which --strict does not know.
    if done.returncode or "griffe:" in said or "No issues found" not in said:
        raise DocumentationError(f"{language}: the site was not built without warnings.\n{said}")


def main() -> int:
    made_of = digest()
    if not MADE_OF.is_file() or MADE_OF.read_text("utf-8") != made_of:
        MADE_OF.unlink(missing_ok=True)
        for folder in (STAGE, SITE):
            shutil.rmtree(folder, ignore_errors=True)
        try:
            for language in LANGUAGES:
                build(language, stage(language))
        except DocumentationError as error:
            print(f"docs: {error}", file=sys.stderr)
            return 1
        (SITE / "index.html").write_text(FORWARD, "utf-8")
        MADE_OF.write_text(made_of, "utf-8")
    pages = len(list(SITE.rglob("*.html")))
    print(f"{pages} pages in {SITE.relative_to(ROOT)}. To read them: python -m http.server -d build/site")
    return 0


if __name__ == "__main__":
    sys.exit(main())
