"""Every picture of a folder → one JSON line each, several pictures at a time; bad files are told, not fatal.

python examples/describe_folder.py examples captions.jsonl --question "What is this?"
"""

import argparse
import json
from pathlib import Path

from visglm import VisGLM, VisGLMError

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--question", default="描述这张图片。")
    arguments = parser.parse_args()

    paths = sorted(path for path in arguments.folder.iterdir() if path.suffix.lower() in SUFFIXES)
    vlm = VisGLM.from_pretrained()
    replies = vlm.batch([(path, arguments.question) for path in paths], on_error="return")

    with arguments.output.open("w", encoding="utf-8") as file:
        for path, reply in zip(paths, replies, strict=True):
            key = "error" if isinstance(reply, VisGLMError) else "text"
            file.write(json.dumps({"image": path.name, key: str(reply)}, ensure_ascii=False) + "\n")
    print(f"{len(paths)} pictures → {arguments.output}")


if __name__ == "__main__":
    main()
