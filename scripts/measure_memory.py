"""Measure how much memory each stage after the training takes, in sets of the model's weights.

Each stage runs in a process of its own, once with a Llama of about 135 million random weights in float32 and once
with a tiny one of the same architecture. What the first takes more at its peak (VmHWM), divided by the size of its
weights, is the number of sets of weights in memory at once.

    python scripts/measure_memory.py                      # all stages; about ten minutes on two cores
    python scripts/measure_memory.py --stages doctor
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).parent
SIZES = {
    "tiny": {"hidden_size": 36, "intermediate_size": 96, "num_hidden_layers": 2},
    "large": {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30},
}
MOST = {"evaluation": 1.3, "release": 1.3, "doctor": 1.3, "verify": 1.3, "export onnx": 3.0, "publish": 1.3}
"""The stages, and the sets of weights that each may take."""


def build_run(folder: Path, size: str) -> None:
    """Write the folders of a run up to its training, with random weights in place of trained ones."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from st_llm_embed import LLMSentenceTransformer
    from st_llm_embed.data.dataset import write_dataset
    from st_llm_embed.data.rows import Row
    from st_llm_embed.modules.layout import base_path
    from st_llm_embed.training.check import vectors_of, write_reference_vectors

    tokenizer = AutoTokenizer.from_pretrained(base_path("embedded"))
    torch.manual_seed(0)
    config = LlamaConfig(
        **SIZES[size],
        vocab_size=49_152,
        num_attention_heads=9,
        num_key_value_heads=3,
        head_dim=SIZES[size]["hidden_size"] // 9,
        max_position_embeddings=512,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    model = LLMSentenceTransformer.from_base(str(folder / "base"), max_seq_length=64, device="cpu")
    model.save_pretrained(str(folder / "training" / "model"), create_model_card=False)
    write_reference_vectors(vectors_of(model), folder / "training")
    log = [{"step": 1, "loss": 1.0}, {"step": 1, "epoch": 1.0, "train_runtime": 1.0}]
    (folder / "training" / "log.json").write_text(json.dumps(log), encoding="utf-8")
    rows = [
        Row(
            anchor=f"question {number}",
            positive=f"answer {number}",
            negative=f"no answer {number}",
            instruction=f"Given question {number}, retrieve its answer.",
            task_type="short-long",
            language="en",
        )
        for number in range(24)
    ]
    write_dataset(rows, folder / "dataset", 0.5)


def run_stage(stage: str, folder: Path) -> None:
    """Run one stage on what the stages before it wrote into a run's folder."""
    from st_llm_embed import Recipe, export_model, publish, verify
    from st_llm_embed.doctor import diagnose
    from st_llm_embed.evaluation.report import write_report
    from st_llm_embed.publishing.release import write_release

    recipe = Recipe.load("demo", [f"base.name_or_path={folder / 'base'}", "base.max_seq_length=64"])
    dataset, training, evaluation, release = (
        folder / name for name in ("dataset", "training", "evaluation", "release")
    )
    if stage in ("evaluation", "release"):
        shutil.rmtree(folder / stage, ignore_errors=True)
        (folder / stage).mkdir()
    shutil.rmtree(folder / "export", ignore_errors=True)
    stages: dict[str, Callable[[], object]] = {
        "evaluation": lambda: write_report(recipe, dataset, training, evaluation),
        "release": lambda: write_release(recipe, [dataset], training, evaluation, release),
        "doctor": lambda: diagnose(str(release), live=True),
        "verify": lambda: verify(release, release),
        "export onnx": lambda: export_model(release, ["onnx"], folder / "export"),
        "publish": lambda: publish(release, f"lab/{folder.name}"),
    }
    stages[stage]()


def peak(stage: str, folder: Path, environment: dict[str, str]) -> int:
    """Return the largest resident set of a process that runs one stage, in bytes."""
    command = [sys.executable, __file__, "--run", stage, "--folder", str(folder)]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return int(done.stdout.splitlines()[-1])


def main() -> None:
    """Build both runs, and print a row for each stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", default=",".join(MOST), help="names of stages, with commas between")
    parser.add_argument("--folder", type=Path, help="where models and runs are written; a temporary one by default")
    parser.add_argument("--run", choices=MOST, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        run_stage(arguments.run, arguments.folder)
        # Not ru_maxrss, which a process inherits from the one that started it.
        [peak_kib] = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
        print(int(peak_kib) * 1024)
        return
    sys.path.insert(0, str(HERE.parent / "tests"))
    from hub import Hub

    with tempfile.TemporaryDirectory() as scratch, Hub(Path(scratch) / "hub") as hub:
        folder = arguments.folder or Path(scratch)
        for size in SIZES:
            if not (folder / size / "dataset").exists():
                build_run(folder / size, size)
        weights = (folder / "large" / "training" / "model" / "model.safetensors").stat().st_size
        print(f"{weights / 1e6:,.0f} MB of weights in float32\n")
        print("| stage | tiny model, MB | large model, MB | sets of weights | at most |\n|---|---|---|---|---|")
        for stage in arguments.stages.split(","):
            environment = hub.environment() if stage == "publish" else os.environ | {"HF_HUB_OFFLINE": "1"}
            tiny, large = (peak(stage, folder / size, environment) for size in SIZES)
            sets = (large - tiny) / weights
            print(f"| {stage} | {tiny / 1e6:,.0f} | {large / 1e6:,.0f} | {sets:.2f} | {MOST[stage]} |", flush=True)


if __name__ == "__main__":
    main()
