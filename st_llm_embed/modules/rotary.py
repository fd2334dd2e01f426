"""Rotary positions: their spelling for transformers 4, and the length from which they change for a whole text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

BY_LENGTH = ("dynamic", "longrope")
"""Types whose frequencies depend on the longest text of a batch, above a certain length."""

PER_LAYER = "full_attention"
"""The type of layers that transformers 4 scales, where each type has positions of its own (Gemma 3)."""


def spelled_for_transformers_4(config: dict[str, Any]) -> dict[str, Any]:
    """Return the keys of config.json in which transformers 4, vLLM and llama.cpp read what rope_parameters says.

    Without them transformers 4 silently takes its defaults, which for some models are a scaling.
    """
    rope = config.get("rope_parameters") or {}
    spelled: dict[str, Any] = {}
    if PER_LAYER in rope:
        local = rope.get("sliding_attention") or {}
        if "rope_theta" in local:
            spelled["rope_local_base_freq"] = local["rope_theta"]
        rope = rope[PER_LAYER] or {}
    if rope.get("rope_theta") is None:
        return spelled
    spelled["rope_theta"] = rope["rope_theta"]
    if "partial_rotary_factor" in rope:
        spelled["partial_rotary_factor"] = rope["partial_rotary_factor"]
    if config.get("model_type") == "gpt_neox":
        spelled |= {"rotary_emb_base": rope["rope_theta"], "rotary_pct": rope.get("partial_rotary_factor", 1.0)}
    kind = rope.get("rope_type", "default")
    scaling = {key: value for key, value in rope.items() if key not in ("rope_theta", "partial_rotary_factor")}
    if kind == "longrope" and "original_max_position_embeddings" in rope:
        spelled["original_max_position_embeddings"] = rope["original_max_position_embeddings"]
    if config.get("model_type") == "phi3":
        # Refused with any other key.
        scaling = {"type": kind} | {key: scaling[key] for key in ("short_factor", "long_factor") if key in scaling}
    spelled["rope_scaling"] = None if kind == "default" else scaling
    return spelled


def length_of_change(config: PreTrainedConfig) -> int | None:
    """Return the tokens above which a text has other rotary frequencies, from its first token on; None for never."""
    text = config.get_text_config()
    rope = getattr(text, "rope_parameters", None) or {}
    kinds = [rope, *(kind for kind in rope.values() if isinstance(kind, dict))]
    changes = [
        # transformers counts from here for longrope, and from the end of all positions for dynamic.
        kind["original_max_position_embeddings"] if kind["rope_type"] == "longrope" else text.max_position_embeddings
        for kind in kinds
        if kind.get("rope_type") in BY_LENGTH
    ]
    return min(changes, default=None)
