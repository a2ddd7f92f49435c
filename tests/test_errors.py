"""The error family, and the way to optional packages."""

from __future__ import annotations

import json
import pickle

import pytest

from visglm import errors
from visglm.errors import CheckpointError, MissingDependencyError, VisGLMError, require


@pytest.mark.parametrize(
    ("name", "builtin"),
    [
        ("ImageError", ValueError),
        ("PromptError", ValueError),
        ("ContextLengthError", errors.PromptError),
        ("ConfigError", ValueError),
        ("CheckpointError", ValueError),
        ("MissingDependencyError", ImportError),
    ],
)
def test_every_error_is_of_the_family_and_of_the_builtin_kind(name, builtin):
    assert issubclass(getattr(errors, name), VisGLMError)
    assert issubclass(getattr(errors, name), builtin)


def test_checkpoint_error_lists_every_problem_and_the_next_step():
    problems = ["missing: a.weight", "extra: b.weight", "shape of c.weight is [2], expected [3]"]
    text = str(CheckpointError("some/folder", iter(problems), "Convert it again."))
    assert text.splitlines() == [
        "some/folder cannot be used, 3 problems:",
        *(f"  - {problem}" for problem in problems),
        "Convert it again.",
    ]
    assert "1 problem:" in str(CheckpointError("x", ["y"], "z"))


def test_what_a_terminal_would_obey_is_escaped():
    error = CheckpointError("folder\x1b[2J", ["missing: \x07\nname"], "Next.")
    assert str(error).splitlines()[:2] == ["folder\\x1b[2J cannot be used, 1 problem:", "  - missing: \\x07\\nname"]
    assert error.problems == pickle.loads(pickle.dumps(error)).problems == ["missing: \\x07\\nname"]


def test_checkpoint_error_survives_a_process_boundary():
    error = CheckpointError("some/folder", ["missing: a.weight"], "Convert it again.")
    copy = pickle.loads(pickle.dumps(error))
    assert str(copy) == str(error)
    assert copy.problems == ["missing: a.weight"]


def test_one_of_a_thing_is_not_called_many():
    assert [errors.counted(number, "file") for number in (0, 1, 2, 1000)] == [
        "0 files",
        "1 file",
        "2 files",
        "1,000 files",
    ]
    assert [errors.counted(number, "file is", "files are") for number in (1, 3)] == ["1 file is", "3 files are"]


def test_require_returns_one_module_or_several():
    assert require("serve", "json") is json
    assert require("serve", "json", "pickle") == (json, pickle)


def test_require_names_the_package_and_the_pip_line():
    with pytest.raises(MissingDependencyError, match="no_such_package") as caught:
        require("serve", "json", "no_such_package.part")
    assert 'pip install "visglm[serve]"' in str(caught.value)
