"""Time LLMSentenceTransformer.encode against stock SentenceTransformer.encode on the same model.

    python scripts/bench_encode.py [--rounds 5] [--device cuda --dtype bfloat16 --shape 7b]

Each round encodes the same texts with stock and ours in turn; the ratio stock/ours is taken round by round, so that a
drifting machine moves both. Prints median (lowest to highest) of the ratio, median seconds, the tokens that each puts
through the model, the greatest difference of the vectors, and the memory on top of the model's: peak of the GPU
allocator, or growth of the process's peak on a CPU.
"""

from __future__ import annotations

import argparse
import random
import resource
import time
from statistics import median
from typing import NamedTuple, Self

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from transformers import AutoModel, MistralConfig

from st_llm_embed import LLMSentenceTransformer
from st_llm_embed.instructions import instruction_prompt

SHAPES = {
    # hidden size, layers, heads, key/value heads, intermediate size
    "13m": (320, 6, 8, 4, 1280),
    "7b": (4096, 32, 32, 8, 14336),
}

WORDS = (
    "time",
    "river",
    "stone",
    "method",
    "cloud",
    "paper",
    "engine",
    "garden",
    "signal",
    "bread",
    "winter",
    "window",
)


class Mix(NamedTuple):
    """Texts to encode and the number of tokens of their common instruction, 0 for documents."""

    name: str
    instruction_tokens: int
    words: tuple[int, int]
    texts: int


MIXES = (
    Mix("queries, 30-token instruction", 30, (4, 10), 512),
    Mix("queries, 60-token instruction", 60, (4, 10), 512),
    Mix("queries, no instruction", 0, (4, 10), 512),
    Mix("120-word texts, 30-token instruction", 30, (110, 130), 128),
    Mix("documents of 20 to 200 words", 0, (20, 200), 128),
)


def main() -> None:
    """Build one model, wrap it twice, time both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--shape", choices=SHAPES, default="13m")
    arguments = parser.parse_args()
    ours, stock = build(arguments.shape, arguments.dtype, arguments.device)
    parameters = sum(weight.numel() for weight in ours.parameters())
    print(f"{parameters / 1e6:.1f} M parameters, {arguments.dtype}, {arguments.device}, ", end="")
    print(f"{torch.get_num_threads()} threads, batches of {arguments.batch_size}, {arguments.rounds} rounds\n")
    header = ("texts", "stock/ours, median (range)", "stock s", "ours s", "stock tokens", "ours tokens", "difference")
    print(f"| {' | '.join((*header, 'memory stock, ours MB'))} |\n{'|---' * (len(header) + 1)}|")
    for mix in MIXES:
        print(measure(mix, ours, stock, arguments), flush=True)


def build(shape: str, dtype: str, device: str) -> tuple[LLMSentenceTransformer, SentenceTransformer]:
    """A random model of a shape with the packaged tokenizer: ours, and a stock wrapper around the same weights."""
    hidden, layers, heads, key_value_heads, intermediate = SHAPES[shape]
    ours = LLMSentenceTransformer.from_base("embedded", max_seq_length=512, dtype=dtype, device="cpu")
    config = MistralConfig(
        vocab_size=len(ours.tokenizer),
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        intermediate_size=intermediate,
        sliding_window=None,
        use_cache=False,
    )
    torch.manual_seed(0)
    with torch.device(device):
        ours[0].model = AutoModel.from_config(config, dtype=getattr(torch, dtype))
    ours.to(device)
    stock_transformer = Transformer.__new__(Transformer)
    stock_transformer.__dict__.update(ours[0].__dict__)
    stock = SentenceTransformer(
        modules=[stock_transformer, Pooling(hidden, pooling_mode="lasttoken"), Normalize()], device=device
    )
    return ours.eval(), stock.eval()


def measure(mix: Mix, ours: LLMSentenceTransformer, stock: SentenceTransformer, arguments: argparse.Namespace) -> str:
    """Time one mix and give its row of the table."""
    generator = random.Random(0)  # noqa: S311
    texts = [" ".join(generator.choices(WORDS, k=generator.randint(*mix.words))) for _ in range(mix.texts)]
    prompt = instruction_of(mix.instruction_tokens, ours)
    options = {"prompt": prompt, "batch_size": arguments.batch_size, "convert_to_tensor": True}
    models = {"stock": stock, "ours": ours}
    seconds: dict[str, list[float]] = {"stock": [], "ours": []}
    memory, tokens, vectors = {}, {}, {}
    for model in models.values():
        model.encode(texts[: arguments.batch_size], **options)
    for _ in range(arguments.rounds):
        for name, model in models.items():
            with CountedTokens(model) as counted:
                memory[name] = -peak_memory(arguments.device, reset=True)
                start = time.perf_counter()
                vectors[name] = model.encode(texts, **options).float().cpu().numpy()
                seconds[name].append(time.perf_counter() - start)
                memory[name] += peak_memory(arguments.device)
            tokens[name] = counted.tokens
    ratios = [old / new for old, new in zip(seconds["stock"], seconds["ours"], strict=True)]
    difference = float(np.abs(vectors["stock"] - vectors["ours"]).max())
    return (
        f"| {mix.name} | {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) "
        f"| {median(seconds['stock']):.2f} | {median(seconds['ours']):.2f} "
        f"| {tokens['stock']:,} | {tokens['ours']:,} | {difference:.1e} "
        f"| {memory['stock'] / 2**20:.0f}, {memory['ours'] / 2**20:.0f} |"
    )


def instruction_of(tokens: int, model: LLMSentenceTransformer) -> str | None:
    """A prompt of about so many tokens."""
    if not tokens:
        return None
    words = ["Given"]
    while len(model.tokenizer(instruction_prompt(" ".join(words)))["input_ids"]) - 1 < tokens:
        words.append(WORDS[len(words) % len(WORDS)])
    return instruction_prompt(" ".join(words))


class CountedTokens:
    """Counts what goes through the language model, padding included, inside a with block."""

    def __init__(self, model: SentenceTransformer) -> None:
        self.tokens = 0
        self.hook = model[0].model.get_input_embeddings().register_forward_pre_hook(self._count)

    def _count(self, _: object, ids: tuple[torch.Tensor]) -> None:
        self.tokens += ids[0].numel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.hook.remove()


def peak_memory(device: str, *, reset: bool = False) -> int:
    """Peak memory in bytes: of the GPU's allocator since the last reset, or of the process so far."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        if reset:
            torch.cuda.reset_peak_memory_stats()
            return torch.cuda.memory_allocated()
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
