"""`visglm describe`: the same question about many pictures, one bad file losing nothing."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from ..errors import ConfigError, VisGLMError
from ..sampling import Sampling
from .advice import in_flags
from .flags import add_language, add_model, add_settings, load_model, read_settings, settings_of, show_status

if TYPE_CHECKING:
    from ..chat import VisGLM
    from ..reply import Reply

# Asked without --prompt, by --language; "auto" asks in English.
PROMPTS = {"en": "Describe the picture.", "zh": "描述这张图片。"}
FAILED = 3  # exit status when some pictures could not be described


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="picture files")
    parser.add_argument("--prompt", metavar="TEXT", help=f'what to ask of each (default: "{PROMPTS["en"]}")')
    parser.add_argument(
        "--json", action="store_true", help='print one JSON object a line: {"image", "text"} or {"image", "error"}'
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        default=8,
        metavar="INT",
        help="pictures that share a pass through the model (default: 8)",
    )
    parser.epilog = (
        f"Exit status: 0 when every picture was described, {FAILED} when some failed, 1 when nothing was done."
    )
    add_language(parser)
    add_settings(parser, Sampling, "answers")
    add_model(parser)


def run(arguments: argparse.Namespace) -> int:
    sampling = read_settings(arguments, Sampling)
    if arguments.batch_size < 1:
        raise ConfigError(f"--batch-size must be at least 1; got {arguments.batch_size}.")
    prompt = PROMPTS["zh" if arguments.language == "zh" else "en"] if arguments.prompt is None else arguments.prompt
    if not prompt.strip():
        raise ConfigError(f"--prompt must not be empty; got {prompt!r}. Leave it out for a description.")
    vlm = load_model(arguments)
    settings = {"batch_size": arguments.batch_size, "language": arguments.language, **settings_of(sampling)}
    num_failed = 0
    for path, reply in describe(vlm, arguments.images, prompt, settings):
        failed = isinstance(reply, VisGLMError)
        num_failed += failed
        if arguments.json:
            show(json.dumps({"image": path, "error" if failed else "text": str(reply)}, ensure_ascii=False), sys.stdout)
        elif failed:
            show(f"visglm: {in_flags(str(reply), arguments.flags)}", sys.stderr)
        else:
            show(f"{path}: {reply}" if len(arguments.images) > 1 else str(reply), sys.stdout)
    if num_failed:
        show_status(f"visglm: {num_failed} of {len(arguments.images)} pictures could not be described.")
    return FAILED if num_failed else 0


def describe(
    vlm: VisGLM, paths: Sequence[str], prompt: str, settings: dict[str, Any]
) -> Iterator[tuple[str, Reply | VisGLMError]]:
    """Each path with its reply or what was wrong with it, batch by batch: pictures are not kept beyond theirs."""
    from tqdm import tqdm

    size = settings["batch_size"]
    with tqdm(total=len(paths), unit="picture", file=sys.stderr) as bar:
        for start in range(0, len(paths), size):
            batch = paths[start : start + size]
            replies = vlm.batch([(path, prompt) for path in batch], on_error="return", progress=False, **settings)
            bar.update(len(batch))
            yield from zip(batch, replies, strict=True)


def show(line: str, file: TextIO) -> None:
    """Print without tearing the progress bar."""
    from tqdm import tqdm

    tqdm.write(line, file=file)
    file.flush()
