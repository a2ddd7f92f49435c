"""What a run leaves for people: report.html, report.json, and a model card."""

from __future__ import annotations

import json
import os
import platform
import re
import secrets
import shlex
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import counted, writing
from ..reply import thumbnail_url
from .metrics import METRICS, with_interval
from .page import Html, escape, folded, heading, line_chart, page, paragraph, pictures, preformatted, table

CARD_START = "---\nlibrary_name: visglm\n"
MEASURED = "peak_of_the_process"  # among the memory; the rest of it is what training was expected to take
VERSIONS = ("visglm", "torch", "transformers", "peft", "accelerate", "timm")


@dataclass
class Sample:
    """A question, and the answers before and after."""

    where: str
    question: str
    expected: str
    before: str
    after: str | None
    images: list[Image.Image] = field(default_factory=list, repr=False)
    paths: list[str] = field(default_factory=list, repr=False)  # of those that are files


@dataclass
class FinetuneReport:
    """A finished run. In a notebook it shows itself.

    Args:
        output_dir: where everything lies.
        command: that repeats the run.
        settings: all of them, defaults included.
        data: counts of rows, answers, tokens.
        memory: the estimate in bytes, and the measured peak.
        history: points of the curves, `{"step", "loss", …}`.
        best: step and held-out loss of what was kept.
        metrics: of the held-out answers, before and after: by metric `{"value", "low", "high"}` in percent, with the
            95 % bootstrap interval, or None where it says nothing about these rows.
        samples: held-out questions with their answers.
        taught: training questions with their answers.
        verdict: what these say, in sentences.
    """

    output_dir: Path
    command: str
    settings: dict[str, Any]
    data: dict[str, Any]
    memory: dict[str, int]
    history: list[dict[str, Any]]
    best: dict[str, Any]
    speed: dict[str, float]
    metrics: dict[str, dict[str, Any]]
    samples: list[Sample]
    taught: list[Sample]
    verdict: list[str]
    seconds: float
    versions: dict[str, str] = field(default_factory=lambda: read_versions())

    @property
    def html(self) -> Html:
        """The report as a page: curves, scores, answers before and after."""
        losses = [(row["step"], row["loss"]) for row in self.history if "loss" in row]
        held_out = [(row["step"], row["eval_loss"]) for row in self.history if "eval_loss" in row]
        rates = [(row["step"], row["learning_rate"]) for row in self.history if "learning_rate" in row]
        scores = self.scores()
        return page(
            f"visglm finetune: {self.settings['method']}",
            paragraph(self.summary()),
            heading("Curves"),
            line_chart({"training": losses, "held-out": held_out}, "step", "loss"),
            line_chart({"learning rate": rates}, "step", "learning rate"),
            heading("Held-out answers"),
            table(("percent, with 95 % interval", *self.metrics), scores)
            if scores
            else paragraph("No answer was kept apart to compare."),
            answers_table(self.samples),
            heading("Answers about training rows"),
            answers_table(self.taught),
            heading("Data, memory, speed"),
            table(("", ""), [(name.replace("_", " "), value) for name, value in self.data.items()]),
            table(
                ("", "MiB", ""),
                [
                    (
                        name.replace("_", " "),
                        round(size / 2**20, 1),
                        "measured, with Python, its libraries and loading" if name == MEASURED else "estimated",
                    )
                    for name, size in self.memory.items()
                ],
            ),
            table(("", "per second"), [(name.replace("_per_second", ""), value) for name, value in self.speed.items()]),
            heading("To repeat it"),
            preformatted(self.command),
            preformatted("\n".join(f"{name} {number}" for name, number in self.versions.items())),
            folded("All settings", preformatted(json.dumps(self.settings, indent=2, ensure_ascii=False))),
        )

    def scores(self) -> list[tuple[str, ...]]:
        """The metrics as a table: its title, then the value and interval before and after."""
        known = [name for name in METRICS if any(values[name] is not None for values in self.metrics.values())]
        return [
            (METRICS[name].title, *(with_interval(values[name]) for values in self.metrics.values())) for name in known
        ]

    def summary(self) -> str:
        """What came of the run, and how to load it, in a few sentences."""
        return f"{self.facts()} {' '.join(self.verdict)} Load it with VisGLM.from_pretrained({str(self.output_dir)!r})."

    def next_commands(self, data: Any) -> list[str]:
        """Command lines to go on with: ask it, measure it, see it.

        Args:
            data: the path that it learnt from.
        """
        folder = str(self.output_dir)
        sample = next((sample for sample in (*self.taught, *self.samples) if sample.paths), None)
        asked = [*sample.paths, "-q", sample.question] if sample is not None else []
        measured = [str(self.settings["eval_data"] or data)]
        measured += ["--prompt", self.settings["prompt"]] if self.settings["prompt"] is not None else []
        measured += ["--allow-outside"] if self.settings["allow_outside"] else []
        return [
            shlex.join(["visglm", *words, "--model", folder])
            for words in (["chat", *asked], ["evaluate", *measured], ["app"])
        ]

    def facts(self) -> str:
        """Answers, steps and seconds, in a sentence."""
        kept = (
            f"; the best held-out loss, {self.best['loss']:.3f}, was at step {self.best['step']}" if self.best else ""
        )
        steps = max((row["step"] for row in self.history), default=0)
        known = self.data["answers"]  # "a stream's", where nobody has counted
        answers = counted(known, "answer") if isinstance(known, int) else f"{known} answers"
        return f"{answers}, {counted(steps, 'step')}, {counted(round(self.seconds), 'second')}{kept}."

    def _repr_html_(self) -> str:
        return str(self.html)

    def as_dict(self) -> dict[str, Any]:
        """Everything but the pictures, for JSON."""
        values = {name: value for name, value in vars(self).items() if name not in ("samples", "taught", "output_dir")}
        asked = {
            kind: [
                {name: text for name, text in vars(sample).items() if name not in ("images", "paths")}
                for sample in samples
            ]
            for kind, samples in (("samples", self.samples), ("taught", self.taught))
        }
        return {"output_dir": str(self.output_dir), **values, **asked}

    def write(self) -> None:
        """report.html, report.json and README.md in the output folder.

        Raises:
            ConfigError: they cannot be written.
        """
        write_text(self.output_dir / "report.html", self.html)
        text = json.dumps(self.as_dict(), indent=1, ensure_ascii=False, default=str)
        write_text(self.output_dir / "report.json", text + "\n")
        card = self.output_dir / "README.md"
        if not card.exists() or is_card(card):  # else it is the user's
            write_text(card, self.card())

    def card(self) -> str:
        """A model card, as model hubs show it."""
        # It is read elsewhere, where this machine's folders say nothing and are nobody's business.
        command = shlex.join(Path(word).name if os.path.isabs(word) else word for word in shlex.split(self.command))
        fence = "`" * max(3, *(1 + len(run) for run in re.findall("`+", command)), 0)
        name = re.sub(r"[^\w.-]", "_", self.output_dir.name)
        lines = [
            *CARD_START.splitlines(),
            "pipeline_tag: image-text-to-text",
            f"tags: [visglm, {self.settings['method']}]",
            "---",
            "",
            f"# {name}",
            "",
            f"Fine-tuned with visglm ({self.settings['method']}). {self.facts()}",
            "",
            "```python",
            "from visglm import VisGLM",
            "",
            f'vlm = VisGLM.from_pretrained("{name}")',
            'print(vlm.chat("picture.jpg", "What is this?"))',
            "```",
        ]
        if self.metrics:
            lines += ["", f"| held-out, percent | {' | '.join(self.metrics)} |", "|---|" + "---|" * len(self.metrics)]
            lines += [f"| {' | '.join(row)} |" for row in self.scores()]
        lines += ["", fence, command, fence, ""]
        return "\n".join(lines)


def answers_table(samples: list[Sample]) -> Html:
    """Questions with their pictures, the answer expected, and those before and after."""
    return table(
        ("picture", "question", "expected", "before", "after"),
        [
            (
                Html(
                    pictures(thumbnail_url(image, 128) for image in sample.images)
                    + escape("\n" + Path(sample.where).name)
                ),
                sample.question,
                sample.expected,
                sample.before,
                sample.after,
            )
            for sample in samples
        ],
    )


def is_card(path: Path) -> bool:
    """Whether an earlier run wrote this file."""
    if not path.is_file():  # a folder or a pipe
        return False
    with path.open("rb") as file:
        return file.read(len(CARD_START)) == CARD_START.encode()


def write_text(path: Path, text: str) -> None:
    """Replace a file in one step. What it was a link to is not written to."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    with writing(path, "What was learnt is whole."):
        try:
            with part.open("x", encoding="utf-8") as file:
                file.write(text)
            os.replace(part, path)
        except OSError:
            part.unlink(missing_ok=True)
            raise


def read_versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: version(name) for name in VERSIONS}}
