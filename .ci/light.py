"""Build the wheel of `visglm-light`: light.py FOLDER.

An extra can add packages and take none away, so what works without torch is a distribution of its own, made of the same
files. It holds `visglm.light`, whatever that imports, its command, and visglm-tiny; `visglm` holds all of it too, and
an environment has one of the two.
"""

from __future__ import annotations

import configparser
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
# What of visglm works without torch: modules and packages, and what in those does not.
PARTS = (
    *("__init__.py", "py.typed", "errors.py", "imports.py", "untrusted.py", "settings.py", "sampling.py", "pictures"),
    *(
        "tokenizers",
        "prompt",
        "reply.py",
        "explanation.py",
        "request.py",
        "shapes.py",
        "writing.py",
        "stream.py",
        "light",
    ),
    *("cli/__init__.py", "cli/advice.py", "cli/chat.py", "cli/flags.py", "cli/light.py", "assets/visglm-tiny"),
)
OF_TORCH = ("pictures/preprocess.py", "tokenizers/chatglm.py", "tokenizers/glm.py")
NEEDED = ("numpy", "pillow", "sentencepiece")  # of visglm's own requirements, with the bounds they have there
EXTRAS = {"glm4": ("tokenizers",), "heif": ("pillow-heif",), "shapes": ("llguidance",)}


def settings() -> configparser.ConfigParser:
    """A setup.cfg made of the one there is."""
    config = configparser.ConfigParser(interpolation=None)
    config.read(ROOT / "setup.cfg", "utf-8")
    bounds = {line.split(">=")[0]: line for line in config["options"]["install_requires"].split()}
    for extra in config["options.extras_require"].values():
        bounds |= {line.split(">=")[0]: line for line in extra.split() if ">=" in line}
    made = configparser.ConfigParser(interpolation=None)
    made["metadata"] = dict(config["metadata"]) | {
        "name": "visglm-light",
        "description": "Chat about images in Chinese and English without torch: visglm's models on ONNX Runtime",
        "long_description": "file: README.md",
    }
    needed = [bounds[name] for name in (*NEEDED, "onnxruntime")]
    made["options"] = {
        "packages": "find:", "python_requires": config["options"]["python_requires"], "zip_safe": "False",
        "install_requires": "\n" + "\n".join(needed),
    }  # fmt: skip
    made["options.package_data"] = {"visglm": "\npy.typed\nassets/**/*"}
    made["options.entry_points"] = {"console_scripts": "\nvisglm-light = visglm.cli.light:main"}
    made["options.extras_require"] = {
        name: "\n" + "\n".join(bounds[package] for package in packages) for name, packages in EXTRAS.items()
    }
    return made


def build(folder: Path) -> Path:
    """The wheel's path."""
    with tempfile.TemporaryDirectory() as place:
        source = Path(place)
        for name in PARTS:
            original, target = ROOT / "visglm" / name, source / "visglm" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if original.is_dir():
                shutil.copytree(original, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(original, target)
        for name in OF_TORCH:
            (source / "visglm" / name).unlink()
        for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
            shutil.copy(ROOT / name, source / name)
        with (source / "setup.cfg").open("w", encoding="utf-8") as file:
            settings().write(file)
        folder.mkdir(parents=True, exist_ok=True)
        words = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet"]
        subprocess.run([*words, "--wheel-dir", str(folder), str(source)], check=True)
    [wheel] = folder.glob("visglm_light-*.whl")
    return wheel


if __name__ == "__main__":
    print(build(Path(sys.argv[1])))
