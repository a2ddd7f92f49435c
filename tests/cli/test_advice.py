"""What an error advises can be done where it is read: on the command line there are flags."""

from __future__ import annotations

import pytest

from visglm.cli import main
from visglm.cli.advice import in_flags

FLAGS = {
    name: "--" + name.replace("_", "-")
    for name in ("allow_urls", "top_p", "base", "tokenizer", "resume", "replay_data")
}


@pytest.mark.parametrize(
    "said, told",
    [
        ("Pass allow_urls=True, or give a path.", "Pass --allow-urls, or give a path."),
        ("Go on by resume=True (--resume).", "Go on by --resume."),
        ("Name the folder with tokenizer=….", "Name the folder with --tokenizer …."),
        ("base='my/model' is for adapters", "--base my/model is for adapters"),
        ("top_p must be between 0 and 1; got 7.", "--top-p must be between 0 and 1; got 7."),
        ("replay_data needs replay", "--replay-data needs replay"),
        ("its base is an adapter; base must be a path", "its base is an adapter; --base must be a path"),
        ("VisGLM.from_pretrained(folder, base=…)", "VisGLM.from_pretrained(folder, base=…)"),
        ("there is no 'top_p=3' in top_p/top_p.png", "there is no 'top_p=3' in top_p/top_p.png"),
        ("max_pixels=3 is no flag here", "max_pixels=3 is no flag here"),
    ],
)
def test_arguments_become_flags(said, told):
    assert in_flags(said, FLAGS) == told


@pytest.mark.parametrize(
    "words, advice",
    [
        (["chat", "http://example.org/cat.png", "-q", "What?"], "--allow-urls"),
        (["chat", "-q", "What?", "--top-p", "7"], "--top-p must be"),
        (["finetune", "rows.jsonl", "--replay-data", "more.jsonl"], "--replay-data needs"),
        (["finetune", "rows.jsonl", "--batch-size", "0"], "--batch-size must be"),
        (
            ["estimate", "visualglm-6b", "--quantize-vision"],
            "--quantize-vision needs a scheme beside it, such as --quantize int4",
        ),
        (["chat", "-q", "What?", "--base", "elsewhere"], "--base elsewhere is for adapters"),
    ],
)
def test_a_command_that_failed_names_the_flag_to_change(words, advice, capsys):
    assert main(words) == 1
    assert advice in capsys.readouterr().err
