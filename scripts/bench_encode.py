"""Time LLMSentenceTransformer.encode against stock SentenceTransformer.encode on the same model.

    python scripts/bench_encode.py [--rounds 5] [--device cuda --dtype bfloat16 --shape 7b]

Each round encodes the same texts with stock and ours in turn; the ratio stock/ours is taken round by round, so that a
drifting machine moves both. Prints median (lowest to highest) of the ratio, median seconds, the tokens that each puts
through the model, the greatest difference of the vectors, and the peak of tensor memory that one call has allocated on
top of the model: from the GPU's allocator, or from torch.profiler's record of every allocation and release on a CPU.

Where other processes disturb, pin to a core: OMP_NUM_THREADS=1 taskset -c 0 python scripts/bench_encode.py
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import accumulate
from pathlib import Path
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
    """Texts to encode, the number of tokens of their instruction (0 for documents) and of distinct instructions."""

    name: str
    instruction_tokens: int
    words: tuple[int, int]
    texts: int
    instructions: int = 1


MIXES = (
    Mix("queries, 30-token instruction", 30, (4, 10), 512),
    Mix("queries, 60-token instruction", 60, (4, 10), 512),
    Mix("queries, 8 instructions of 30 tokens", 30, (4, 10), 512, 8),
    Mix("queries, 32 instructions of 30 tokens", 30, (4, 10), 512, 32),
    Mix("queries, 128 instructions of 30 tokens", 30, (4, 10), 512, 128),
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
    print(f"| {' | '.join((*header, 'peak memory stock, ours MB'))} |\n{'|---' * (len(header) + 1)}|")
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
    """Time one mix and return its row of the table."""
    generator = random.Random(0)  # noqa: S311
    texts = [" ".join(generator.choices(WORDS, k=generator.randint(*mix.words))) for _ in range(mix.texts)]
    options = {"batch_size": arguments.batch_size, "convert_to_tensor": True}
    prompts = prompts_of(mix, ours)
    calls: dict[str, Callable[[], torch.Tensor]] = {}
    if mix.instructions == 1:
        calls["stock"] = partial(stock.encode, texts, prompt=prompts[0], **options)
        calls["ours"] = partial(ours.encode, texts, prompt=prompts[0], **options)
    else:
        own = [prompts[place % len(prompts)] for place in range(len(texts))]
        instructions = [prompt.removeprefix("Instruct: ").removesuffix("\nQuery: ") for prompt in own]
        # Stock takes no list; its user puts the prompts before the texts.
        prompted = [prompt + text for prompt, text in zip(own, texts, strict=True)]
        calls["stock"] = partial(stock.encode, prompted, **options)
        calls["ours"] = partial(ours.encode, texts, instruction=instructions, **options)
    seconds: dict[str, list[float]] = {"stock": [], "ours": []}
    memory, tokens, vectors = {}, {}, {}
    for name, call in calls.items():
        with CountedTokens(ours) as counted:
            memory[name] = peak_memory(call, arguments.device)
        tokens[name] = counted.tokens
    for _ in range(arguments.rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            vectors[name] = call().float().cpu().numpy()
            seconds[name].append(time.perf_counter() - start)
    ratios = [old / new for old, new in zip(seconds["stock"], seconds["ours"], strict=True)]
    difference = float(np.abs(vectors["stock"] - vectors["ours"]).max())
    return (
        f"| {mix.name} | {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) "
        f"| {median(seconds['stock']):.2f} | {median(seconds['ours']):.2f} "
        f"| {tokens['stock']:,} | {tokens['ours']:,} | {difference:.1e} "
        f"| {memory['stock'] / 2**20:.1f}, {memory['ours'] / 2**20:.1f} |"
    )


def prompts_of(mix: Mix, model: LLMSentenceTransformer) -> list[str]:
    """Distinct prompts of about as many tokens as the mix says; an empty one for documents."""
    if not mix.instruction_tokens:
        return [""]
    prompts = []
    for number in range(mix.instructions):
        words = ["Given", WORDS[number % len(WORDS)], WORDS[number // len(WORDS)]]
        while len(model.tokenizer(instruction_prompt(" ".join(words)))["input_ids"]) - 1 < mix.instruction_tokens:
            words.append(WORDS[len(words) % len(WORDS)])
        prompts.append(instruction_prompt(" ".join(words)))
    return prompts


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


def peak_memory(call: Callable[[], torch.Tensor], device: str) -> int:
    """Call, and return the peak of tensor memory in bytes beyond what was in use before."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    # Every allocation (positive) and release (negative) of torch's CPU allocator, in the order of time.
    changes = sorted((event["ts"], event["args"]["Bytes"]) for event in events if event["name"] == "[memory]")
    return max(accumulate(change for _, change in changes))


if __name__ == "__main__":
    main()
