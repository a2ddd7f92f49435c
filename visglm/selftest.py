"""Does a model still compute what it did? One picture, one question, and what came of them when it was released.

Weights that did not arrive whole, or under the wrong names, load and speak fluently; their answers are wrong.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .errors import CheckpointError

if TYPE_CHECKING:  # the command line shows its help without them
    from .chat import VisGLM

ASSETS = Path(__file__).parent / "assets"
MODEL, PICTURE, EXPECTED = (
    ASSETS / name for name in ("visglm-tiny", "self_test/picture.png", "self_test/expected.json")
)
QUESTION = "What is this?"
MAX_NEW_TOKENS = 24  # wrong weights may never come to an end
NUM_LOGITS = 8  # the highest ones of the first token of the answer
TOLERANCE = 0.05  # of logits; processors differ by about 0.001 in float32, wrong weights by several


class Finding(NamedTuple):
    """What was looked at, what was found, and whether it will do."""

    subject: str
    found: str
    good: bool = True


def observe(vlm: VisGLM) -> dict[str, Any]:
    """What the model makes of the picture: its answer, and its highest logits by token id."""
    import torch

    content = [{"type": "image", "image": str(PICTURE)}, {"type": "text", "text": QUESTION}]
    inputs = vlm.processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    with torch.inference_mode():
        logits = vlm.model(**inputs.to(vlm.device), logits_to_keep=1).logits[0, -1].float()
    values, ids = logits.topk(NUM_LOGITS)
    return {
        "question": QUESTION,
        "answer": vlm.chat(PICTURE, QUESTION, max_new_tokens=MAX_NEW_TOKENS).text,
        "logits": {str(index): round(value, 4) for index, value in zip(ids.tolist(), values.tolist(), strict=True)},
    }


def hash_weights(folder: Path) -> str:
    """SHA-256 of the weight files in `folder`, in the order of their names."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def record() -> dict[str, Any]:
    """What `self_test` will expect of the embedded model from now on; made when new weights are shipped."""
    from .chat import VisGLM

    expected = {"weights_sha256": hash_weights(MODEL), **observe(VisGLM.from_pretrained(dtype="float32"))}
    EXPECTED.write_text(json.dumps(expected, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return expected


def self_test(vlm: VisGLM, expected: Path = EXPECTED) -> list[Finding]:
    """Compare the embedded model, loaded in float32, with what was recorded.

    Raises:
        CheckpointError: nothing was recorded.
    """
    if not expected.is_file():
        raise CheckpointError(expected, ["the file is missing"], "Install visglm again; its folder is not whole.")
    wanted = json.loads(expected.read_text(encoding="utf-8"))
    found = observe(vlm)
    distance = max(abs(value - found["logits"].get(index, 0.0)) for index, value in wanted["logits"].items())
    same_file = hash_weights(MODEL) == wanted["weights_sha256"]
    same_answer = found["answer"] == wanted["answer"]
    return [
        Finding("weights", "the file that was released" if same_file else "not the file that was released", same_file),
        Finding("logits", f"{distance:.1e} from those expected, {TOLERANCE} allowed", distance <= TOLERANCE),
        Finding(
            "answer",
            f"{QUESTION} {found['answer']}" + ("" if same_answer else f" (expected: {wanted['answer']})"),
            same_answer,
        ),
    ]
