"""ChatGLM2-6B, ChatGLM3-6B and GLM-4: with the code published beside them, and as transformers itself writes GLM-4."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...config import TEXT_CONFIGS, VisGLMConfig
from ...errors import CheckpointError
from ...processor import VisGLMProcessor
from ...tokenizers.glm import is_tiktoken, load_glm_tokenizer
from ...untrusted import read_json, read_text, told
from ..settings import part_fields
from .legacy import check_tokenizer, choose_weights
from .renamed import RenamedSource
from .rules import CHATGLM2_HF, CHATGLM2_HF_BIAS, GLM_HF, GLM_HF_BIAS, expand

# Settings of the published code that would make another network, with the one value that is built here.
FIXED: dict[str, Any] = {
    "rmsnorm": True,
    "original_rope": True,
    "add_bias_linear": False,
    "post_layer_norm": True,
    "apply_residual_connection_post_layernorm": False,
}
STOP_TOKENS = ("<|user|>", "<|observation|>")  # where a model that uses role tokens hands over


def glm_config(path: Path, fields: Mapping[str, Any], style: str) -> VisGLMConfig:
    """The native configuration of what the published code calls `ChatGLMConfig` from the second generation on.

    Raises:
        CheckpointError: a size is missing, or a setting asks for another network.
    """
    required = (
        "padded_vocab_size",
        "hidden_size",
        "ffn_hidden_size",
        "kv_channels",
        "num_layers",
        "num_attention_heads",
    )
    problems = [f"the configuration has no {name}" for name in required if name not in fields]
    problems += [
        f"{name} is {fields[name]!r}, expected {value!r}"
        for name, value in FIXED.items()
        if fields.get(name, value) != value
    ]
    if problems:
        raise CheckpointError(path, problems, "Expected a configuration of ChatGLM2, ChatGLM3 or GLM-4.")
    heads, ratio = fields["num_attention_heads"], fields.get("rope_ratio", 1)
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0 * ratio, "partial_rotary_factor": 0.5}
    if style == "chatglm2" and ratio != 1:  # the second generation stretches positions, later ones the base
        rope |= {"rope_type": "linear", "rope_theta": 10000.0, "factor": float(ratio)}
    text = {
        "model_type": "glm",
        "vocab_size": fields["padded_vocab_size"],
        "hidden_size": fields["hidden_size"],
        "intermediate_size": fields["ffn_hidden_size"],
        "num_hidden_layers": fields["num_layers"],
        "num_attention_heads": heads,
        "num_key_value_heads": fields["multi_query_group_num"] if fields.get("multi_query_attention") else heads,
        "head_dim": fields["kv_channels"],
        "max_position_embeddings": fields.get("seq_length", 2048),
        "rms_norm_eps": fields.get("layernorm_epsilon", 1e-5),
        "attention_bias": fields.get("add_qkv_bias", False),
        "rope_parameters": rope,
        "bos_token_id": fields.get("bos_token_id"),
        "eos_token_id": fields.get("eos_token_id", 2),
        "pad_token_id": fields.get("pad_token_id", 0),
        "tie_word_embeddings": fields.get("tie_word_embeddings", False),
    }
    return VisGLMConfig(text_config=text, prompt_style=style)


def find_style(path: Path, fields: Mapping[str, Any]) -> str:
    """The generation's prompt style: GLM-4 has a tiktoken vocabulary, ChatGLM3 role tokens or its name in its files."""
    vocabulary, settings = path / "tokenizer.model", path / "tokenizer_config.json"
    if (vocabulary.is_file() and is_tiktoken(vocabulary)) or "glm-4" in str(fields.get("_name_or_path")).lower():
        return "glm4"
    told = read_text(settings) if settings.is_file() else ""
    if "<|user|>" in told or "chatglm3" in (told + str(fields.get("_name_or_path"))).lower():
        return "chatglm3"
    return "chatglm2"


class GlmSource(RenamedSource):
    """A folder whose weights become a `GlmTextModel`."""

    def __init__(self, path: Path, config: VisGLMConfig, moves, tokenizer: Path | None, bits: int | None = None):
        super().__init__(path, config, choose_weights(path), moves, bits)
        self._tokenizer = tokenizer or path

    def processor(self) -> VisGLMProcessor:
        with told(self._tokenizer, "the tokenizer"):
            tokenizer = load_glm_tokenizer(self._tokenizer, self.config.prompt_style)
        text = self.config.text_config
        known = tokenizer.get_vocab()
        ends = text.eos_token_id if isinstance(text.eos_token_id, list) else [text.eos_token_id]
        stops = [known[name] for name in STOP_TOKENS if name in known and self.config.prompt_style != "chatglm2"]
        # transformers compares with one id; the first of several is the one that ends a text.
        text.eos_token_id = ends[0]
        check_tokenizer(self, tokenizer, ("eos_token_id",))
        text.eos_token_id = list(dict.fromkeys([*ends, *stops])) if len({*ends, *stops}) > 1 else ends[0]
        self.config.eos_token_id = text.eos_token_id
        return VisGLMProcessor.of(self.config, tokenizer)


class ChatGLM2Source(GlmSource):
    """A folder like THUDM/chatglm2-6b, THUDM/chatglm3-6b or THUDM/glm-4-9b-chat."""

    format = "chatglm2"

    def __init__(self, path: Path, tokenizer: Path | None = None):
        fields = read_json(path / "config.json")
        config = glm_config(path, fields, find_style(path, fields))
        rules = [*CHATGLM2_HF, *(CHATGLM2_HF_BIAS if config.text_config.attention_bias else [])]
        super().__init__(path, config, expand(rules, config), tokenizer, fields.get("quantization_bit"))


class TransformersGlmSource(GlmSource):
    """A folder like THUDM/glm-4-9b-chat-hf, which transformers can read by itself."""

    format = "glm"

    def __init__(self, path: Path, tokenizer: Path | None = None):
        fields = part_fields(path, TEXT_CONFIGS["glm"], read_json(path / "config.json"), whole=False)
        config = VisGLMConfig(text_config=fields | {"model_type": "glm"}, prompt_style="glm4")
        rules = [*GLM_HF, *(GLM_HF_BIAS if config.text_config.attention_bias else [])]
        super().__init__(path, config, expand(rules, config), tokenizer)
