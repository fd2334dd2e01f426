"""Seconds that doctor takes for a repository in the shape of a 7B model: clock and processor.

    python scripts/bench_doctor.py [--rounds 3]

The repository has config.json of Mistral-7B, its 290 tensors in two sparse files, which hold headers alone, and a
byte-level BPE of 131,072 pieces with as many merges, the size of the largest vocabularies in use. Each round is a
process of its own.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tokenizers import Tokenizer, pre_tokenizers, processors

CONFIG = {
    "architectures": ["MistralModel"],
    "model_type": "mistral",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 32768,
    "rope_theta": 10000.0,
    "vocab_size": 131072,
    "dtype": "bfloat16",
}
SHAPES = {
    "self_attn.q_proj": [4096, 4096],
    "self_attn.k_proj": [1024, 4096],
    "self_attn.v_proj": [1024, 4096],
    "self_attn.o_proj": [4096, 4096],
    "mlp.gate_proj": [14336, 4096],
    "mlp.up_proj": [14336, 4096],
    "mlp.down_proj": [4096, 14336],
    "input_layernorm": [4096],
    "post_attention_layernorm": [4096],
}


def write_repository(folder: Path) -> None:
    """Write all small files."""
    (folder / "1_Pooling").mkdir(parents=True)
    names = ("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{name}"}
        for number, (name, path) in enumerate(names)
    ]
    modes = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
    pooling = {"word_embedding_dimension": 4096} | {f"pooling_mode_{mode}": mode == "lasttoken" for mode in modes}
    prompts = {"query": "Instruct: Given a question, retrieve the answer\nQuery: ", "document": ""}
    tokenizer = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>", "model_max_length": 512}
    tokenizer |= {"tokenizer_class": "PreTrainedTokenizerFast", "padding_side": "right"}
    contents = {
        "config.json": CONFIG,
        "modules.json": modules,
        "1_Pooling/config.json": pooling,
        "sentence_bert_config.json": {"max_seq_length": 512, "do_lower_case": False},
        "config_sentence_transformers.json": {"prompts": prompts, "default_prompt_name": None},
        "tokenizer_config.json": tokenizer | {"add_bos_token": True, "add_eos_token": True},
        "model.safetensors.index.json": {"weight_map": write_shards(folder)},
        "tokenizer.json": tokenizer_json(),
    }
    for name, content in contents.items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")


def write_shards(folder: Path) -> dict[str, str]:
    """Write headers, and after them nothing that takes room on a disk; return the shard of each tensor."""
    shapes = {f"layers.{layer}.{name}.weight": shape for layer in range(32) for name, shape in SHAPES.items()}
    tensors = list(({"embed_tokens.weight": [CONFIG["vocab_size"], 4096]} | shapes | {"norm.weight": [4096]}).items())
    shards = {}
    for number, part in enumerate((tensors[:145], tensors[145:]), start=1):
        name, header, end = f"model-0000{number}-of-00002.safetensors", {}, 0
        for key, shape in part:
            start, end = end, end + 2 * math.prod(shape)
            header[key] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
            shards[key] = name
        content = json.dumps(header).encode()
        with (folder / name).open("wb") as file:
            file.write(struct.pack("<Q", len(content)) + content)
            file.truncate(8 + len(content) + end)
    return shards


def tokenizer_json() -> dict[str, object]:
    """Make a byte-level BPE of 131,072 pieces: bytes, all pairs of them, and pairs of those."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = ["<unk>", "<s>", "</s>", *alphabet]
    merges = [(one, other) for one in alphabet for other in alphabet]
    pieces += [one + other for one, other in merges]
    more = [(one + one, other) for one in alphabet for other in (two + three for two, three in merges)]
    more = more[: CONFIG["vocab_size"] - len(pieces)]
    pieces += [one + other for one, other in more]
    model = {"type": "BPE", "vocab": {piece: number for number, piece in enumerate(pieces)}}
    model |= {"merges": [list(pair) for pair in merges + more], "unk_token": "<unk>"}
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    tokens = [{"id": number, "content": name} | special for number, name in enumerate(pieces[:3])]
    tokenizer = Tokenizer.from_str(json.dumps({"version": "1.0", "added_tokens": tokens, "model": model}))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> <s> $B </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return json.loads(tokenizer.to_str())


def processor_seconds() -> float:
    """Return the seconds that finished child processes have computed."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    """Write the repository and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "repository"
        write_repository(folder)
        size = sum(path.stat().st_size for path in folder.rglob("*.json"))
        print(f"{size / 1e6:.1f} MB of small files")
        for _ in range(rounds):
            start, used = time.perf_counter(), processor_seconds()
            command = [sys.executable, "-m", "st_llm_embed.cli", "doctor", str(folder), "--no-live"]
            finished = subprocess.run(command, check=False, capture_output=True, text=True)
            seconds, used = time.perf_counter() - start, processor_seconds() - used
            output = finished.stdout.splitlines()[0] if finished.stdout else finished.stderr
            print(f"{seconds:.2f} s, {used:.2f} s of the processor, exit code {finished.returncode}: {output}")


if __name__ == "__main__":
    main()
