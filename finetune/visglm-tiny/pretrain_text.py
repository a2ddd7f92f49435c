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
    add_echoes,
    add_questions,
    add_talks,
    arguments_parser,
    build_model,
    build_tokenizer,
    load_text,
    make_up_guesses,
    parameter_groups,
    steps_done,
    train,
)
from concepts import load_all_concepts
from questions import WEIGHTS_ALONE, WEIGHTS_SEVERAL, Asker, things_in
from talks import Talker
from torch import Tensor, nn
from world import World

from visglm import ChatGLMTokenizer


def name_pieces(tokenizer: ChatGLMTokenizer) -> list[str]:
    """Pieces of the vocabulary that may stand in a name: letters, digits, words, characters of both scripts."""
    return [piece for piece in tokenizer.get_vocab() if piece.replace("▁", "").isalnum()]


def main() -> None:
    parser = arguments_parser(__doc__, steps=9000)
    parser.add_argument("--pictures", type=int, default=8, help="scenes per step")
    parser.add_argument("--questions", type=int, default=2, help="questions per scene")
    parser.add_argument("--talks", type=int, default=5, help="longer conversations per step")
    parser.add_argument("--echoes", type=int, default=6, help="names that nobody has, to be repeated, per step")
    parser.add_argument("--photographs", type=int, default=5, help="photographs told per step")
    parser.add_argument(
        "--again", action="store_true", help="go on from what OUTPUT holds; what is told stays as it is"
    )
    parser.add_argument("--minutes", type=float, help="end after so many, at most STEPS")
    arguments = parser.parse_args()
    log = arguments.output / "pretrain_text.jsonl"
    seed = arguments.seed + steps_done(log)
    torch.manual_seed(arguments.seed)
    tokenizer = build_tokenizer(arguments.data)
    model = build_model(tokenizer)
    concepts = load_all_concepts()
    if arguments.again:
        teller = load_text(model, tokenizer, arguments.output)
    else:
        teller = Teller(concepts, tokenizer, model.get_input_embeddings())
    world = World(arguments.data / "train.npz", seed=seed + 200, augment=False)
    asker = Asker(concepts, seed=seed + 1)
    talker = Talker(asker, name_pieces(tokenizer))
    learners = nn.ModuleList([model.model.text, model.lm_head, teller])

    def step_loss() -> dict[str, Tensor]:
        scenes = world.tell(arguments.pictures)
        rows = Rows(tokenizer, model.config.num_query_tokens)
        add_questions(rows, scenes, asker, arguments.questions, num_without_picture=1)
        add_talks(rows, scenes, talker, arguments.talks)
        add_echoes(rows, talker, arguments.echoes)
        guesses, told = make_up_guesses(arguments.photographs, talker, len(concepts))
        for index, guess in enumerate(guesses):
            question = talker.guess(guess)
            rows.add([(question.text, question.answer, 1)], question.language, arguments.pictures + index)
        shown = torch.cat([teller(scenes.in_reading_order()), teller.photographs(*told)])
        return {"loss": rows.loss(model, shown)}

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
                    rows.add([(question.text, question.answer, 1)], question.language, index)
                shown = teller(scenes.in_reading_order())
                losses[f"{kind} of {'one' if single_share else 'several'}"] = rows.loss(model, shown).item()
        rows = Rows(tokenizer, model.config.num_query_tokens)
        add_talks(rows, scenes, talker, 48)
        return losses | {"talks": rows.loss(model, shown).item()}

    optimizer = torch.optim.AdamW(parameter_groups(learners), lr=arguments.learning_rate, betas=(0.9, 0.98))
    train(optimizer, step_loss, arguments.steps, log, (500, losses_by_kind), arguments.minutes)
    text = {name: value for name, value in model.state_dict().items() if not name.startswith("model.vision.")}
    torch.save(text, arguments.output / "text.pt")
    torch.save(teller.state_dict(), arguments.output / "teller.pt")


if __name__ == "__main__":
    main()
