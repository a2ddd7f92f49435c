"""How much the keys and values of answers take, which are kept together: a row each, grown in steps."""

from __future__ import annotations

from typing import Any

GROW_BY = 128  # positions; a cache that grew by one would be copied at every token


def bucket(positions: int) -> int:
    """Positions that are kept for so many."""
    return -(-positions // GROW_BY) * GROW_BY


def power_of_two(slots: int) -> int:
    """Slots that are kept for so many rows: the next ones are on their way."""
    return 1 << (slots - 1).bit_length()


def cache_bytes(config: Any, itemsize: int, rows: int, positions: int) -> int:
    """What so many rows of a text model take, the longest of so many positions."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    per_position = 2 * config.num_hidden_layers * heads * head_dim * itemsize
    return power_of_two(rows) * bucket(positions) * per_position
