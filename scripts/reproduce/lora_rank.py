"""Table 5, rank of LoRA: 16, 8 or 32.

    python scripts/reproduce/lora_rank.py [--scale tiny|small|full] [--open-sets FOLDER]

lora_alpha is twice the rank, so that the scale of the update stays the same; the paper states no alpha. The other
scripts train all weights of the tiny base; here its linear layers get adapters, at twice the learning rate.

tiny: 9 runs, 25 processor minutes with open sets. small: 9 runs, 0.13 GPU hours, 0.4 USD. full: 3 runs, 69 GPU hours,
207 USD. scales.py says what one run takes, its memory, and what of that was measured.
"""

from __future__ import annotations

from scales import SCALES, ablate, arguments

AXES = {"rank": {str(rank): (f"lora.r={rank}", f"lora.lora_alpha={2 * rank}") for rank in (16, 8, 32)}}

ADAPTER = ("lora={lora_dropout: 0.1, target_modules: all-linear}", "training.learning_rate=2e-3")

if __name__ == "__main__":
    given = arguments(__doc__)
    scale = SCALES[given.scale].with_overrides(*(ADAPTER if given.scale == "tiny" else ()))
    ablate(given, "lora-rank", "Rank of the adapter (paper, table 5).", AXES, scale)
