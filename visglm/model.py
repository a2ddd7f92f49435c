"""`VisGLMForConditionalGeneration`: visual tokens fused into text embeddings, and what `generate` needs to know."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Cache, GenerationMixin, PreTrainedModel, SuppressTokensLogitsProcessor
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput

from .config import VisGLMConfig
from .errors import PromptError
from .text import BACKBONES
from .vision import VisionEncoder


@dataclass
class VisGLMOutput(ModelOutput):
    """Output of `VisGLMForConditionalGeneration`.

    Args:
        loss: mean cross entropy over supervised tokens, when labels were given.
        logits: `[batch, length or logits_to_keep, vocab_size]`.
        image_embeds: `[num_images, num_query_tokens, hidden_size]`, the visual tokens that were used.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    image_embeds: Tensor | None = None


class VisGLMPreTrainedModel(PreTrainedModel):
    config_class = VisGLMConfig
    base_model_prefix = "model"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["Block", "Blip2QFormerLayer"]  # and the text backbone's own
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_flash_attn = False
    _supports_attention_backend = True
    _supports_context_parallel = False

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, VisionEncoder):
            std = self.config.qformer_config.initializer_range
            nn.init.normal_(module.query_tokens, std=std)
            nn.init.trunc_normal_(module.vit.pos_embed, std=std)
            nn.init.normal_(module.vit.cls_token, std=std)


class VisGLMModel(VisGLMPreTrainedModel):
    """Vision encoder and text backbone, without the head."""

    def __init__(self, config: VisGLMConfig):
        super().__init__(config)
        self.vision = VisionEncoder(config) if config.vision_config is not None else None
        self.text = BACKBONES[config.text_config.model_type]._from_config(config.text_config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.text.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.text.set_input_embeddings(value)

    def get_image_features(self, pixel_values: Tensor, **kwargs) -> BaseModelOutputWithPooling:
        """Visual tokens `[num_images, num_query_tokens, hidden_size]` as `.pooler_output`.

        Args:
            pixel_values: `[num_images, 3, height, width]`, RGB, normalized by the image processor.

        Raises:
            PromptError: this is a text-only model.
        """
        if self.vision is None:
            raise PromptError("this is a text-only model: it has no vision tower to look at a picture with.")
        return BaseModelOutputWithPooling(pooler_output=self.vision(pixel_values, **kwargs))

    def fuse(self, input_ids: Tensor, image_embeds: Tensor | None) -> Tensor:
        """Text embeddings of `input_ids [batch, length]` with visual tokens at the image slots, in order of appearance.

        Raises:
            PromptError: slots and pictures do not match in number.
        """
        inputs_embeds = self.get_input_embeddings()(input_ids)
        slot = self.config.image_token_id
        is_slot = torch.zeros_like(input_ids, dtype=torch.bool) if slot is None else input_ids == slot
        num_slots, per_image = int(is_slot.sum()), self.config.num_query_tokens
        num_images = 0 if image_embeds is None else image_embeds.shape[0]
        if num_slots != num_images * per_image:
            raise PromptError(
                f"the prompt has {num_slots} image slots, that is {num_slots / per_image:g} pictures of {per_image}, "
                f"but {num_images} pictures came with it. Build both with the processor."
            )
        if image_embeds is None:
            return inputs_embeds
        return inputs_embeds.masked_scatter(is_slot.unsqueeze(-1), image_embeds.to(inputs_embeds))

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        image_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> VisGLMOutput:
        """Hidden states of text into which visual tokens are put where its image slots are.

        Args:
            input_ids: `[batch, length]`, one `image_token_id` for each visual token.
            pixel_values: `[num_images, 3, height, width]`, the pictures of all rows in order.
            attention_mask: `[batch, length]`, 0 where a row is padded.
            position_ids: as the text model counts them (ChatGLM: `[2, batch, length]`); by default those of a prompt.
            token_type_ids: `[batch, length]`, of a prefix-LM: 0 for the prompt, read both ways, 1 for an answer.
            past_key_values: what was computed of the tokens before.
            inputs_embeds: in place of `input_ids`.
            image_embeds: `[num_images, num_query_tokens, hidden_size]`, in place of `pixel_values`.
            use_cache: whether to return `past_key_values`.
            kwargs: what the text model takes beside.

        Raises:
            PromptError: image slots and pictures do not match, or the same is given in two ways.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise PromptError("give exactly one of input_ids and inputs_embeds.")
        if pixel_values is not None and image_embeds is not None:
            raise PromptError("give pixel_values or image_embeds, not both: they are the same pictures.")
        if pixel_values is not None:
            image_embeds = self.get_image_features(pixel_values).pooler_output
        if input_ids is not None:
            if position_ids is None and not (past_key_values is not None and past_key_values.get_seq_length()):
                derived = self.text.prompt_inputs(self.config.text_config, input_ids, attention_mask)
                position_ids = derived["position_ids"]
                token_type_ids = derived.get("token_type_ids") if token_type_ids is None else token_type_ids
            inputs_embeds = self.fuse(input_ids, image_embeds)
        elif image_embeds is not None:
            raise PromptError("pictures need input_ids: embeddings do not show the image slots.")
        outputs = self.text(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            token_type_ids=token_type_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            **kwargs,
        )
        return VisGLMOutput(
            logits=outputs.last_hidden_state,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_embeds=image_embeds,
        )


class VisGLMForConditionalGeneration(VisGLMPreTrainedModel, GenerationMixin):
    """Answers questions about pictures.

    `input_ids [batch, length]` with `config.image_token_id` at every image slot, `pixel_values [num_images, 3, height,
    width]` in order of appearance over the batch, or `image_embeds` from an earlier call. Prompts are left-padded for
    `generate`.
    """

    _tied_weights_keys = {"lm_head.weight": "model.text.embed_tokens.weight"}

    def __init__(self, config: VisGLMConfig):
        super().__init__(config)
        self.model = VisGLMModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    def get_image_features(self, pixel_values: Tensor, **kwargs) -> BaseModelOutputWithPooling:
        """As `VisGLMModel.get_image_features`."""
        return self.model.get_image_features(pixel_values, **kwargs)

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        image_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        return_dict: bool | None = None,
        **kwargs,
    ) -> VisGLMOutput:
        """Logits of the next token, and the loss where there are labels; what is not named here is as in `VisGLMModel`.

        Args:
            labels: `[batch, length]`, token ids, -100 where nothing is learnt. Only answers may be supervised: prefix
                tokens see the future.
            logits_to_keep: how many last positions get logits (0: all), or their indices. The loss is over these too.

        Raises:
            PromptError: image slots and pictures do not match, or nothing says where the prefix ends.
        """
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            token_type_ids=token_type_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            image_embeds=image_embeds,
            use_cache=use_cache,
            **{key: value for key, value in kwargs.items() if key != "num_items_in_batch"},
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        outputs.logits = self.lm_head(outputs.logits[:, kept])
        if labels is not None:
            # Each position tells the next token. Shifted here, because the loss function would shift what was kept.
            next_tokens = F.pad(labels[:, 1:], (0, 1), value=-100)[:, kept].contiguous()
            outputs.loss = self.loss_function(
                logits=outputs.logits, labels=labels, vocab_size=self.config.text_config.vocab_size,
                **{**kwargs, "shift_labels": next_tokens},
            )  # fmt: skip
        return outputs if return_dict is not False else outputs.to_tuple()

    # What generate() needs. Positions and token types are worked out once, from the whole prompt, and carried along.

    def _prepare_model_inputs(self, inputs=None, bos_token_id=None, model_kwargs: dict[str, Any] | None = None):
        inputs, name, model_kwargs = super()._prepare_model_inputs(inputs, bos_token_id, model_kwargs)
        past_key_values = model_kwargs.get("past_key_values")
        if self.model.text.reads_prefix_both_ways and past_key_values is not None and past_key_values.get_seq_length():
            raise PromptError(
                "a cache of an earlier answer cannot be reused: in a prefix-LM that answer becomes part of the prompt, "
                "which is read both ways. Keep `image_embeds` instead, so that the pictures are not encoded again."
            )
        if name == "input_ids" and model_kwargs.get("token_type_ids") is None:
            derived = self.model.text.prompt_inputs(self.config.text_config, inputs, model_kwargs.get("attention_mask"))
            model_kwargs = {**derived, **{key: value for key, value in model_kwargs.items() if value is not None}}
        return inputs, name, model_kwargs

    def _prepare_position_ids_for_generation(self, inputs_tensor, model_kwargs):
        input_ids = model_kwargs.get("input_ids", inputs_tensor)
        if input_ids.dim() != 2:
            raise PromptError("generate() from inputs_embeds needs token_type_ids and position_ids beside them.")
        derived = self.model.text.prompt_inputs(self.config.text_config, input_ids, model_kwargs.get("attention_mask"))
        return derived["position_ids"]

    def _update_model_kwargs_for_generation(self, outputs, model_kwargs, is_encoder_decoder=False, num_new_tokens=1):
        position_ids, token_type_ids = model_kwargs.get("position_ids"), model_kwargs.get("token_type_ids")
        model_kwargs = super()._update_model_kwargs_for_generation(
            outputs, model_kwargs, is_encoder_decoder, num_new_tokens
        )
        if position_ids is not None:
            model_kwargs["position_ids"] = self.model.text.extend_position_ids(position_ids, num_new_tokens)
        if token_type_ids is not None:
            answer = token_type_ids.new_ones(token_type_ids.shape[0], num_new_tokens)
            model_kwargs["token_type_ids"] = torch.cat([token_type_ids, answer], dim=-1)
        return model_kwargs

    def _expand_inputs_for_generation(self, expand_size=1, is_encoder_decoder=False, input_ids=None, **model_kwargs):
        """For beams and several answers per prompt: rows repeated, and with each row its positions and its pictures.

        The base class repeats along the first axis, which would mix the pictures of a row that has several (and before
        transformers 5.18 the planes of its positions).
        """
        own = ("position_ids", "pixel_values", "image_embeds")
        kept = {name: model_kwargs.pop(name) for name in own if model_kwargs.get(name) is not None}
        rows = input_ids
        input_ids, model_kwargs = super()._expand_inputs_for_generation(
            expand_size, is_encoder_decoder, input_ids, **model_kwargs
        )
        if "position_ids" in kept:
            model_kwargs["position_ids"] = kept.pop("position_ids").repeat_interleave(expand_size, dim=-2)
        for name, pictures in kept.items():
            num_slots = (rows == self.config.image_token_id).sum(-1)
            num_pictures = (num_slots // self.config.num_query_tokens).tolist()
            if sum(num_pictures) == len(pictures):  # else `fuse` tells what does not match
                pictures = torch.cat([part for part in pictures.split(num_pictures) for _ in range(expand_size)])
            model_kwargs[name] = pictures
        return input_ids, model_kwargs

    def _get_logits_processor(self, generation_config, *args, logits_processor=None, device=None, **kwargs):
        """An image slot is no word: one that was drawn would ask for a picture at the next step."""
        if generation_config.guidance_scale not in (None, 1) and self.model.text.reads_prefix_both_ways:
            raise PromptError(
                f"guidance_scale={generation_config.guidance_scale} cannot be had: the second, unguided answer would "
                "be continued token by token without its prompt, and a prefix-LM needs to know where that ends. Leave "
                "it out."
            )
        slot = self.config.image_token_id
        first = [] if slot is None else [SuppressTokensLogitsProcessor([slot], device or self.device)]
        processors = [*first, *(logits_processor or [])]
        return super()._get_logits_processor(
            generation_config, *args, logits_processor=processors, device=device, **kwargs
        )

    def prepare_inputs_for_generation(self, input_ids, is_first_iteration=False, use_cache=True, **kwargs):
        if not is_first_iteration and use_cache:
            kwargs.pop("image_embeds", None)  # in the cache by now, as pixel_values are, which the base class drops
        return super().prepare_inputs_for_generation(
            input_ids, is_first_iteration=is_first_iteration, use_cache=use_cache, **kwargs
        )

    def _assisted_decoding(self, *args, assistant_model=None, **kwargs):
        if assistant_model is not None:
            raise PromptError(
                "assistant_model cannot draft answers here: it would have to go on from a cache, which a prefix-LM "
                "cannot, or to see the pictures, which it is not given. prompt_lookup_num_tokens drafts without one."
            )
        return super()._assisted_decoding(*args, assistant_model=assistant_model, **kwargs)

    def create_masks_for_generate(self, config, *args, **kwargs):
        """The 4-D mask for static caches, which the text model makes."""
        return self.model.text.create_masks_for_generate(config, *args, **kwargs)

    def _prefill(self, input_ids, generation_config, *args, **kwargs):
        if generation_config.prefill_chunk_size is not None and self.model.text.reads_prefix_both_ways:
            raise PromptError("prefill_chunk_size must stay unset: a prefix-LM reads its prompt both ways at once.")
        return super()._prefill(input_ids, generation_config, *args, **kwargs)

    def generate_batch(self, *args, **kwargs):
        if self.model.text.reads_prefix_both_ways:
            raise PromptError("generate_batch (continuous batching) is causal only; use generate with left padding.")
        return super().generate_batch(*args, **kwargs)
