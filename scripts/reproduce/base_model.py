"""Table 5, base model: Mistral-7B or LLaMA-2 7B.

    python scripts/reproduce/base_model.py [--scale tiny|small|full] [--open-sets FOLDER]

tiny has one base, which is compared with fresh weights of its own architecture. small: Qwen3-0.6B and SmolLM2-360M.
LLaMA-2's weights require accepting a licence on the Hub.

tiny: 6 runs, 17 processor minutes with open sets. small: 6 runs, 0.1 GPU hours, 0.3 USD. full: 2 runs, 46 GPU hours,
138 USD. scales.py says what one run takes, its memory, and what of that was measured.
"""

from __future__ import annotations

from scales import ablate, arguments

AXES = {
    "tiny": {"pretrained": (), "fresh weights": ("base.random_init=true",)},
    "small": {"Qwen3-0.6B": (), "SmolLM2-360M": ("base.name_or_path=HuggingFaceTB/SmolLM2-360M",)},
    "full": {"Mistral-7B": (), "LLaMA-2 7B": ("base.name_or_path=meta-llama/Llama-2-7b-hf",)},
}

if __name__ == "__main__":
    given = arguments(__doc__)
    ablate(given, "base-model", "The model that becomes an embedder (paper, table 5).", {"base": AXES[given.scale]})
