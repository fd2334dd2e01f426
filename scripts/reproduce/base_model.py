"""Table 5, base model: Mistral-7B or LLaMA-2 7B.

    python scripts/reproduce/base_model.py [--scale tiny|small|full] [--open-sets FOLDER]

At tiny there is one base; it is compared with fresh weights of its own architecture. small: Qwen3-0.6B and
SmolLM2-360M. LLaMA-2's weights need a consent on the Hub. Runs: tiny 6, small 6, full 2; docs/reproduction.md says
what each takes.
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
