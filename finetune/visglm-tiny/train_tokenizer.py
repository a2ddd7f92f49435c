"""The tokenizer of visglm-tiny, trained on the sentences of its world.

    python train_tokenizer.py OUTPUT [--again [MODEL]]

Again, it is that of the model in the package, or of another, with a piece for every word of a name that it would spell:
what was learnt of the others keeps its meaning.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import sentencepiece
from concepts import GROUPS, Concept, load_all_concepts, load_concepts
from questions import (
    COLOURS_ZH,
    NO_PICTURE,
    PLACES,
    QUESTIONS,
    TEXT_ONLY,
    UNKNOWN,
    Asker,
    with_article,
)
from sentencepiece.sentencepiece_model_pb2 import ModelProto
from world import COLOURS

from visglm.checkpoint import EMBEDDED_MODEL
from visglm.tokenizers import ChatGLMTokenizer

VOCAB_SIZE = 4096  # enough for every word of a name to be one piece: a small model spells badly
# <|image|> right after <eop>, where the tokenizer expects the id of an image slot.
CONTROL = ("[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", "<|image|>")
SCORE = -9.0  # log-probability of a piece that is added: likelier than any two in its place
WHITESPACE = ("<n>", "<|tab|>", *(f"<|blank_{length}|>" for length in (2, 3, 4, 8)))


def sentences() -> list[str]:
    concepts = load_concepts()
    asker = Asker(concepts)
    lines = [text for kinds in QUESTIONS.values() for phrasings in kinds.values() for text in phrasings] * 20
    lines += [text for pair in TEXT_ONLY for text in pair] * 20 + list(NO_PICTURE.values()) * 20 + list(COLOURS) * 20
    lines += [word for pair in PLACES.values() for word in pair] * 20 + [*COLOURS_ZH.values(), *UNKNOWN.values()] * 20
    lines += [f"这属于{zh}。" for zh, _ in GROUPS.values()] * 10 + [f"It is {with_article(en)}." for en in GROUPS] * 10
    lines += [f"图中有{number}个物体：左上角是" for number in range(1, 5)] * 10
    lines += [f"没有，图中没有{concept.chinese[0]}。" for concept in concepts]
    lines += ["It is a", "It is an", "There are", "Yes, there is a", "No, there is no", "The picture shows a"] * 300
    lines += ["Q:", "A:", "问：", "答：", "<img>", "</img>"] * 300
    for concept in concepts:
        # The frame a name is met in matters as much as the name.
        lines += [f"It is {with_article(name)}." for name in concept.english] * 4
        lines += [f"这是{name}。" for name in concept.chinese] * 4
        lines += [*concept.english[0].split(), concept.chinese[0]] * 16
        lines += [f"图中有{concept.chinese[0]}吗？", f"Is there {with_article(concept.english[0])} in the picture?"]
    asker.random.shuffle(lines)
    return lines


def add_words(tokenizer: ChatGLMTokenizer, concepts: list[Concept]) -> bytes:
    """The vocabulary of `tokenizer` with pieces for what it has none of: words of the English names of these concepts,
    the Chinese names, and their characters."""
    vocabulary = ModelProto.FromString(tokenizer.sp_model.serialized_model_proto())
    known = {piece.piece for piece in vocabulary.pieces}
    wanted = [f"▁{word}" for concept in concepts for word in concept.english[0].split()]
    wanted += [piece for concept in concepts for piece in (concept.chinese[0], *concept.chinese[0])]
    for piece in dict.fromkeys(wanted):
        if piece not in known:
            vocabulary.pieces.add(piece=piece, score=SCORE)
    return vocabulary.SerializeToString()


def train_vocabulary(output: Path) -> None:
    random.seed(0)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences()),
        model_prefix=str(output / "ice_text"),
        model_type="unigram",
        vocab_size=VOCAB_SIZE,
        hard_vocab_limit=False,
        character_coverage=1.0,
        byte_fallback=True,
        normalization_rule_name="nmt_nfkc",
        remove_extra_whitespaces=False,
        user_defined_symbols=[*CONTROL, *WHITESPACE, "<img>", "</img>"],
        unk_id=0, bos_id=1, eos_id=2, pad_id=3,
        num_threads=1,
        minloglevel=2,
    )  # fmt: skip
    (output / "ice_text.vocab").unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--again", type=Path, nargs="?", const=EMBEDDED_MODEL, help="add to a folder's vocabulary")
    arguments = parser.parse_args()
    output = arguments.output
    output.mkdir(parents=True, exist_ok=True)
    if arguments.again is not None:
        before = ChatGLMTokenizer.from_pretrained(arguments.again)
        (output / "ice_text.model").write_bytes(add_words(before, load_all_concepts()[len(load_concepts()) :]))
    else:
        train_vocabulary(output)
    tokenizer = ChatGLMTokenizer(str(output / "ice_text.model"))
    tokenizer.save_pretrained(output)
    for token in CONTROL:
        print(token, tokenizer.convert_tokens_to_ids(token))
    print("vocabulary", len(tokenizer.sp_model), "image slot", tokenizer.image_token_id)
    for text in (
        "问：这是什么？\n答：",
        "Q:Is there a cat in the picture?\nA:",
        "图中有3个物体：左上角是猫",
        "zebra 𠮷",
    ):
        print(tokenizer.tokenize(text))


if __name__ == "__main__":
    main()
