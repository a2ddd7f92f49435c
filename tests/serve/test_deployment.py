"""The files to start from name flags that there are."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

from visglm.cli import build_parser
from visglm.serve import Limits

FOLDER = Path(__file__).parents[2] / "examples/serving"


def parse(words: list[str]):
    assert words[:2] == ["visglm", "serve"]
    return build_parser("serve").parse_args(words[1:])


def test_they_start_it_with_a_key():
    unit = (FOLDER / "visglm.service").read_text("utf-8")
    started = parse(["visglm", *shlex.split(re.search(r"ExecStart=\S+/visglm (.*)", unit)[1])])
    assert started.host == "0.0.0.0" and started.api_key_file
    assert int(re.search(r"TimeoutStopSec=(\d+)", unit)[1]) > Limits().drain_seconds
    image = json.loads(re.search(r"ENTRYPOINT (.*)", (FOLDER / "Dockerfile").read_text("utf-8"))[1])
    compose = (FOLDER / "compose.yaml").read_text("utf-8")
    together = parse([*image, *json.loads(re.search(r"command: (.*)", compose)[1])])
    assert together.host == "0.0.0.0" and together.api_key_file and together.port == 8000
    assert int(re.search(r"stop_grace_period: (\d+)s", compose)[1]) > Limits().drain_seconds
