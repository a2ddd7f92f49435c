"""`visglm data`: look at training data, and write it as common rows."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import counted, printable
from .flags import add_max_pixels, add_outside, image_limits

if TYPE_CHECKING:
    from ..training import DataReport

MAX_SHOWN = 20  # problems of one kind, unless --all is given
BAR_WIDTH = 40  # characters


def configure(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    check = actions.add_parser("check", help="count rows and answers, list what is broken or would not fit")
    check.add_argument("--model", metavar="PATH", help="that is to learn from it (default: the embedded visglm-tiny)")
    check.add_argument(
        "--max-length", type=int, metavar="INT", help="tokens of prompt and answer (default: the model's)"
    )
    check.add_argument("--all", action="store_true", help=f"list every problem, not the first {MAX_SHOWN} of a kind")
    add_max_pixels(check)
    convert = actions.add_parser("convert", help="write rows of any format as common rows")
    for action in (check, convert):
        action.add_argument("data", metavar="DATA", help="file, folder, or pattern of shards")
        action.add_argument("--prompt", metavar="TEXT", help="what to ask of pictures that come with a caption only")
        add_outside(action)
    convert.add_argument(
        "--allow-urls", action="store_true", help="download pictures named by a URL, from public addresses only"
    )
    convert.add_argument("target", type=Path, metavar="TARGET", help="JSONL file to write")
    parser.epilog = "Exit status: 0 when every row can be used, 3 when some cannot, 1 when none was read."


def run(arguments: argparse.Namespace) -> int:
    return ACTIONS[arguments.action](arguments)


def check(arguments: argparse.Namespace) -> int:
    from .. import checkpoint
    from ..training import check_data

    source = checkpoint.open_source(arguments.model)
    processor = source.processor()
    processor.image_processor.limits = image_limits(arguments)
    report = check_data(
        arguments.data,
        processor,
        max_length=arguments.max_length or source.config.text_config.max_position_embeddings,
        question=arguments.prompt,
        allow_outside=arguments.allow_outside,
    )
    show("\n".join(describe(report, None if arguments.all else MAX_SHOWN)))
    return 0 if report.is_clean else 3


def describe(report: DataReport, max_shown: int | None) -> list[str]:
    """The report as people read it, line by line."""
    formats = ", ".join(f"{count} {name}" for name, count in report.formats.most_common())
    lines = [
        f"{counted(report.num_rows, 'row')} can be used ({formats or 'none'}): "
        f"{counted(report.num_answers, 'answer')}, {counted(report.num_images, 'picture')}."
    ]
    by_kind: dict[str, list[str]] = {}
    for kind, where, what in report.problems:
        by_kind.setdefault(kind, []).append(f"  {where}: {what}")
    counts = {kind: len(found) for kind, found in by_kind.items()} | {"duplicate": len(report.duplicates)}
    by_kind["duplicate"] = [
        f"  {report.where(row)}: the same as {report.where(first)}" for row, first in report.duplicates[:max_shown]
    ]
    for kind, count in counts.items():
        if count:
            lines += [f"{kind}: {count}", *by_kind[kind][:max_shown]]
            lines += [f"  … and {count - max_shown} more"] if max_shown and count > max_shown else []
    if report.unused:
        lines.append(str(report.unused))
    are_cut = counted(report.num_cut, "answer is", "answers are")
    lines.append(f"{are_cut} longer than {report.max_length} tokens and would be cut.")
    if bins := report.histogram():
        lines.append("tokens per example, image slots included:")
        highest = max(count for _, _, count in bins)
        lines += [
            f"  {low:5}–{high:<5} {count:7} {'█' * round(BAR_WIDTH * count / highest)}" for low, high, count in bins
        ]
    return lines


def convert(arguments: argparse.Namespace) -> int:
    from ..training import convert_data

    num_written, problems = convert_data(
        arguments.data,
        arguments.target,
        question=arguments.prompt,
        allow_outside=arguments.allow_outside,
        allow_urls=arguments.allow_urls,
    )
    show(f"{counted(num_written, 'row')} written to {arguments.target}.")
    if problems:
        show("\n".join([f"{counted(len(problems), 'row')} left out:", *(f"  {problem}" for problem in problems)]))
    return 3 if problems else 0


def show(text: str) -> None:
    """Print lines, of which foreign text is a part."""
    print("\n".join(map(printable, text.split("\n"))))


ACTIONS: dict[str, Callable[[argparse.Namespace], int]] = {"check": check, "convert": convert}
