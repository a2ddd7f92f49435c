"""Configurations: one per tower, nested in one `VisGLMConfig`; presets are data."""

from __future__ import annotations

import difflib
import math
from typing import Any

from transformers import AutoConfig, GlmConfig, PreTrainedConfig
from transformers.models.blip_2.configuration_blip_2 import Blip2QFormerConfig

from .errors import ConfigError

# What `PreTrainedConfig.__post_init__` takes beyond its fields.
INHERITED_KEYS = frozenset({"attn_implementation", "torch_dtype", "num_labels", "model_type", "per_layer_config"})

# Bounds of numbers, in whichever configuration they stand: far above what anybody trained, far below what would take
# minutes to build or gigabytes to hold. Whole numbers where the bounds are.
RANGES: dict[str, tuple[float, float]] = {
    "hidden_size": (1, 2**17),
    "intermediate_size": (1, 2**20),
    "num_hidden_layers": (1, 512),
    "num_attention_heads": (1, 2**12),
    "num_key_value_heads": (1, 2**12),
    "head_dim": (1, 2**12),
    "encoder_hidden_size": (1, 2**17),
    "cross_attention_frequency": (1, 512),
    "vocab_size": (1, 2**24),
    "max_position_embeddings": (1, 2**24),
    "image_size": (1, 2**13),
    "patch_size": (1, 2**12),
    "reduction": (1, 64),
    "num_query_tokens": (1, 2**14),
    "layer_norm_eps": (0.0, 0.1),
    "final_layer_norm_eps": (0.0, 0.1),
    "rms_norm_eps": (0.0, 0.1),
    "rope_theta": (1.0, 1e12),
    "initializer_range": (0.0, 1e3),
    "attention_dropout": (0.0, 1.0),
    "hidden_dropout_prob": (0.0, 1.0),
    "attention_probs_dropout_prob": (0.0, 1.0),
}


def check_ranges(config: PreTrainedConfig) -> None:
    """Raise `ConfigError` for a number outside `RANGES`, or something that is no number."""
    for name, (low, high) in RANGES.items():
        value = getattr(config, name, None)
        if value is None:
            continue
        kind, noun = (int, "a whole number") if isinstance(high, int) else (int | float, "a number")
        if isinstance(value, bool) or not isinstance(value, kind) or not low <= value <= high or math.isnan(value):
            raise ConfigError(
                f"{type(config).__name__}: {name} is {str(value)[:80]!r}, expected {noun} from {low:,} to {high:,}."
            )


def reject_hub_code(fields: dict[str, Any]) -> None:
    """Raise `ConfigError` for an attention implementation of the hub: a part's file may not ask for a download."""
    for name in ("attn_implementation", "_attn_implementation", "experts_implementation"):
        if fields.get(name) not in (None, "eager", "sdpa"):
            raise ConfigError(
                f"{name} is {str(fields[name])[:80]!r} in the configuration of a part, expected eager or sdpa. "
                "Name another one when you load the model, with attn_implementation=…."
            )


def reject_unknown_keys(config: PreTrainedConfig, keys: dict[str, Any]) -> None:
    """Raise `ConfigError` for a key that no field takes: a misspelt size must not become a silent default."""
    for key in keys:
        if key.startswith("_") or key in INHERITED_KEYS or hasattr(PreTrainedConfig, key):
            continue
        fields = [name for name in type(config).__dataclass_fields__ if not name.startswith("_")]
        guess = difflib.get_close_matches(key, fields, n=1)
        hint = f"did you mean {guess[0]!r}?" if guess else f"known: {', '.join(sorted(type(config).__annotations__))}."
        raise ConfigError(f"{type(config).__name__} has no field {key!r}; {hint}")


class VisGLMVisionConfig(PreTrainedConfig):
    """The image encoder: timm's `VisionTransformer` with a class token.

    Attributes:
        image_size: side of the square picture the position embedding was made for, in pixels. Other sizes
            are interpolated at run time.
        reduction: how many times smaller the ViT sees a picture, by the mean of its pixels; a recogniser sees all.
        patch_size: side of one patch of what the ViT sees, in pixels; with a stem, the stem's total stride.
        intermediate_size: width of the feed-forward layers.
        layer_norm_eps: of the blocks.
        final_layer_norm_eps: of the norm after the last block.
        stem: name of a timm convolutional network whose feature map of stride `patch_size` takes the place of the
            linear patches (a hybrid ViT: it learns from far fewer pictures), or None.
        recogniser: name of a timm classification network, with its head, that looks at every picture beside the ViT and
            tells in visual tokens of its own what it takes it for (see `visglm.vision.Recogniser`), or None.
        num_classes: of the recogniser's head.
        num_names: by which its classes are told, several classes by one name, perhaps.
        num_guesses: how many of the likeliest names are told.
        tokens_per_guess: visual tokens for each of them.
    """

    model_type = "visglm_vision"
    base_config_key = "vision_config"

    hidden_size: int = 1408
    intermediate_size: int = 6144
    num_hidden_layers: int = 39
    num_attention_heads: int = 16
    image_size: int = 224
    reduction: int = 1
    patch_size: int = 14
    layer_norm_eps: float = 1e-6
    final_layer_norm_eps: float = 1e-5
    stem: str | None = None
    recogniser: str | None = None
    num_classes: int = 1000
    num_names: int = 1000
    num_guesses: int = 1
    tokens_per_guess: int = 1
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs):
        reject_unknown_keys(self, kwargs)
        super().__post_init__(**kwargs)
        require_divisible(self, "hidden_size", "num_attention_heads")
        self.check_image_size(self.image_size)
        check_ranges(self)
        if self.recogniser is not None and not 0 < self.num_guesses <= self.num_names <= self.num_classes:
            raise ConfigError(
                "a recogniser tells some of its names, and has a class for each; got "
                f"num_guesses={self.num_guesses}, num_names={self.num_names}, num_classes={self.num_classes}."
            )

    @property
    def stride(self) -> int:
        """Side of what one patch covers of a picture, in pixels."""
        return self.patch_size * self.reduction

    @property
    def num_recogniser_tokens(self) -> int:
        """Visual tokens of a picture that are the recogniser's, behind those of the Q-Former's queries."""
        return self.num_guesses * self.tokens_per_guess if self.recogniser is not None else 0

    def check_image_size(self, image_size: Any) -> None:
        """Whether patches fill a square picture of this side, in pixels, without a rest.

        Raises:
            ConfigError: they do not; the nearest sizes are named.
        """
        for name in ("patch_size", "reduction"):
            if not is_count(getattr(self, name)):
                raise ConfigError(f"{name} must be a whole number from 1 on; got {getattr(self, name)!r}.")
        stride, of = self.stride, "patch_size" if self.reduction == 1 else "patch_size × reduction"
        if not is_count(image_size):
            raise ConfigError(f"image_size must be a multiple of {stride}, in pixels; got {image_size!r}.")
        if rest := image_size % stride:
            smaller = image_size - rest
            near = " or ".join(str(size) for size in (smaller, smaller + stride) if size)
            raise ConfigError(
                f"image_size={image_size} is not a multiple of {of}={stride}, and a patch would be cut. "
                f"Nearest: {near}."
            )


class ChatGLMConfig(PreTrainedConfig):
    """The text model of ChatGLM-6B: prefix-LM, two-plane rotary positions, post-LayerNorm.

    Attributes:
        max_position_embeddings: longest prompt plus answer the model was trained on, in tokens.
        layer_norm_eps: of every LayerNorm.
        bos_token_id: `<sop>`, starts the answer.
        eos_token_id: `<eop>`, ends it.
        mask_token_id: `[MASK]`, a blank of a few words.
        gmask_token_id: `[gMASK]`, the blank that an answer fills.
    """

    model_type = "visglm_chatglm"
    base_config_key = "text_config"
    keys_to_ignore_at_inference = ["past_key_values"]

    vocab_size: int = 130528
    hidden_size: int = 4096
    intermediate_size: int = 16384
    num_hidden_layers: int = 28
    num_attention_heads: int = 32
    max_position_embeddings: int = 2048
    layer_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    attention_dropout: float = 0.0
    initializer_range: float = 0.02
    use_cache: bool = True
    tie_word_embeddings: bool = False
    bos_token_id: int = 130004
    eos_token_id: int | list[int] | None = 130005
    pad_token_id: int | None = 3
    mask_token_id: int | None = 130000
    gmask_token_id: int | None = 130001

    def __post_init__(self, **kwargs):
        reject_unknown_keys(self, kwargs)
        super().__post_init__(**kwargs)
        check_ranges(self)
        require_divisible(self, "hidden_size", "num_attention_heads")
        if self.head_dim % 4:
            raise ConfigError(
                f"ChatGLM rotates pairs in two position planes, so the head size must be a multiple of 4; "
                f"got {self.hidden_size} / {self.num_attention_heads} = {self.head_dim}."
            )

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads


# Configurations of the text backbones, by model type; `visglm.text.register` adds to them.
TEXT_CONFIGS: dict[str, type[PreTrainedConfig]] = {
    ChatGLMConfig.model_type: ChatGLMConfig,
    GlmConfig.model_type: GlmConfig,
}


class VisGLMConfig(PreTrainedConfig):
    """ViT, Q-Former and text model in one.

    Attributes:
        vision_config: `VisGLMVisionConfig`, or None for a text-only model (then `qformer_config` is None too).
        qformer_config: `Blip2QFormerConfig` of transformers; its `encoder_hidden_size` follows the ViT.
        text_config: configuration of a registered text backbone (`visglm.text.BACKBONES`).
        num_query_tokens: image slots (visual tokens) per picture, those of a recogniser included.
        image_token_id: id at every image slot; never a text token, a pad token least of all.
        prompt_style: name in `visglm.prompt.PROMPT_STYLES`.
        max_pictures: in a conversation, as it was taught; None for any number. More are answered with a warning.
        quantization: how the weights are packed, as `visglm.quant.Quantization` records it; None in 16 or 32 bits.
    """

    model_type = "visglm"
    sub_configs = {
        "vision_config": VisGLMVisionConfig,
        "qformer_config": Blip2QFormerConfig,
        "text_config": AutoConfig,
    }

    vision_config: Any = None
    qformer_config: Any = None
    text_config: Any = None
    num_query_tokens: int = 32
    image_token_id: int | None = None
    prompt_style: str = "visualglm"
    max_pictures: int | None = None
    quantization: dict[str, Any] | None = None
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs):
        for fields in (self.vision_config, self.qformer_config, self.text_config):
            if isinstance(fields, dict):
                reject_hub_code(fields)
        if isinstance(self.vision_config, dict):
            self.vision_config = VisGLMVisionConfig(**self.vision_config)
        if isinstance(self.qformer_config, dict):
            self.qformer_config = Blip2QFormerConfig(**self.qformer_config)
        if self.text_config is None:
            self.text_config = ChatGLMConfig()
        if isinstance(self.text_config, dict):
            text_config = dict(self.text_config)
            model_type = text_config.pop("model_type", ChatGLMConfig.model_type)
            if not isinstance(model_type, str) or model_type not in TEXT_CONFIGS:
                raise ConfigError(
                    f"text_config has the model type {str(model_type)[:80]!r}; known are {', '.join(TEXT_CONFIGS)}."
                )
            self.text_config = TEXT_CONFIGS[model_type](**text_config)
        if (self.vision_config is None) != (self.qformer_config is None):
            raise ConfigError("vision_config and qformer_config come together: give both, or neither for text only.")
        if not is_count(self.num_query_tokens):
            raise ConfigError(f"num_query_tokens must be a whole number from 1 on; got {self.num_query_tokens!r}.")
        if self.max_pictures is not None and not is_count(self.max_pictures):
            raise ConfigError(f"max_pictures must be a whole number from 1 on, or None; got {self.max_pictures!r}.")
        for part in (self, self.qformer_config, self.text_config):
            if part is not None:
                check_ranges(part)
        if self.qformer_config is not None:
            self.qformer_config.encoder_hidden_size = self.vision_config.hidden_size
            if self.num_query_tokens <= self.vision_config.num_recogniser_tokens:
                raise ConfigError(
                    f"num_query_tokens={self.num_query_tokens} counts the recogniser's "
                    f"{self.vision_config.num_recogniser_tokens} visual tokens, too, and leaves none for the Q-Former."
                )
            if self.image_token_id is None:
                raise ConfigError("a model with a vision tower needs image_token_id, an id no text token uses.")
        control = ("bos_token_id", "eos_token_id", "pad_token_id", "mask_token_id", "gmask_token_id")
        for name in control if self.image_token_id is not None else ():
            taken = getattr(self.text_config, name, None)
            if self.image_token_id in (taken if isinstance(taken, list) else [taken]):
                raise ConfigError(
                    f"image_token_id={self.image_token_id} is {name}, too, and generate() would take pictures for it. "
                    "Give image slots an id of their own."
                )
        # `generate` reads these from the top.
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            kwargs.setdefault(name, getattr(self.text_config, name, None))
        self.tie_word_embeddings = self.text_config.tie_word_embeddings
        reject_unknown_keys(self, {key: value for key, value in kwargs.items() if not key.endswith("_token_id")})
        super().__post_init__(**kwargs)

    @classmethod
    def preset(cls, name: str) -> VisGLMConfig:
        """The configuration called `name` in `PRESETS`.

        Raises:
            ConfigError: no preset has exactly that name.
        """
        if name not in PRESETS:
            raise ConfigError(f"no preset {name!r}; the presets are {', '.join(PRESETS)}.")
        return cls(**PRESETS[name])


def is_count(value: Any) -> bool:
    """Whether it is a whole number from 1 on."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def require_divisible(config: PreTrainedConfig, size: str, count: str) -> None:
    """Raise `ConfigError` unless field `size` is a multiple of field `count`, and both are from 1 on."""
    for name in (size, count):
        if not is_count(getattr(config, name)):
            raise ConfigError(
                f"{type(config).__name__}: {name} must be a whole number from 1 on; got {getattr(config, name)!r}."
            )
    if getattr(config, size) % getattr(config, count):
        raise ConfigError(
            f"{type(config).__name__}: {size}={getattr(config, size)} is not a multiple of "
            f"{count}={getattr(config, count)}."
        )


# Figures of the published models: THUDM/VisualGLM-6B and THUDM/ChatGLM-6B.
PRESETS: dict[str, dict[str, Any]] = {
    "visglm-tiny": {
        "vision_config": {
            "hidden_size": 256,
            "intermediate_size": 1024,
            "num_hidden_layers": 3,
            "num_attention_heads": 8,
            "image_size": 128,
            "patch_size": 16,
            "stem": "tf_efficientnet_lite2",
        },
        "qformer_config": {
            "hidden_size": 256,
            "intermediate_size": 832,
            "num_hidden_layers": 2,
            "num_attention_heads": 8,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
            "vocab_size": 1,
            "initializer_range": 0.06,
        },
        "text_config": {
            "model_type": "visglm_chatglm",
            "vocab_size": 4663,
            "hidden_size": 256,
            "intermediate_size": 1024,
            "num_hidden_layers": 4,
            "num_attention_heads": 8,
            "max_position_embeddings": 512,
            "initializer_range": 0.06,  # 1 / sqrt(hidden size): with less, attention is lost beside the residual
        },
        "num_query_tokens": 8,
    },
    "visualglm-6b": {
        "vision_config": {},
        "qformer_config": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
        "text_config": {"model_type": "visglm_chatglm"},
        "num_query_tokens": 32,
        "image_token_id": 130006,
    },
    "chatglm-6b": {"text_config": {"model_type": "visglm_chatglm"}, "prompt_style": "chatglm"},
}
