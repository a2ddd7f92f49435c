"""The table of rules: every field of every table of settings against values of every wrong kind."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from visglm.cli import main
from visglm.errors import ConfigError
from visglm.recipe import RULES, FinetuneArguments, read_recipe
from visglm.sampling import OTHERS, Sampling
from visglm.sampling import RULES as SAMPLING_RULES
from visglm.settings import Rule

WRONG = {
    bool: (None, 1, 0.0, "yes", np.bool_(True)),
    int: ("4", 4.5, 4.0, True, [4], float("nan"), -(10**30), 10**30),
    float: ("0.1", True, [0.1], float("nan"), float("inf"), -1.0, 1e30),
    str: (4, True, 0.5, ["a"], b"a"),
    Path: (4, True, 0.5, b"a"),
    list: (4, True, 0.5, {"a": 1}),
}
TABLES = [(FinetuneArguments, RULES), (Sampling, SAMPLING_RULES)]
CASES = [
    pytest.param(settings, name, value, id=f"{settings.__name__}-{name}-{value!r}")
    for settings, rules in TABLES
    for name, rule in rules.items()
    for value in (*WRONG[rule.kind], *(() if rule.optional else (None,)))
]


@pytest.mark.parametrize("settings, rules", TABLES)
def test_every_field_has_a_rule_that_its_default_keeps(settings, rules):
    others = OTHERS if settings is Sampling else {}
    assert {field.name for field in dataclasses.fields(settings)} == {*rules, *others}
    assert settings() == settings(**{field.name: field.default for field in dataclasses.fields(settings)})


@pytest.mark.parametrize("settings, name, value", CASES)
def test_a_wrong_value_is_refused_by_name(settings, name, value):
    with pytest.raises(ConfigError, match=f"^{name} must be .*; got "):
        settings(**{name: value})


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"rank": 4.5}, "rank must be between 1 and 1024, a whole number; got 4.5."),
        ({"report_to": "tensorbord"}, "report_to must be one of tensorboard, wandb, trackio, none, or several"),
        ({"report_to": "tensorboard,sky"}, "got 'tensorboard,sky'"),
        ({"precision": "int8"}, "precision must be one of auto, float32, bf16, fp16; got 'int8'."),
        ({"seed": 2**32}, "seed must be between 0 and 4294967295, a whole number; got 4294967296."),
        ({"learning_rate": 0}, "To freeze a part, see towers."),
        ({"output_dir": 3}, "output_dir must be a path; got 3."),
        ({"eval_data": 3}, "eval_data must be a path or a list of rows, or None; got 3."),
        ({"towers": ("text",)}, "towers must be text, or None"),
    ],
)
def test_the_sentence_says_what_was_expected(settings, message):
    with pytest.raises(ConfigError) as error:
        FinetuneArguments(**settings)
    assert message in str(error.value)


def test_numbers_of_numpy_and_paths_become_plain():
    settings = FinetuneArguments(rank=np.int64(4), alpha=np.float32(0.5), output_dir=Path("a") / "b", epochs=2)
    assert (settings.rank, settings.alpha, settings.output_dir) == (4, 0.5, str(Path("a") / "b"))
    assert [type(value) for value in (settings.rank, settings.alpha, settings.epochs)] == [int, float, float]


def test_a_long_value_is_shortened():
    with pytest.raises(ConfigError) as error:
        Rule(int).take("rank", "9" * 10_000)
    assert str(error.value).startswith("rank must be a whole number; got '999") and len(str(error.value)) < 200


def recipe_of(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text, "utf-8")
    return path


def test_recipes_and_flags_are_held_against_the_same_rules(tmp_path, capsys):
    for number, (line, message) in enumerate(
        [
            ("rank: 4.5", "rank must be between 1 and 1024, a whole number; got 4.5"),
            ("resume: 'yes'", "resume must be True or False; got 'yes'"),
            ("layers: 27", "layers must be text, or left out; got 27"),
            ("data: 3", "data must be text, or left out; got 3"),
        ]
    ):
        path = recipe_of(tmp_path, f"{line}\n")
        assert main(["finetune", *(["train.jsonl"] if number < 3 else []), "--config", str(path)]) == 1
        assert message in capsys.readouterr().err
    for flags, message in (
        (["--rank", "0"], "rank must be between 1 and 1024"),
        (["--alpha", "nan"], "alpha must be between 0.01 and 10000; got nan"),
        (["--report-to", "sky"], "--report-to must be one of"),
        (["--seed", str(2**40)], "seed must be between 0 and"),
    ):
        assert main(["finetune", "train.jsonl", *flags]) == 1
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("written, value", [("1e-4", 1e-4), ("2E-5", 2e-5), ("1.5e-3", 1.5e-3), ("0.01", 0.01)])
def test_a_rate_in_a_recipe_is_a_number_however_it_is_written(tmp_path, written, value):
    recipe = read_recipe(recipe_of(tmp_path, f"learning_rate: {written}\nprompt: 1e-4 is small\n"))
    assert FinetuneArguments(**recipe).learning_rate == value
    assert recipe["prompt"] == "1e-4 is small"


def test_a_recipe_that_is_no_text_is_told(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"method: \xff\xfe")
    with pytest.raises(ConfigError, match="no text in UTF-8"):
        read_recipe(path)
