"""Processor and tokenizer of a folder that anybody may have written, made from checked settings: see `settings`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from ..config import ChatGLMConfig, VisGLMConfig
from ..errors import CheckpointError
from ..pictures.preprocess import VisGLMImageProcessor
from ..processor import VisGLMProcessor
from ..prompt import PROMPT_STYLES
from ..tokenizers import ChatGLM2Tokenizer, ChatGLMTokenizer
from ..untrusted import NEXT_STEP, from_pretrained, read_json, told
from .settings import FLAG, TOKEN_IDS, Fits, check_fields, is_flag, is_number, is_whole


def are_numbers(value: Any, low: float = -1e3, high: float = 1e3) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(is_number(item, low, high) for item in value)


IMAGES: dict[str, tuple[str, Fits]] = {
    **{f"do_{name}": (FLAG, is_flag) for name in ("resize", "rescale", "normalize", "convert_rgb")},
    **{f"do_{name}": ("false", lambda value: value is False) for name in ("center_crop", "pad")},
    "image_mean": ("three numbers", are_numbers),
    "image_std": ("three numbers above 0", lambda value: are_numbers(value, 1e-6)),
    "resample": ("a filter from 0 to 5", lambda value: is_whole(value, 0, 5)),
    "rescale_factor": ("a number", lambda value: is_number(value, 1e-6, 1e3)),
    "image_processor_type": ("VisGLMImageProcessor", lambda value: value == "VisGLMImageProcessor"),
}
KEPT = IMAGES.keys() - {"image_processor_type", "do_pad", "do_center_crop"}  # which the class here does not have
MAX_GROWTH = 8  # side of a picture against the one that the network was trained with


def read_processor(path: Path, config: VisGLMConfig) -> VisGLMProcessor:
    """Image processor and tokenizer of a native folder.

    Raises:
        CheckpointError: a file is missing or damaged, names another class, or is another model's.
    """
    fields = read_json(path / "processor_config.json")
    images = fields.get("image_processor")
    slots, style = fields.get("num_query_tokens"), fields.get("prompt_style")
    problems = [] if is_whole(slots) else [f"processor_config.json: num_query_tokens is {str(slots)[:80]!r}"]
    if not isinstance(style, str) or style not in PROMPT_STYLES:
        problems.append(f"processor_config.json: prompt_style is {str(style)[:80]!r}, not of {list(PROMPT_STYLES)}")
    if fields.get("processor_class") != "VisGLMProcessor":
        problems.append(f"processor_config.json is of {str(fields.get('processor_class'))[:80]!r}, not VisGLMProcessor")
    if not isinstance(images, dict):
        problems.append("processor_config.json says nothing of an image_processor")
    if problems or not isinstance(images, dict):
        raise CheckpointError(path, problems, NEXT_STEP)
    check_fields(path / "processor_config.json", images, IMAGES)
    side, size = config.vision_config.image_size if config.vision_config is not None else 224, images.get("size")
    most = side * MAX_GROWTH
    if not isinstance(size, dict) or not all(value is None or is_whole(value, 1, most) for value in size.values()):
        raise CheckpointError(
            path,
            [f"processor_config.json: size is {str(size)[:80]}, expected height and width up to {most}"],
            NEXT_STEP,
        )
    kept = {name: value for name, value in images.items() if name in KEPT and value is not None}
    with told(path, "processor_config.json"):
        image_processor = VisGLMImageProcessor(**kept, size=size)
        tokenizer = read_tokenizer(path)
        check_tokenizer(path, config, tokenizer)
        processor = VisGLMProcessor(image_processor, tokenizer, fields["num_query_tokens"], str(style))
    if problems := processor.problems(config):
        raise CheckpointError(path, problems, "Nothing was loaded. Make the files agree, or download the folder again.")
    return processor


def is_picture_size(value: Any) -> bool:
    """Whether it bounds the room that pictures of any size are given, in pixels."""
    return (
        isinstance(value, dict)
        and is_whole(value.get("shortest_edge"), 1, MOST_PIXELS // 64)
        and is_whole(value.get("longest_edge"), value["shortest_edge"], MOST_PIXELS)
        and not {name for name, side in value.items() if side is not None} - {"shortest_edge", "longest_edge"}
    )


MOST_PIXELS = 2**28  # of one picture and its frames; published are 47 million


def read_image_settings(path: Path, kind: str) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """What an image processor of transformers is made with, where pictures keep their proportions; and the settings for
    videos that lie beside it, which are only handed on.

    Args:
        kind: its class as the files name it.

    Raises:
        CheckpointError: a file is missing or damaged, or names another class.
    """
    names = ("preprocessor_config.json", "processor_config.json")
    files = [path / name for name in names if (path / name).is_file()]
    fields = read_json(files[0]) if files else {}
    images, videos = fields.get("image_processor", fields), fields.get("video_processor")
    if (path / "video_preprocessor_config.json").is_file():
        videos = read_json(path / "video_preprocessor_config.json")
    if not files or not isinstance(images, dict) or not isinstance(videos, dict | None):
        raise CheckpointError(path, [f"{' or '.join(names)}: missing, or says nothing of images"], NEXT_STEP)
    kinds = (kind, f"{kind}Fast", f"{kind}Pil")
    table = IMAGES | {
        "do_resize": ("true", lambda value: value is True),
        "image_processor_type": (kind, lambda value: value in kinds),
        "size": ("shortest_edge and longest_edge in pixels", is_picture_size),
        **dict.fromkeys(SIDES, ("a number from 1 to 64", lambda value: is_whole(value, 1, 64))),
    }
    check_fields(files[0], images, table)
    kept = (KEPT | {"size", *SIDES}) - {"do_resize"}
    return {name: value for name, value in images.items() if name in kept and value is not None}, videos


SIDES = ("patch_size", "merge_size", "temporal_patch_size")


# --- tokenizer_config.json -------------------------------------------------------------------------

SLOW = {"ChatGLMTokenizer": ChatGLMTokenizer, "ChatGLM2Tokenizer": ChatGLM2Tokenizer}
FAST = ("PreTrainedTokenizerFast", "TokenizersBackend")  # before and since transformers 5
NAMES = (
    *("bos_token", "eos_token", "end_token", "gmask_token", "mask_token", "pad_token", "unk_token", "image_token"),
)


TOKEN_FLAGS = ("lstrip", "rstrip", "single_word", "normalized", "special")


def is_token(value: Any) -> bool:
    content = value.get("content") if isinstance(value, dict) else value
    return isinstance(content, str) and 0 < len(content) <= 200


TOKENIZER: dict[str, tuple[str, Fits]] = {
    **{name: ("a token", is_token) for name in NAMES},
    "image_token_id": ("an id", is_whole),
    "num_image_tokens": ("a number up to 65,536", lambda value: is_whole(value, 0, 2**16)),
    "role_tokens": (FLAG, is_flag),
    "remove_space": (FLAG, is_flag),
    "do_lower_case": (FLAG, is_flag),
    "padding_side": ("left or right", lambda value: value in ("left", "right")),
    "model_max_length": ("a number of tokens", lambda value: is_number(value, 1, 1e31)),
    "extra_special_tokens": (
        "a list of tokens", lambda value: isinstance(value, list | dict) and all(
            map(is_token, value.values() if isinstance(value, dict) else value)
        ),
    ),
}  # fmt: skip


def read_tokenizer(path: Path, kind: type[ChatGLMTokenizer] | None = None, **options: Any) -> Any:
    """The tokenizer of a folder, of one of the classes here.

    Args:
        kind: its class, where the folder is of a format whose files name another; None for the one they name.
        options: of the class, over what the files say.

    Raises:
        CheckpointError: a file is missing or damaged, or names another class.
    """
    settings = path / "tokenizer_config.json"
    fields = read_json(settings) if settings.is_file() or kind is None else {}
    named = fields.get("tokenizer_class")
    if kind is None and named in FAST:
        check_fast(path, fields)
        return from_pretrained(PreTrainedTokenizerFast, path)
    if kind is None:
        kind = SLOW.get(named) if isinstance(named, str) else None
    if kind is None:
        known = ", ".join([*SLOW, *FAST])
        raise CheckpointError(
            path, [f"tokenizer_config.json is of {str(named)[:80]!r}"], f"Known tokenizers are {known}."
        )
    check_fields(settings, fields, TOKENIZER)
    kept = {name: plain(value) for name, value in fields.items() if name in TOKENIZER and value is not None}
    if isinstance(kept.get("extra_special_tokens"), dict):
        kept["extra_special_tokens"] = list(kept["extra_special_tokens"].values())
    vocabulary = path / kind.vocab_files_names["vocab_file"]
    with told(path, "the tokenizer"):
        tokenizer = kind(str(vocabulary), **{**kept, "name_or_path": str(path), **options})
        add_tokens(settings, tokenizer, fields.get("added_tokens_decoder"))
    return tokenizer


def plain(value: Any) -> Any:
    """A token's content, where its settings are written out; these tokenizers make their own."""
    return value["content"] if isinstance(value, dict) and "content" in value else value


def add_tokens(path: Path, tokenizer: Any, listed: Any) -> None:
    """Tokens that somebody added to a vocabulary, at the ids they had.

    Raises:
        CheckpointError: an id is taken by another token, or cannot be reached.
    """
    if listed is None:
        return
    if not isinstance(listed, dict) or not all(
        key.isdecimal() and len(key) < 10 and isinstance(value, dict) and is_token(value)
        for key, value in listed.items()
    ):
        raise CheckpointError(path, ["added_tokens_decoder is no table of tokens by their ids"], NEXT_STEP)
    for index, token in sorted((int(key), value) for key, value in listed.items()):
        there = tokenizer.added_tokens_decoder.get(index)
        if there is None and index >= len(tokenizer):
            flags = {name: token.get(name) is True for name in TOKEN_FLAGS}
            tokenizer.add_tokens([AddedToken(token["content"], **flags)])
            there = tokenizer.added_tokens_decoder.get(index)
        if str(there) != token["content"]:
            raise CheckpointError(
                path,
                [f"added_tokens_decoder has {token['content']!r} at {index}, the vocabulary {str(there)!r}"],
                NEXT_STEP,
            )


def check_fast(path: Path, fields: Mapping[str, Any]) -> None:
    check_fields(path / "tokenizer_config.json", fields, {name: TOKENIZER[name] for name in CHECKED_FAST})
    if not (path / "tokenizer.json").is_file():
        raise CheckpointError(path, ["tokenizer.json is missing"], NEXT_STEP)


CHECKED_FAST = (*NAMES, "padding_side", "model_max_length", "extra_special_tokens")


def check_tokenizer(path: Path, config: VisGLMConfig, tokenizer: Any) -> None:
    """Compare a tokenizer's ids with the configuration's.

    Raises:
        CheckpointError: it belongs to another model.
    """
    text, problems = config.text_config, []
    names = TOKEN_IDS if isinstance(text, ChatGLMConfig) else ()
    for name, wanted in [*((name, getattr(text, name)) for name in names), ("image_token_id", config.image_token_id)]:
        found = getattr(tokenizer, name, None)
        if wanted is not None and found not in (wanted if isinstance(wanted, list) else [wanted]):
            problems.append(f"tokenizer: {name} is {found}, the model has {wanted}")
    if len(tokenizer) > text.vocab_size:
        problems.append(f"tokenizer: it has {len(tokenizer):,} tokens, the model's embedding {text.vocab_size:,}")
    if problems:
        raise CheckpointError(path, problems, "This is another model's tokenizer. Use the one of its own release.")
