"""Third stage: teach the text model the language of its world, from scenes that are told, not shown.

    python pretrain_text.py DATA OUTPUT

In place of a picture's visual tokens it reads what is there, object by object (see `Teller`). A text model that can
answer leaves only the translation of pictures to the fourth stage, as BLIP-2 builds on a language model that can talk
already; and what it was told tells that stage what the visual tokens of a picture should be. Nothing of the first two
stages is needed: they can run beside this one.
"""

from __future__ import annotations

import torch
from common import (
    Rows,
    Teller,
    add_questions,
    arguments_parser,
    build_model,
    build_tokenizer,
    parameter_groups,
    train,
)
from concepts import load_concepts
from questions import WEIGHTS_ALONE, WEIGHTS_SEVERAL, Asker, things_in
from torch import Tensor, nn
from world import World


def main() -> None:
    parser = arguments_parser(__doc__, steps=6000)
    parser.add_argument("--pictures", type=int, default=8, help="scenes per step")
    parser.add_argument("--questions", type=int, default=2, help="questions per scene")
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    tokenizer = build_tokenizer(arguments.data)
    model = build_model(tokenizer)
    concepts = load_concepts()
    teller = Teller(concepts, tokenizer, model.get_input_embeddings())
    world = World(arguments.data / "train.npz", seed=arguments.seed + 200)
    asker = Asker(concepts, seed=arguments.seed + 1)
    learners = nn.ModuleList([model.model.text, model.lm_head, teller])

    def step_loss() -> dict[str, Tensor]:
        scenes = world.tell(arguments.pictures)
        rows = Rows(tokenizer, model.config.num_query_tokens)
        add_questions(rows, scenes, asker, arguments.questions, num_without_picture=1)
        return {"loss": rows.loss(model, teller(scenes))}

    @torch.no_grad()
    def losses_by_kind() -> dict[str, float]:
        """A skill that is asked for too rarely to be learnt does not show in the mean over all of them."""
        losses = {}
        for kinds, single_share in ((WEIGHTS_ALONE, 1.0), (WEIGHTS_SEVERAL, 0.0)):
            scenes = world.tell(32, single_share)
            scenes.colour.clamp_(min=0)  # so that there is a colour to ask for
            for kind in kinds:
                rows = Rows(tokenizer, model.config.num_query_tokens)
                for index, things in enumerate(things_in(scenes)):
                    question = asker.ask(things, kind)
                    rows.add([(question.text, question.answer)], question.language, index)
                losses[f"{kind} of {'one' if single_share else 'several'}"] = rows.loss(model, teller(scenes)).item()
        return losses

    optimizer = torch.optim.AdamW(parameter_groups(learners), lr=arguments.learning_rate, betas=(0.9, 0.98))
    log = arguments.output / "pretrain_text.jsonl"
    train(optimizer, step_loss, arguments.steps, log, every=(500, losses_by_kind))
    text = {name: value for name, value in model.state_dict().items() if not name.startswith("model.vision.")}
    torch.save(text, arguments.output / "text.pt")
    torch.save(teller.state_dict(), arguments.output / "teller.pt")


if __name__ == "__main__":
    main()
