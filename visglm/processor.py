"""Pictures and conversations → what the model takes: image processor, tokenizer and prompt in one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor
from transformers import BatchFeature, ProcessorMixin
from transformers.processing_utils import ProcessingKwargs

from .config import VisGLMConfig, is_count
from .errors import CheckpointError, ConfigError, PromptError
from .pictures import ImageLimits
from .pictures.preprocess import VisGLMImageProcessor
from .prompt import (
    IMAGE_PLACEHOLDER,
    Rendered,
    Turn,
    fit,
    messages_to_turns,
    postprocess,
    render,
    render_raw,
    render_text,
)
from .reply import PictureShape

NOT_SUPPORTED = ("chat_template", "tools", "documents", "return_assistant_tokens_mask")


class VisGLMProcessor(ProcessorMixin):
    """Prepare pictures and text for `VisGLMForConditionalGeneration`.

    `apply_chat_template` takes conversations and renders them with `visglm.prompt`, the code that training
    uses: there is no template to edit, and nothing a user typed can become a control token or an image slot.
    Calling the processor takes prompts that a developer wrote out, with `<|image|>` where a picture belongs.

    Both give `input_ids` and `attention_mask` `[batch, length]`, padded on the left, and with pictures
    `pixel_values` `[num_images, 3, height, width]`: all pictures of the batch in the order of their slots.

    Args:
        image_processor: usually a `VisGLMImageProcessor`.
        tokenizer: the text model's tokenizer.
        num_query_tokens: image slots per picture, as in the model's configuration.
        prompt_style: a key of `visglm.prompt.PROMPT_STYLES`, as in the model's configuration.
    """

    def __init__(
        self,
        image_processor: Any,
        tokenizer: Any,
        num_query_tokens: int = 32,
        prompt_style: str = "visualglm",
    ) -> None:
        super().__init__(image_processor, tokenizer)
        self.num_query_tokens = num_query_tokens
        self.prompt_style = prompt_style
        self.image_token = IMAGE_PLACEHOLDER
        self.image_token_id = getattr(tokenizer, "image_token_id", None)

    @classmethod
    def from_pretrained(cls, name_or_path: Any, **kwargs: Any) -> VisGLMProcessor:
        """Load from a folder or hub id; where the model's configuration lies in the same folder, they must agree.

        Raises:
            CheckpointError: they contradict each other; everything is listed.
        """
        # Without a word transformers asks on the terminal whether to run the code that may lie there; none is needed.
        processor = super().from_pretrained(name_or_path, **kwargs | {"trust_remote_code": False})
        folder = Path(name_or_path)
        if (folder / "config.json").is_file():
            fields, _ = VisGLMConfig.get_config_dict(folder)
            is_own = fields.get("model_type") == VisGLMConfig.model_type
            if is_own and (problems := processor.problems(VisGLMConfig.from_pretrained(folder))):
                raise CheckpointError(
                    folder, problems, "Nothing was loaded. Make the files agree, or download the folder again, whole."
                )
        return processor

    @property
    def limits(self) -> ImageLimits:
        """How much one picture may cost; the image processor's."""
        return self.image_processor.limits

    @limits.setter
    def limits(self, limits: ImageLimits) -> None:
        self.image_processor.limits = limits

    def set_image_size(self, side: int, config: VisGLMConfig) -> None:
        """Resize pictures to a square of this side, in pixels.

        Raises:
            ConfigError: the model cannot cut it into its patches.
        """
        if config.vision_config is not None:
            config.vision_config.check_image_size(side)
        self.image_processor.size = {"height": side, "width": side}

    def shapes(self, images: Sequence[Image.Image]) -> list[PictureShape]:
        """What becomes of pictures: as many visual tokens of each."""
        return [PictureShape((1, 1, self.num_query_tokens), image.size) for image in images]

    def pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """`[num_images, 3, height, width]`, as the network takes pictures."""
        return self.image_processor(list(images), return_tensors="pt")["pixel_values"]

    @classmethod
    def of(cls, config: VisGLMConfig, tokenizer: Any, image_processor: Any = None) -> VisGLMProcessor:
        """The processor of a model: what its configuration says stands there alone.

        Args:
            image_processor: another than that of the picture size the model was made for.
        """
        if image_processor is None:
            side = config.vision_config.image_size if config.vision_config is not None else 224
            image_processor = VisGLMImageProcessor(size={"height": side, "width": side})
        return cls(image_processor, tokenizer, config.num_query_tokens, config.prompt_style)

    def problems(self, config: VisGLMConfig) -> list[str]:
        """What the processor and a model's configuration say differently, one line each."""
        pairs: dict[str, tuple[Any, Any]] = {"prompt_style": (self.prompt_style, config.prompt_style)}
        if config.vision_config is not None:
            pairs["num_query_tokens"] = (self.num_query_tokens, config.num_query_tokens)
            pairs["image_token_id"] = (self.image_token_id, config.image_token_id)
        return [
            f"{name} is {own!r} in the processor, and {models!r} in the model's configuration"
            for name, (own, models) in pairs.items()
            if own != models
        ] + ([] if config.vision_config is None else self._size_problems(config.vision_config.stride))

    def _size_problems(self, stride: int) -> list[str]:
        size = self.image_processor.size
        height, width = size.get("height"), size.get("width")
        if all(is_count(side) and side % stride == 0 for side in (height, width)):
            return []
        return [f"pictures are resized to {height}×{width}, which patches of {stride}×{stride} do not fill"]

    def check(self, config: VisGLMConfig) -> None:
        """Whether processor and model belong together.

        Raises:
            ConfigError: they contradict each other; everything is listed.
        """
        if problems := self.problems(config):
            raise ConfigError(
                f"processor and model do not belong together: {'; '.join(problems)}. Make the processor with "
                "VisGLMProcessor.of(model.config, tokenizer), with pictures of a multiple of the patch size."
            )

    def __call__(self, images: Any = None, text: str | Sequence[str] | None = None, **kwargs: Any) -> BatchFeature:
        """Prepare prompts that are written out, such as `"<img><|image|></img>问：这是什么？\\n答："`.

        Args:
            images: one picture or a list of them, or one list per prompt; of any kind `load_image` takes.
            text: one prompt or a list of them, each `<|image|>` standing for a picture. What asks the model
                to write (`[gMASK] <sop>`) is added.
            **kwargs: of the tokenizer's padding (`padding`, on by default, `max_length`, `return_tensors` …)
                and of the image processor.

        Raises:
            PromptError: text and pictures do not match.
            ContextLengthError: a prompt is longer than `max_length`.
            ImageError: a picture was refused or could not be read.
        """
        if text is None:
            return self._assemble(None, _flatten(images), kwargs)
        prompts = [text] if isinstance(text, str) else list(text)
        is_nested = isinstance(images, list | tuple) and any(isinstance(row, list | tuple) for row in images)
        num_placeholders = [prompt.count(IMAGE_PLACEHOLDER) for prompt in prompts]
        num_images = [len(_flatten(row)) for row in images] if is_nested else [len(_flatten(images))]
        if num_images != (num_placeholders if is_nested else [sum(num_placeholders)]):
            raise PromptError(
                f"The text holds {num_placeholders} {IMAGE_PLACEHOLDER} placeholders, prompt by prompt, "
                f"but {num_images} pictures were given. Write one placeholder for each picture."
            )
        rows = [render_raw(prompt, **self.render_options) for prompt in prompts]
        return self._assemble(rows, _flatten(images), kwargs)

    def apply_chat_template(
        self,
        conversation: Sequence[Mapping[str, Any]] | Sequence[Sequence[Mapping[str, Any]]],
        chat_template: None = None,
        *,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        tokenize: bool = False,
        return_dict: bool = False,
        return_tensors: str | None = None,
        language: str = "auto",
        processor_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Render one conversation or a batch of them.

        Args:
            conversation: messages as `visglm.prompt.messages_to_turns` reads them, pictures in their parts.
            chat_template: not supported; kept for its place in the signature.
            add_generation_prompt: check that the last message asks for an answer. A conversation whose last
                message is the user's always ends where the model starts to write.
            continue_final_message: let the model go on with the last message, which is the assistant's.
            tokenize: give ids; else readable text, in which `<|image|>` stands for a picture.
            return_dict: give everything the model takes; else the ids only.
            return_tensors: "pt" for PyTorch tensors.
            language: language of the prompt's own words, as in `visglm.prompt.render`.
            processor_kwargs: as the keyword arguments of calling the processor.
            **kwargs: the same.

        Raises:
            PromptError: a conversation cannot be rendered.
            ContextLengthError: a conversation is longer than `max_length`.
            ImageError: a picture was refused or could not be read.
        """
        kwargs |= {"chat_template": chat_template}
        for name in NOT_SUPPORTED:
            if kwargs.pop(name, None):
                raise PromptError(f"{name} is not supported: visglm.prompt renders chats. Leave it out.")
        kwargs.pop("sanitize_control_tokens", None)  # always so
        is_batch = bool(conversation) and not isinstance(conversation[0], Mapping)
        conversations: Sequence[Any] = conversation if is_batch else [conversation]

        rows: list[Rendered] = []
        texts: list[str] = []
        images: list[Any] = []
        for messages in conversations:
            turns, sources = messages_to_turns(messages)
            _check_last_message(turns, add_generation_prompt, continue_final_message)
            if not tokenize:
                texts.append(render_text(turns, style=self.prompt_style, language=language))
                continue
            row = render(turns, language=language, **self.render_options)
            # To go on with an answer, the model must not see its end token.
            rows.append(Rendered(row.input_ids[:-1], row.labels[:-1]) if continue_final_message else row)
            if any(source is None for source in sources):
                raise PromptError(
                    "A message has an image part without a picture. "
                    'Expected {"type": "image", "image": …}, or "url", "path" or "base64" instead of "image".'
                )
            images.extend(self.image_processor.fetch_images(sources))
        if not tokenize:
            return texts if is_batch else texts[0]
        options = {**(processor_kwargs or {}), **kwargs, "return_tensors": return_tensors}
        features = self._assemble(rows, images, options)
        return features if return_dict else features["input_ids"]

    def post_process_image_text_to_text(
        self, generated_outputs: Any, skip_special_tokens: bool = True, **kwargs: Any
    ) -> list[str]:
        """Decode rows of ids `[batch, length]`; what stands behind `<sop>` is tidied by `postprocess`."""
        texts = []
        for row in generated_outputs:
            ids = [int(index) for index in row]
            bos_token_id = self.tokenizer.bos_token_id
            start = ids.index(bos_token_id) + 1 if bos_token_id in ids else 0
            prompt, answer = (
                self.tokenizer.decode(part, skip_special_tokens=skip_special_tokens, **kwargs)
                for part in (ids[:start], ids[start:])
            )
            texts.append(prompt + postprocess(answer, self.prompt_style))
        return texts

    @property
    def render_options(self) -> dict[str, Any]:
        """What `visglm.prompt.render` has to know of the model."""
        return {
            "tokenizer": self.tokenizer,
            "style": self.prompt_style,
            "num_query_tokens": self.num_query_tokens,
        }

    def _assemble(self, rows: list[Rendered] | None, images: list[Any], kwargs: dict[str, Any]) -> BatchFeature:
        """Pad the rows, process the pictures."""
        options = self._merge_kwargs(ProcessingKwargs, tokenizer_init_kwargs=self.tokenizer.init_kwargs, **kwargs)
        text_options = options["text_kwargs"]
        if text_options.get("truncation"):
            raise PromptError(
                "Prompts are never cut: a cut may hit a picture or the question. Leave truncation out; "
                "with max_length alone, a prompt that is too long raises an error."
            )
        data: dict[str, Any] = {}
        if rows is not None:
            max_length = text_options.get("max_length")
            if max_length is not None:
                rows = [fit(row, max_length) for row in rows]
            data.update(
                self.tokenizer.pad(
                    {"input_ids": [row.input_ids for row in rows]},
                    padding=text_options.get("padding", True),
                    max_length=max_length,
                    pad_to_multiple_of=text_options.get("pad_to_multiple_of"),
                    padding_side=text_options.get("padding_side", "left"),
                    return_attention_mask=True,
                )
            )
        if images:
            data.update(self.image_processor(images, **options["images_kwargs"]))
        return BatchFeature(data, tensor_type=text_options.get("return_tensors"))


def _flatten(images: Any) -> list[Any]:
    if images is None:
        return []
    if isinstance(images, list | tuple):
        return [image for part in images for image in _flatten(part)]
    return list(images) if getattr(images, "ndim", 0) == 4 else [images]  # a batch of arrays


def _check_last_message(turns: Sequence[Turn], add_generation_prompt: bool, continue_final_message: bool) -> None:
    is_answered = turns[-1].answer is not None
    if add_generation_prompt and continue_final_message:
        raise PromptError("add_generation_prompt and continue_final_message exclude each other. Pass one.")
    if add_generation_prompt and is_answered:
        raise PromptError("The last message is the assistant's; nothing asks for an answer. Add a user message.")
    if continue_final_message and not is_answered:
        raise PromptError("The last message is the user's; no answer to continue. Add one.")
