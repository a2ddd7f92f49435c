"""Scripts written for VisualGLM-6B and ChatGLM-6B: after `import visglm` they run as printed, without remote code.

    tokenizer = AutoTokenizer.from_pretrained("visualglm-6b")
    model = AutoModel.from_pretrained("visualglm-6b").half().cuda()
    response, history = model.chat(tokenizer, "picture.png", "描述这张图片。", history=[])

New code has `visglm.VisGLM`, which can do more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedTokenizerBase

from .errors import ConfigError, PromptError
from .model import VisGLMForConditionalGeneration
from .processor import VisGLMProcessor
from .prompt import Turn, fit, render
from .reply import History
from .settings import Rule, check_call

SCHEMES = {8: "int8", 4: "int4"}  # what `quantize(bits)` meant
# Arguments of from_pretrained that ask for what is done anyway.
ACCEPTED = {"config", "trust_remote_code", "local_files_only", "revision", "adapter_kwargs", "name_or_path"}


class LegacyConfig(PreTrainedConfig):
    """Any `config.json` with the model type `chatglm`, read as it is; `visglm.checkpoint` understands it."""

    model_type = "chatglm"


class LegacyChat(VisGLMForConditionalGeneration):
    """The network with the methods that the code published beside VisualGLM-6B had."""

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, *args: Any, **kwargs: Any) -> LegacyChat:
        """Load a folder of any format on the CPU; `dtype` (or `torch_dtype`) as in transformers.

        Raises:
            CheckpointError: it cannot be used; all problems are listed.
            ConfigError: an argument is not supported here.
        """
        from .checkpoint import assemble, assemble_quantized, choose_quantization, open_source, torch_dtype

        dtype = kwargs.pop("dtype", kwargs.pop("torch_dtype", None))
        unknown = [name for name in kwargs if name not in ACCEPTED and not name.startswith("_")]
        if args or unknown:
            raise ConfigError(
                f"AutoModel for ChatGLM takes dtype only; got {unknown or args}. Use VisGLM.from_pretrained."
            )
        stored = None if dtype in (None, "auto") else torch_dtype(dtype)
        source, cpu = open_source(name_or_path), torch.device("cpu")
        quantization = choose_quantization(source, None, False)
        if quantization is not None:
            network = assemble_quantized(source, quantization, device=cpu, dtype=stored or torch.float16)
        else:
            network = assemble(source, device=cpu, dtype=stored)
        network.__class__ = cls
        return network

    def quantize(self, bits: int, **kwargs: Any) -> LegacyChat:
        """Quantize the text model to 8 or 4 bits in place.

        Raises:
            ConfigError: another number of bits, or it is quantized already to another number.
        """
        from .quant import Quantization, quantize_network

        if bits not in SCHEMES:
            raise ConfigError(f"quantize takes 8 or 4 bits; got {bits!r}.")
        quantize_network(self, Quantization.choose(SCHEMES[bits], self.config))
        return self

    def chat(self, tokenizer: PreTrainedTokenizerBase, *args: Any, **kwargs: Any) -> tuple[str, list[tuple[str, str]]]:
        """`chat(tokenizer, image_path, query, history=[])`, without `image_path` for a text-only model.

        Args:
            max_length: longest prompt and answer together, in tokens; by default the model's context.
            do_sample, top_p, top_k, temperature, repetition_penalty: as in `generate`.

        Returns:
            The answer, and the history with it.
        """
        *_, last = [("", []), *self.stream_chat(tokenizer, *args, **kwargs)]
        return last

    def stream_chat(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *args: Any,
        history: Sequence[tuple[str, str]] | None = None,
        max_length: int | None = None,
        do_sample: bool = True,
        top_p: float = 0.7,
        top_k: int = 0,
        temperature: float = 0.95,
        repetition_penalty: float = 1.0,
        **kwargs: Any,
    ) -> Iterator[tuple[str, list[tuple[str, str]]]]:
        """As `chat`, yielding the answer so far with its history as it grows."""
        from .chat import VisGLM

        names = ["image_path", "query", "history"] if self.config.vision_config is not None else ["query", "history"]
        if len(args) > len(names):
            raise PromptError(f"chat takes {', '.join(names)} after the tokenizer; got {len(args)} arguments.")
        given = dict(zip(names, args, strict=False)) | kwargs
        pairs = [*(given.pop("history", None) or history or ())]
        image, query = given.pop("image_path", None), given.pop("query", None)
        if given:
            raise ConfigError(
                f"chat does not know {', '.join(given)}. Use VisGLM for anything beyond the old interface."
            )
        vlm = VisGLM(self, VisGLMProcessor.of(self.config, tokenizer))
        turns = [Turn(question, answer) for question, answer in pairs]
        past = History(tuple(turns))
        if image and turns:  # the old prompt has the picture in front of the whole conversation
            turns[0] = Turn(turns[0].question, turns[0].answer, num_images=1)
            past, image = History(tuple(turns), vlm.encode(image)), None
        asked = (*past.turns, Turn(query, None, num_images=int(bool(image))))
        room = self._room(asked, tokenizer, vlm.context_length, max_length)
        answer = ""
        stream = vlm.stream_chat(
            image or None,
            query,
            history=past,
            max_new_tokens=room,
            temperature=temperature if do_sample else 0.0,
            top_p=top_p,
            top_k=top_k,
            repetition_penalty=repetition_penalty,
        )
        for piece in stream:
            answer += piece
            yield answer, [*pairs, (query, answer)]
        answer = stream.reply.text
        yield answer, [*pairs, (query, answer)]

    def _room(
        self, turns: Sequence[Turn], tokenizer: PreTrainedTokenizerBase, context: int, max_length: int | None
    ) -> int:
        """Tokens that are left for the answer.

        Raises:
            ContextLengthError: none is.
        """
        check_call({"max_length": Rule(int, 1, optional=True)}, max_length=max_length)
        rendered = render(
            turns, tokenizer=tokenizer, style=self.config.prompt_style, num_query_tokens=self.config.num_query_tokens
        )
        limit = context if max_length is None else min(max_length, context)
        return limit - len(fit(rendered, limit, 1).input_ids)


LegacyChat.config_class = LegacyConfig
AutoConfig.register(LegacyConfig.model_type, LegacyConfig)
AutoModel.register(LegacyConfig, LegacyChat)
