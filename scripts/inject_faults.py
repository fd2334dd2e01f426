"""Put faults into healthy repositories, and count which of them doctor finds and what `repair` makes of them.

    python scripts/inject_faults.py [WORD ...] [--part 1/4] [--out faults.jsonl]

Four releases are made of tiny random models: pooled at the last token, by mean, with a Dense module, and a LoRA
adapter. Each fault of fault_table.py is put into a copy of one. What it does to vectors is measured with stock
sentence-transformers: the least cosine to those of the healthy release, of documents, queries and a long text.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import traceback
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from fault_table import TABLE, Fault
from numpy.typing import NDArray
from peft import LoraConfig
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, MistralConfig, PreTrainedTokenizerFast

from st_llm_embed import InputError, LLMSentenceTransformer, diagnose
from st_llm_embed.doctor.fix import repair
from st_llm_embed.doctor.probe import MINIMUM_COSINE, PROBE_FILE, make_probe, write_probe
from st_llm_embed.doctor.traps import Diagnosis

DOCUMENTS = [
    "The quick brown fox jumps over the lazy dog.",
    "  Two blanks,\nand Ünïcödé ﬁgures １２３",  # noqa: RUF001
    "A",
    "a long story about rivers, stones and harbours; " * 12,
    "It ends in </s> and goes on.",
]
QUERIES = ["Why is the Sky blue?", "harbours at dawn"]
STOPS, OTHER_SHAPE = -3.0, -2.0
"""In place of a cosine."""


class Result(NamedTuple):
    """What became of one fault."""

    name: str
    tells: bool
    cosine: float
    """The least one, to the healthy vectors."""
    repaired_cosine: float
    static: list[str]
    """What was found in the files that was not in the healthy release: trap and file."""
    live: list[str]
    left: list[str]
    """What is found in the repaired copy."""
    changed: list[str]
    crash: str

    @property
    def silent(self) -> bool:
        """Whether vectors are others without an error."""
        return STOPS < self.cosine < MINIMUM_COSINE

    @property
    def outcome(self) -> str:
        """What `repair` did: fixed, better, left, or worse."""
        if not self.changed:
            # Weights that are missing are drawn at random, so that vectors can differ.
            return "left"
        new = {text.split(" (")[0] for text in self.left} - {text.split(" (")[0] for text in self.live}
        if self.repaired_cosine < self.cosine - 1e-4 or (
            new and self.cosine > STOPS and self.repaired_cosine <= self.cosine
        ):
            return "worse"
        if self.repaired_cosine <= self.cosine + 1e-6 and len(self.left) == len(self.live):
            return "left"
        return "better" if self.left else "fixed"


def make_releases(folder: Path) -> dict[str, Path]:
    """Save the healthy releases, each with a probe as a run does."""
    base = _base(folder / "base")
    made = {}
    for name in ("last", "mean", "dense", "adapter"):
        mode = "mean" if name == "mean" else "lasttoken"
        model = LLMSentenceTransformer.from_base(str(base), max_seq_length=48, pooling_mode=mode, device="cpu")
        if name == "dense":
            torch.manual_seed(1)
            model.insert(2, Dense(32, 16))
        if name == "adapter":
            model.add_adapter(LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"]))
            for key, weight in model.named_parameters():
                if "lora_" in key:
                    torch.manual_seed(len(key))
                    weight.data = torch.randn_like(weight) * 0.3
        made[name] = folder / name
        model.save_pretrained(str(made[name]), create_model_card=False)
        if name == "adapter":
            config = json.loads((made[name] / "adapter_config.json").read_text(encoding="utf-8"))
            config["base_model_name_or_path"] = str(base)
            (made[name] / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
        write_probe(make_probe(SentenceTransformer(str(made[name]), device="cpu")), made[name] / PROBE_FILE)
    return made


def _base(folder: Path) -> Path:
    """Save a random Mistral of two layers whose tokenizer knows the words of DOCUMENTS."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet, special = pre_tokenizers.ByteLevel.alphabet(), ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(DOCUMENTS + QUERIES, trainer)
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A $B:1", [("<s>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", model_max_length=256
    )
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=len(fast),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.2,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def vectors_of(folder: Path) -> NDArray[np.float32] | None:
    """Encode with stock sentence-transformers; None where it stops."""
    try:
        model = SentenceTransformer(str(folder), device="cpu", model_kwargs={"use_safetensors": True})
        alone = [model.encode_document([text], show_progress_bar=False) for text in DOCUMENTS]
        queries = model.encode_query(QUERIES, show_progress_bar=False)
        return np.concatenate([*alone, queries, model.encode_document(DOCUMENTS, show_progress_bar=False)])
    except Exception:  # noqa: BLE001
        # Libraries stop in many ways, and each is one that a user sees.
        return None


def compared(healthy: NDArray[np.float32], found: NDArray[np.float32] | None) -> float:
    """Return the least cosine to the healthy vectors, lower where a length is another one, too."""
    if found is None:
        return STOPS
    if found.shape != healthy.shape:
        return OTHER_SHAPE
    apart = np.linalg.norm(found.astype(np.float64) - healthy, axis=1)
    # Both of length 1, half of the squared distance is what a cosine lacks of 1.
    return float(np.nan_to_num(1 - apart**2 / 2, nan=-1.0).min().clip(-1, 1))


def inject(fault: Fault, healthy: Path, vectors: NDArray[np.float32], folder: Path) -> Result:
    """Damage a copy of a release, examine and repair it."""
    damaged, repaired = folder / "damaged", folder / "repaired"
    shutil.copytree(healthy, damaged)
    cosine, after, crash = STOPS, STOPS, ""
    static, live, left, changed = [], [], [], []
    try:
        fault.damage(damaged)
        after = cosine = compared(vectors, vectors_of(damaged))
        known = shown(diagnose(str(healthy), live=False))
        static = sorted(shown(diagnose(str(damaged), live=False)) - known)
        fixed = repair(str(damaged), repaired, live=True, device="cpu")
        live, left = (sorted(shown(one) - known) for one in (fixed.before, fixed.after))
        changed = fixed.changed
        after = compared(vectors, vectors_of(repaired))
    except InputError as error:
        static, live, left = [f"refused: {error}"], [f"refused: {error}"], [f"refused: {error}"]
    except Exception:  # noqa: BLE001 - a traceback is what is counted
        crash = traceback.format_exc()
    return Result(fault.name, fault.tells, cosine, after, static, live, left, changed, crash)


def shown(diagnosis: Diagnosis) -> set[str]:
    """Return trap, file and detail of each finding."""
    return {f"{one.trap} ({one.file}) {one.detail}" for one in diagnosis.findings}


def summary(results: list[Result]) -> str:
    """Return the totals, one a line."""
    silent = [one for one in results if one.silent]
    told = [one for one in results if one.tells]
    lines = [
        f"faults: {len(results)}, of which sentence-transformers stops at "
        f"{sum(one.cosine == STOPS for one in results)} and returns other vectors silently of {len(silent)}",
        f"silently wrong, found live with a probe: {sum(bool(one.live) for one in silent)} of {len(silent)}",
        f"shown by files, found statically: {sum(bool(one.static) for one in told)} of {len(told)}",
        *(
            f"{word} by repair: {sum(one.outcome == word for one in results)}"
            for word in ("fixed", "better", "left", "worse")
        ),
        f"tracebacks: {sum(bool(one.crash) for one in results)}",
    ]
    return "\n".join(lines)


def main() -> None:
    """Inject the faults of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="only faults whose name has one of these")
    parser.add_argument("--part", default="1/1", help="which part of the table, such as 2/4")
    parser.add_argument("--out", type=Path, help="a file of JSON lines")
    options = parser.parse_args()
    part, parts = map(int, options.part.split("/"))
    chosen = [one for one in TABLE if not options.words or any(word in one.name for word in options.words)]
    results: list[Result] = []
    with tempfile.TemporaryDirectory() as temporary:
        releases = make_releases(Path(temporary))
        vectors = {name: found for name, folder in releases.items() if (found := vectors_of(folder)) is not None}
        for name, folder in releases.items():
            print(f"healthy {name}: {shown(diagnose(str(folder), live=True, device='cpu'))}")
        for number, fault in enumerate(chosen[part - 1 :: parts]):
            place = Path(temporary) / str(number)
            place.mkdir()
            results.append(inject(fault, releases[fault.release], vectors[fault.release], place))
            one = results[-1]
            lines = [f"{kind} {[text[:90] for text in found]}" for kind, found in (("S", one.static), ("L", one.live))]
            print(
                f"{one.name} | {one.cosine:.4f} {one.repaired_cosine:.4f} {one.outcome} | {' | '.join(lines)}",
                flush=True,
            )
            if options.out is not None:
                with options.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(one._asdict()) + "\n")
    print(summary(results))


if __name__ == "__main__":
    main()
