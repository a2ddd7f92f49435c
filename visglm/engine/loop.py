"""The loop that answers: who was told to stop goes, newcomers are looked at and read, then a token for everybody."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from ..errors import EngineError, PromptError
from ..identity import Fingerprint
from ..quant.products import rounds_alike, without_contention
from ..request import OTHER_NETWORK
from .lookup import Lookup
from .pictures import Looker
from .rows import Rows
from .shelf import Read, Shelf
from .task import Task, Token
from .turns import Turns


class Loop:
    """What the engine's thread does while there is something to answer.

    The rows of an answer are in one cache, the first token is chosen where its prompt is read, all others one step at a
    time. What goes wrong with one request stays with it; where a step for all of them fails, each is told so.

    Args:
        rows: of the network that answers. turns: told when an answer ends.
        looker: remembers pictures. fingerprint: of what looks at them.
        shelf: remembers what a causal model has read; None for one that reads its prompt both ways.
        tells_later: who waits for an answer is told its end by `tell`, and not at once.
    """

    def __init__(
        self,
        rows: Rows,
        turns: Turns,
        looker: Looker,
        fingerprint: Fingerprint,
        shelf: Shelf | None,
        tells_later: bool = False,
    ):
        self.rows, self.turns, self.looker, self.fingerprint = rows, turns, looker, fingerprint
        self.shelf, self.tells_later = shelf, tells_later
        self._over: list[tuple[Task, BaseException | None]] = []  # who is to be told
        self.network, self.family = rows.network, rows.family
        self.tasks: list[Task] = []  # one a row
        self._quietly = without_contention(rows.text)
        self._can_leap = rows.can_leap and rounds_alike(rows.text)
        self._silent = self.network.config.image_token_id  # an image slot is no word

    # --- a turn ---

    def turn(self, newcomers: Sequence[Task]) -> None:
        """One step for everybody, those who have just come included."""
        for row in reversed(range(len(self.tasks))):
            if self.tasks[row].cancelled:
                self._leave(row)
        self._read(self._look(newcomers))
        if self.tasks:
            lookup = self._look_up()
            guessed = lookup.guess(self.tasks[0].room_left) if lookup is not None else []
            try:
                over = self._leap(lookup, guessed) if lookup and guessed else self._hand_out(self._step())
            except BaseException as error:
                self.fail(error)
            else:
                self._see_off(over)

    def fail(self, error: BaseException) -> None:
        """Everybody's answer ends here."""
        tasks, self.tasks = self.tasks, []
        self.rows.clear()
        for task in tasks:
            self._end(task, step_error(error))

    def _leave(self, row: int) -> None:
        """The last row moves to its place."""
        task, last = self.tasks[row], len(self.tasks) - 1
        self._shelve(row)
        self.rows.remove(row)
        self.tasks = [self.tasks[last if place == row else place] for place in range(last)]
        self._end(task, task.fault)

    def _shelve(self, row: int) -> None:
        """Keep what was read for a question that goes on from here."""
        task = self.tasks[row]
        if self.shelf is None or not self.shelf.num_bytes or task.fault is not None:
            return
        ids = [*task.request.input_ids, *(token.id for token in task.outcome.tokens)]
        cache, embeds = self.rows.cache, task.outcome.image_embeds
        length = cache.lengths[row]
        self.shelf.keep(Read(ids[:length], embeds, cache.read(row, length), task.request.owner))

    def _end(self, task: Task, error: BaseException | None = None) -> None:
        task.is_over = True
        self._over.append((task, error))
        if not self.tells_later:
            self.tell()

    def tell(self) -> None:
        """Those who wait for answers that have ended."""
        over, self._over = self._over, []
        with self.turns.condition:  # both at once: whoever is told finds the network free
            for task, error in over:
                self.turns.end(task)
                task.finish(error)

    def refuse(self, newcomers: Sequence[Task], error: BaseException) -> None:
        """Nobody can be answered."""
        tasks, self.tasks = [*self.tasks, *(task for task in newcomers if not task.is_over)], []
        for task in dict.fromkeys(tasks):
            self._end(task, error)

    # --- pictures ---

    def _look(self, newcomers: Sequence[Task]) -> list[Task]:
        """Encode what is new to the network; those whose request turned out to be good."""
        tasks = [task for task in newcomers if not self._is_gone(task)]
        if not any(task.request.pixel_values is not None or task.request.image_embeds is not None for task in tasks):
            return self._looked(tasks)
        started = time.perf_counter()
        try:
            source = self.fingerprint(self.network)
            fine = [task for task in tasks if self._fits(task, source)]
            new = [task for task in fine if task.request.pixel_values is not None]
            for task, seen in zip(new, self._encode(new, source), strict=True):
                if isinstance(seen, BaseException):
                    fine.remove(task)
                    self._end(task, seen)
                    continue
                past = task.request.image_embeds
                before = [] if past is None else [one.to(seen[0]) for one in past]
                task.outcome.image_embeds = self.family.gather([*before, *seen])
                task.outcome.encode_seconds = time.perf_counter() - started
            for task in fine:
                if task.outcome.image_embeds is None:
                    task.outcome.image_embeds = task.request.image_embeds
                task.outcome.source = source if task.outcome.image_embeds is not None else ""
        except BaseException as error:
            for task in tasks:
                if not task.is_over:
                    self._end(task, step_error(error))
            return []
        return self._looked(fine)

    def _looked(self, tasks: list[Task]) -> list[Task]:
        """Whoever wanted no more than that is done."""
        for task in tasks:
            if not task.request.input_ids:
                task.outcome.finish_reason = "stop"
                self._end(task)
        return [task for task in tasks if not task.is_over]

    def _is_gone(self, task: Task) -> bool:
        if task.cancelled:
            self._end(task)
        return task.cancelled

    def _fits(self, task: Task, source: str) -> bool:
        if task.request.source in ("", source):
            return True
        self._end(task, PromptError(OTHER_NETWORK))
        return False

    def _encode(self, tasks: Sequence[Task], source: str) -> list[Any]:
        """The visual tokens of each task's new pictures, or what went wrong with them."""

        def encode(pictures: list[Tensor]) -> list[Tensor]:
            return self.family.look(self.network, pictures)

        def look(some: Sequence[Task]) -> list[list[Tensor]]:
            pictures: list[Any] = [task.request.pixel_values for task in some]
            looks = f"{source} {self.turns.num_changes}"  # the fingerprint is of a few weights only
            sources = [f"{looks} {task.request.owner}" for task in some]
            return self.looker.look([p for p in pictures if p is not None], sources, encode, self.network.device)

        try:
            return list(look(tasks))
        except Exception as error:
            if len(tasks) == 1:
                return [error]
        found: list[Any] = []
        for task in tasks:
            try:
                found += look([task])
            except Exception as error:
                found.append(error)
        return found

    # --- prompts ---

    def _read(self, tasks: Sequence[Task]) -> None:
        """Read prompts and choose first tokens, those that go on from something one by one, all others together."""
        fresh: list[Task] = []
        for task in tasks:
            task.start_clock()
        for group in same_prompts(tasks):
            known = None
            if self.shelf is not None:
                first = group[0]
                known = self.shelf.find(
                    first.request.input_ids, first.outcome.image_embeds, self._silent, first.request.owner
                )
            if known is None:
                fresh += group
            else:
                self._begin(group, known)
        self._begin(fresh)

    def _begin(self, tasks: Sequence[Task], known: tuple[Read, int] | None = None) -> None:
        """Where reading several fails, one by one, to find whose fault it is."""
        if not tasks:
            return
        try:
            with self._quietly:
                tokens = self._prefill(tasks, known)
        except BaseException as error:
            self.rows.cut(len(self.tasks))
            if len(tasks) > 1:
                for task in tasks:
                    self._begin([task], known)
            else:
                self._end(tasks[0], error)
            return
        self._see_off(self._hand_out(tokens, first=len(self.tasks) - len(tasks)))

    def _prefill(self, tasks: Sequence[Task], known: tuple[Read, int] | None) -> list[Token]:
        """First tokens of prompts; of `known`, what all of them start with, so many tokens are not read again."""
        groups = same_prompts(tasks)
        prompts = [group[0].request.input_ids for group in groups]
        length, device = max(map(len, prompts)), self.network.device
        config = self.network.config.text_config
        pad = config.pad_token_id or 0
        ids = torch.tensor([[pad] * (length - len(row)) + row for row in prompts], device=device)
        mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in prompts], device=device)
        pictures = [
            one.to(device)
            for group in groups
            if group[0].outcome.image_embeds is not None
            for one in group[0].outcome.image_embeds
        ]
        shapes = [shape for group in groups for shape in group[0].request.shapes]
        derived = self.family.prompt_inputs(self.network, ids, mask, shapes)
        cache, start = DynamicCache(config=config), 0
        if known is not None:
            read, start = known
            for number, (key, value) in enumerate(read.layers):
                cache.update(key[None, :, :start], value[None, :, :start], number)
            num_seen = prompts[0][:start].count(self._silent) if self._silent is not None else 0
            while num_seen > 0:
                num_seen -= len(pictures.pop(0))
        logits = self.family.read(
            self.network, ids[:, start:], mask, pictures, cache,
            {name: values[..., start:] for name, values in derived.items()},
        )  # fmt: skip
        places = [number for number, group in enumerate(groups) for _ in group]
        layers = [(layer.keys, layer.values) for layer in cache.layers]
        to_come = max(task.request.positions for task in [*self.tasks, *tasks])
        self.rows.add(layers, places, [len(prompt) for prompt in prompts], derived, to_come)
        newcomers = [task for group in groups for task in group]
        tokens = self._choose(newcomers, logits[places])
        self.tasks = [*self.tasks, *newcomers]
        return tokens

    # --- tokens ---

    def _step(self) -> list[Token]:
        """The next token of every row."""
        with self._quietly:
            logits = self.rows.decode([[task.outcome.tokens[-1].id] for task in self.tasks])
            self.rows.keep()
            return self._choose(self.tasks, logits[:, -1])

    # --- several tokens of one row, where they were foreseen ---

    def _look_up(self) -> Lookup | None:
        """What guesses the tokens of the only answer in flight; None where there are others, whom it would slow."""
        if len(self.tasks) > 1 or not self._can_leap:
            return None
        task = self.tasks[0]
        if task.lookup is None:
            task.lookup = Lookup(task.request.input_ids, self._silent)
        tokens = task.outcome.tokens
        task.lookup.catch_up([token.id for token in tokens[task.lookup.num_taken :]])
        return task.lookup

    def _leap(self, lookup: Lookup, guessed: list[int]) -> list[int]:
        """The next tokens of the only row: one more than were guessed right, each chosen as it would be alone; the row,
        if it is over."""
        task, is_over, kept = self.tasks[0], False, 0
        with self._quietly:
            logits = self.rows.decode([[task.outcome.tokens[-1].id, *guessed]])
            for place, likely in enumerate([*guessed, None]):
                [token] = self._choose([task], logits[0, place : place + 1])
                is_over, kept = task.take(token), place + 1
                if is_over or token.id != likely:
                    break
            self.rows.keep(kept)
        lookup.learn(len(guessed), kept - 1)
        return [0] if is_over else []

    def _choose(self, tasks: Sequence[Task], logits: Tensor) -> list[Token]:
        """A token for each row of `logits [rows, vocabulary]`."""
        logits = logits.to(torch.float32, copy=True)
        if self._silent is not None:
            logits[:, self._silent] = -torch.inf
        total = logits.logsumexp(-1, keepdim=True)
        choosers = [task.request.chooser for task in tasks]
        for row, chooser in enumerate(choosers):
            if forbidden := chooser.forbidden:
                logits[row, forbidden] = -torch.inf
        likeliest = logits.argmax(-1, keepdim=True)
        # Both in one piece, as each look at what a GPU computed waits for it.
        tokens, logprobs = torch.cat([likeliest.double(), (logits.gather(1, likeliest) - total).double()], 1).T.tolist()
        chosen = [task.choose(int(token), row) for task, token, row in zip(tasks, tokens, logits, strict=True)]
        if chosen != tokens:
            picked = torch.tensor(chosen, device=logits.device)[:, None]
            logprobs = (logits.gather(1, picked) - total)[:, 0].tolist()
        return [
            Token(token, logprob, alternatives(row, norm, chooser.num_alternatives))
            for token, logprob, row, norm, chooser in zip(chosen, logprobs, logits, total, choosers, strict=True)
        ]

    def _hand_out(self, tokens: Sequence[Token], first: int = 0) -> list[int]:
        """Each row from `first` on its token; those whose last it was."""
        return [row for row, token in enumerate(tokens, start=first) if self.tasks[row].take(token)]

    def _see_off(self, over: Sequence[int]) -> None:
        for row in reversed(over):
            self._leave(row)


def step_error(error: BaseException) -> EngineError:
    """Of an answer that was in flight when a step for everybody failed."""
    found = EngineError(
        f"the answer broke off, for the model failed at a step of it: {type(error).__name__}: {error}. Ask again."
    )
    found.__cause__ = error
    return found


def same_prompts(tasks: Sequence[Task]) -> list[list[Task]]:
    """Tasks of one owner whose prompts, pictures included, are the same: they are read once."""
    groups: list[list[Task]] = []
    by_ids: dict[tuple[str | int, ...], list[list[Task]]] = {}
    for task in tasks:
        alike = by_ids.setdefault((task.request.owner, *task.request.input_ids), [])
        mine = next((group for group in alike if same_pictures(group[0], task)), None)
        if mine is None:
            mine = []
            alike.append(mine)
            groups.append(mine)
        mine.append(task)
    return groups


def same_pictures(one: Task, other: Task) -> bool:
    first, second = one.outcome.image_embeds, other.outcome.image_embeds
    if first is None or second is None:
        return first is second
    return len(first) == len(second) and all(
        mine.shape == its.shape and torch.equal(mine, its.to(mine)) for mine, its in zip(first, second, strict=True)
    )


def alternatives(logits: Tensor, total: Tensor, count: int) -> tuple[tuple[int, float], ...]:
    """The `count` likeliest tokens with their log-probabilities."""
    if not count:
        return ()
    values, tokens = logits.topk(min(count, len(logits)))
    return tuple(zip(tokens.tolist(), (values - total).tolist(), strict=True))
