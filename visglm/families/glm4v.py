"""GLM-4.1V, GLM-4.6V and GLM-OCR, on transformers' own networks: pictures of any size, positions of three planes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import Tensor

from ..errors import PromptError
from ..prompt import GMASK, IGNORE_INDEX, LANGUAGES, SOP, Control, Mark, PromptStyle, Slots, Thinking
from ..reply import PictureShape
from ..sampling import GREEDY, LOWEST_TEMPERATURE
from .base import Family, Manner, Room, go_on
from .processor import FamilyProcessor

USER, ASSISTANT = Control(("<|user|>",)), Control(("<|assistant|>",))
THINK, THOUGHT = Control(("<think>",), is_text_without=True), Control(("</think>",), is_text_without=True)
PICTURE = (Control(("<|begin_of_image|>",)), Slots(("<|image|>",)), Control(("<|end_of_image|>",)))
QUESTION = dict.fromkeys(LANGUAGES, (USER, "\n", Mark.IMAGES, "{question}"))
BOX = ("<|begin_of_box|>", "<|end_of_box|>")
ABILITIES = ("chat", "finetune", "quantize")
# The tasks that GLM-OCR was published with (https://github.com/zai-org/GLM-OCR), in its own words.
PAGES = {"text": "Text Recognition:", "table": "Table Recognition:", "formula": "Formula Recognition:"}
PATCHES_AT_ONCE = 2**14  # that are looked at together; memory grows with them

# Sources: the chat templates published with GLM-4.1V-9B-Thinking, and with GLM-4.5V, GLM-4.6V and GLM-OCR.
ALWAYS_THINKS = PromptStyle(
    start=(GMASK, SOP),
    questions=QUESTION,
    past_answer=(ASSISTANT, "\n{answer}"),
    generation=(ASSISTANT, "\n"),
    picture=PICTURE,
    thinking=Thinking(),
    wrapping=("<answer>", "</answer>"),
    box=BOX,
)
MAY_THINK = PromptStyle(
    start=(GMASK, SOP),
    questions=QUESTION,
    past_answer=(ASSISTANT, "\n", THINK, THOUGHT, "\n{answer}"),
    generation=(ASSISTANT,),
    answer=("\n", THINK, THOUGHT, "\n{answer}", Mark.END),
    picture=PICTURE,
    thinking=Thinking(
        off=("\n", THINK, THOUGHT),
        off_note=(Control(("/nothink",), is_text_without=True),),
        off_answer=("\n{answer}", Mark.END),
    ),
    box=BOX,
    strips=True,
)


@dataclass(frozen=True)
class Glm4v(Family):
    """One of the three.

    Args:
        name: how people call it. model_type: of its configuration.
        stem: what the names of transformers' own classes for it start with. images: and those for its pictures.
        style: of its prompts.
        can, reads: as of `Family`.
    """

    name: str
    model_type: str
    stem: str
    images: str
    style: PromptStyle
    can: tuple[str, ...] = ABILITIES
    reads: Mapping[str, str] = field(default_factory=dict)

    text_part, vision_part = "model.language_model", "model.visual"
    towers = {"vision": ("model.visual.",), "text": ("model.language_model.", "lm_head.")}
    methods = ("lora", "qlora", "full")
    takes_image_embeds = False
    control = ("[gMASK]", "<sop>", "<|user|>", "<|assistant|>")  # which no prompt goes without
    ends = ("<|endoftext|>", "<|user|>", "<|observation|>")  # of answers, where no file says it

    @property
    def left_out(self) -> tuple[str, ...]:
        """Patterns of tensors that the published files hold and no answer needs."""
        return tuple(self.network_class._keys_to_ignore_on_load_unexpected or ())

    @property
    def network_class(self) -> Any:
        return getattr(transformers, f"{self.stem}ForConditionalGeneration")

    @property
    def config_class(self) -> Any:
        return getattr(transformers, f"{self.stem}Config")

    @property
    def image_processor_class(self) -> Any:
        """That which transformers takes itself, over torchvision, which timm brings along."""
        return getattr(transformers, f"{self.images}ImageProcessor")

    def processor(self, image_processor: Any, tokenizer: Any, videos: Mapping[str, Any] | None) -> FamilyProcessor:
        """Of the parts of a checkpoint."""
        return FamilyProcessor(image_processor, tokenizer, self.style, f"{self.images}Processor", videos)

    def vision(self, network: Any) -> Any:
        return network.model.visual

    def manner(self, config: Any) -> Manner:
        return Manner(self.style, config.text_config, config.vision_config)

    def look(self, network: Any, pictures: Sequence[Tensor]) -> list[Tensor]:
        """Pictures are `[frames, rows, columns, numbers of a patch]`."""
        found: list[Tensor] = []
        some: list[Tensor] = []
        for picture in pictures:
            if some and sum(map(num_patches, (*some, picture))) > PATCHES_AT_ONCE:
                found += self._look(network, some)
                some = []
            some.append(picture)
        return found + self._look(network, some)

    def _look(self, network: Any, pictures: Sequence[Tensor]) -> list[Tensor]:
        grids = torch.tensor([picture.shape[:3] for picture in pictures], device=network.device)
        patches = torch.cat([picture.flatten(0, 2) for picture in pictures]).to(network.device)
        return list(network.model.get_image_features(patches, grids).pooler_output)

    def sampling(self, settings: Any) -> dict[str, float]:
        """As the folder says, and as transformers reads it: a temperature counts where `do_sample` does, others always.

        What it does not say is left alone. A temperature below the lowest that is computed with is the likeliest token.
        """
        temperature = 1.0 if settings.temperature is None else settings.temperature
        draws = settings.do_sample and temperature >= LOWEST_TEMPERATURE
        found = {name: getattr(settings, name) for name in GREEDY} | {"temperature": temperature if draws else None}
        return {name: value for name, value in found.items() if value is not None}

    def gather(self, embeds: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return tuple(embeds)

    def prompt_inputs(
        self, network: Any, input_ids: Tensor, attention_mask: Tensor, shapes: Sequence[PictureShape]
    ) -> Mapping[str, Tensor]:
        merge = network.config.vision_config.spatial_merge_size
        grids = [(frames, rows * merge, columns * merge) for frames, rows, columns in (one.grid for one in shapes)]
        positions, _ = network.model.get_rope_index(
            input_ids,
            mm_token_type_ids=(input_ids == network.config.image_token_id).int(),
            image_grid_thw=torch.tensor(grids, device=input_ids.device) if grids else None,
            attention_mask=attention_mask,
        )
        return {"position_ids": positions}

    def extend_position_ids(self, network: Any, position_ids: Tensor, num_new_tokens: int) -> Tensor:
        return go_on(position_ids, num_new_tokens)

    def read(
        self, network: Any, input_ids: Tensor, attention_mask: Tensor, pictures: Sequence[Tensor], cache: Any,
        derived: Mapping[str, Tensor],
    ) -> Tensor:  # fmt: skip
        embeds = network.get_input_embeddings()(input_ids)
        slots = input_ids == network.config.image_token_id
        num_slots, num_tokens = int(slots.sum()), sum(map(len, pictures))
        if num_slots != num_tokens:
            raise PromptError(
                f"the prompt has {num_slots} image slots, and {len(pictures)} pictures of {num_tokens} visual tokens "
                "came with it. Build both with the processor."
            )
        if pictures:
            embeds = embeds.masked_scatter(slots[..., None], torch.cat(list(pictures)).to(embeds))
        hidden_states = self.text(network)(
            inputs_embeds=embeds, attention_mask=attention_mask, past_key_values=cache, use_cache=True, **derived
        ).last_hidden_state
        return network.lm_head(hidden_states[:, -1])

    def arrange(self, config: Any, batch: Mapping[str, Any], pictures: Sequence[Tensor]) -> dict[str, Any]:
        kept = batch["logits_to_keep"]
        following = torch.nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=IGNORE_INDEX)
        found = {
            "mm_token_type_ids": (batch["input_ids"] == config.image_token_id).int(),
            "shift_labels": following[:, kept].contiguous(),  # theirs are of every place, kept or not
        }
        if pictures:
            found["pixel_values"] = torch.cat([picture.flatten(0, 2) for picture in pictures])
            found["image_grid_thw"] = torch.tensor([picture.shape[:3] for picture in pictures])
        return found

    def room(self, config: Any, processor: Callable[[], Any]) -> Room:
        images, vision = processor().image_processor, config.vision_config
        per_token = images.temporal_patch_size * (images.patch_size * images.merge_size) ** 2
        most = images.size["longest_edge"] // per_token
        width = max(vision.intermediate_size, vision.out_hidden_size)
        return Room(max(1, images.size["shortest_edge"] // per_token), most, most * images.merge_size**2, width)


def num_patches(picture: Tensor) -> int:
    return picture.shape[:3].numel()


GLM41V = Glm4v("GLM-4.1V", "glm4v", "Glm4v", "Glm4v", ALWAYS_THINKS)
GLM46V = Glm4v("GLM-4.6V", "glm46v", "Glm46V", "Glm46V", MAY_THINK)
GLM_OCR = Glm4v("GLM-OCR", "glm_ocr", "GlmOcr", "Glm46V", MAY_THINK, (*ABILITIES, "read"), PAGES)
