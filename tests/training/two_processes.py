"""Compute losses and gradients as one of two processes: `torchrun two_processes.py BASE TEXTS OUTPUT`.

TEXTS is a JSON object: `columns`, the texts of the joint batch by column, and `cases`, keyword arguments of the loss.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from st_llm_embed import LLMSentenceTransformer
from st_llm_embed.training.loss import InfoNCELoss


def loss_and_gradients(model: LLMSentenceTransformer, columns: list[list[str]], options: dict) -> dict:
    """Return the loss, the gradients and the number of forward passes."""
    joint = distributed.is_initialized()
    options = dict(options)
    dims = options.pop("matryoshka_dims", None)
    loss = InfoNCELoss(model, gather_across_devices=joint, **options)
    model.zero_grad()
    # The trainer, too, puts the wrapped model into the loss.
    loss.model = DistributedDataParallel(model) if joint else model
    calls = []
    hook = model[0].register_forward_pre_hook(lambda *_: calls.append(None))
    whole = MatryoshkaLoss(model, loss, dims) if dims else loss
    value = whole([model.preprocess(column) for column in columns], None)
    value.backward()
    hook.remove()
    return {
        "loss": value.detach(),
        "gradients": {name: weight.grad.clone() for name, weight in model.named_parameters()},
        "calls": torch.tensor(len(calls)),
    }


def main() -> None:
    """Take this process's half of the rows; the first process writes what both came to."""
    base, texts, output = sys.argv[1:]
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    given = json.loads(Path(texts).read_text(encoding="utf-8"))
    half = len(given["columns"][0]) // 2
    begin = distributed.get_rank() * half
    columns = [column[begin : begin + half] for column in given["columns"]]
    model = LLMSentenceTransformer.from_base(base, max_seq_length=48, device="cpu").double()
    results = []
    for options in given["cases"]:
        result = loss_and_gradients(model, columns, options)
        distributed.all_reduce(result["loss"])
        result["loss"] /= 2
        calls = [torch.zeros_like(result["calls"]) for _ in range(2)]
        distributed.all_gather(calls, result["calls"])
        results.append(result | {"calls": calls})
    if distributed.get_rank() == 0:
        torch.save(results, output)
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
