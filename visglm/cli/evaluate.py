"""`visglm evaluate`: how well a model answers the questions of a data set."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import writing
from .flags import add_adapter, add_model, add_outside, load_model, show_status

FAILED = 3  # exit status when some questions could not be answered, as of `visglm describe`


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", metavar="DATA", help="rows as for fine-tuning; see `visglm data check`")
    parser.add_argument(
        "--output", metavar="FOLDER", help="write metrics.json, predictions.jsonl and worst.html into this folder"
    )
    parser.add_argument("--prompt", metavar="TEXT", help="what to ask of pictures that come with a caption only")
    parser.add_argument(
        "--batch-size",
        type=int,
        default=8,
        metavar="INT",
        help="questions that share a pass through the model (default: 8)",
    )
    parser.add_argument(
        "--max-new-tokens",
        type=int,
        metavar="INT",
        help="longest answer, in tokens (default: what the context leaves, at most 512)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="INT", help="of the resamples behind the intervals (default: 0)"
    )
    add_outside(parser)
    add_model(parser)
    add_adapter(parser)
    parser.epilog = (
        "Prints a table: each metric in percent, over all answers, by language and by type, with half the width of its "
        f"95 % bootstrap interval. Exit status: 0 when every question was answered, {FAILED} when some were not."
    )


def run(arguments: argparse.Namespace) -> int:
    if arguments.output:  # rather now than when all is answered
        with writing(arguments.output):
            Path(arguments.output).mkdir(parents=True, exist_ok=True)
    evaluation = load_model(arguments).evaluate(
        arguments.data,
        question=arguments.prompt,
        batch_size=arguments.batch_size,
        max_new_tokens=arguments.max_new_tokens,
        seed=arguments.seed,
        allow_outside=arguments.allow_outside,
    )
    print(evaluation)
    if arguments.output:
        evaluation.save(arguments.output)
        show_status(f"Answers and pictures: {arguments.output}/worst.html")
    failed = [prediction for prediction in evaluation.predictions if "error" in prediction]
    for prediction in failed:
        show_status(f"visglm: {prediction['where']}: {prediction['error']}")
    return FAILED if failed else 0
