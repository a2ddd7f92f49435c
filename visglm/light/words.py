"""Whether tokenizer, prompt style and graphs of a folder speak of the same ids, seen before anybody is answered."""

from __future__ import annotations

from ..errors import CheckpointError, VisGLMError
from ..prompt import Turn
from ..request import lay_out
from ..tokenizers import PlainTokenizer
from .manifest import NAME, NEXT_STEP, Manifest


def check_words(manifest: Manifest, tokenizer: PlainTokenizer) -> None:
    """Lay a question out and look at its ids.

    Raises:
        CheckpointError: the embeddings lack some of them, pictures have no place among them, or an answer no start.
    """
    num_pictures = 0 if manifest.pictures is None else 1
    problems = []
    try:
        ids = lay_out([Turn("?", None, num_pictures)], max_new_tokens=0, config=manifest, tokenizer=tokenizer).input_ids
    except VisGLMError as error:
        raise CheckpointError(manifest.folder, [f"{NAME}: no question can be asked ({error})"], NEXT_STEP) from error
    if not all(0 <= id_ < manifest.vocab_size for id_ in [*ids, len(tokenizer) - 1, *tokenizer.all_special_ids]):
        problems.append(f"the vocabulary has {len(tokenizer)} tokens, the embeddings have {manifest.vocab_size}")
    slots = ids.count(manifest.image_token_id) if manifest.image_token_id is not None else 0
    if slots != num_pictures * manifest.num_query_tokens:
        problems.append(f"a picture has {slots} image slots, expected {manifest.num_query_tokens}")
    if manifest.positions["kind"] == "two planes" and manifest.positions["start"] not in ids:
        problems.append(f"{manifest.positions['start']} is where the answer starts, and no prompt has this token")
    if problems:
        raise CheckpointError(manifest.folder, [f"{NAME}: {problem}" for problem in problems], NEXT_STEP)
