"""Checks of a training: before it, everything but the weights; after it, the weights and their vectors."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from numpy.typing import NDArray
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import SentenceEvaluator
from sentence_transformers.sentence_transformer.modules import Transformer
from torch import Tensor
from torch.nn.functional import cosine_similarity
from transformers import AutoModel
from transformers.trainer_utils import IntervalStrategy

from st_llm_embed.doctor.probe import DOCUMENTS, MINIMUM_COSINE, OTHER_INSTRUCTION, QUESTION, SIXTEEN_BIT_COSINE
from st_llm_embed.errors import InputError, Problems, explained
from st_llm_embed.instructions import instruction_prompt
from st_llm_embed.modules.base import load_tokenizer
from st_llm_embed.modules.layout import base_path
from st_llm_embed.modules.loading import check_weights, saved_name
from st_llm_embed.modules.model import LLMSentenceTransformer
from st_llm_embed.recipe import EMBEDDED, Dtype, Recipe
from st_llm_embed.training.adapter import decoder_without_weights, quantization_config
from st_llm_embed.training.arguments import training_arguments
from st_llm_embed.training.reporting import check_reporting
from st_llm_embed.training.sections import BASE_ADVICE
from st_llm_embed.training.trainer import build_trainer

TEXTS = (*DOCUMENTS.values(), instruction_prompt(OTHER_INSTRUCTION) + QUESTION)
"""What models are compared by: short and long texts in several scripts, with and without an instruction."""

ROUNDING_COSINE: dict[Dtype, float] = {
    "float32": MINIMUM_COSINE,
    "bfloat16": SIXTEEN_BIT_COSINE,
    "float16": SIXTEEN_BIT_COSINE,
}
"""Cosine similarity of two vectors that differ by rounding alone."""

REFERENCE_FILE = "reference_vectors.json"
"""In the folder of a training: texts, and the vectors that the trained model gave them while it was in memory."""


def check_training(recipe: Recipe) -> None:
    """Build everything that training builds, except for the weights.

    Raises:
        InputError: the base, its tokenizer, or the lora or training section cannot be used.
    """
    problems = Problems()
    with problems.collected():
        quantization_config(recipe)
    for training in recipe.trainings():
        with problems.collected():
            _rehearse_trainer(training)
    with problems.collected():
        _check_base(recipe)
    problems.report()


def _check_base(recipe: Recipe) -> None:
    name = recipe.base.name_or_path
    with explained(f"The base model {name!r} cannot be loaded", BASE_ADVICE):
        tokenizer = load_tokenizer(name, revision=recipe.base.revision, max_seq_length=recipe.base.max_seq_length)
        _check_weights(Path(base_path(name)))
    decoder = decoder_without_weights(recipe)
    vocabulary = len(cast(Tensor, decoder.get_input_embeddings().weight))
    around = tokenizer("")["input_ids"]
    if max(around) >= vocabulary:
        raise InputError(
            f"The tokenizer of the base model {name!r} puts the tokens {tokenizer.convert_ids_to_tokens(around)} "
            f"around a text, and one of them is outside the model's vocabulary of {vocabulary}. Give tokenizer and "
            "model that belong together."
        )
    dimensions = decoder.config.get_text_config().hidden_size
    for training in recipe.trainings():
        if training.loss.matryoshka_dims and max(training.loss.matryoshka_dims) != dimensions:
            raise InputError(
                f"loss.matryoshka_dims is {list(training.loss.matryoshka_dims)}, and the vectors of the base model "
                f"{name!r} have {dimensions} dimensions. Make that the largest number."
            )


def _check_weights(folder: Path) -> None:
    """Compare the headers of a local base's weight files with what its configuration asks for."""
    if not folder.is_dir():
        return
    decoder, report = AutoModel.from_pretrained(
        str(folder),
        device_map="meta",
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        trust_remote_code=False,
    )
    check_weights(str(folder), decoder, report)


def _rehearse_trainer(recipe: Recipe) -> None:
    """Build the trainer, its data loader and its optimizer around the small base of the package."""
    # The small base may have fewer dimensions than the recipe's, and these rows have no negatives; two rows fill no
    # batch of our own.
    loss = recipe.loss.model_copy(update={"matryoshka_dims": (), "own_negatives_only": ()})
    rehearsed = recipe.model_copy(update={"loss": loss, "batches": None})
    texts = {name: ["a", "b"] for name in ("anchor", "positive", "instruction")}
    rows = DatasetDict({"sts": Dataset.from_dict(texts)})
    with TemporaryDirectory() as folder:
        arguments = training_arguments(recipe, Path(folder))
        arguments.push_to_hub = False
        check_reporting(arguments, "training")
        model = LLMSentenceTransformer.from_base(EMBEDDED, max_seq_length=16)
        # Where the card has examples, the trainer computes none, with a progress bar of its own.
        model.model_card_data.widget = [{"text": "a"}]
        with explained(f"Recipe {recipe.name}: the training section is refused", "Change what the message names."):
            evaluator = None if arguments.eval_strategy == IntervalStrategy.NO else SentenceEvaluator()
            trainer = build_trainer(rehearsed, model, rows, arguments, evaluator)
            trainer.get_train_dataloader()
            trainer.create_optimizer_and_scheduler(num_training_steps=1)


def vectors_of(model: SentenceTransformer) -> Tensor:
    """Encode `TEXTS`; float32 on the CPU, of shape (texts, hidden size)."""
    return model.encode(list(TEXTS), prompt="", convert_to_tensor=True, show_progress_bar=False).float().cpu()


def check_trained(model: SentenceTransformer, before: Tensor) -> Tensor:
    """Check that training changed a model, and left it intact.

    Args:
        model: after training, its adapter not merged.
        before: its `vectors_of` before training.

    Returns:
        Its `vectors_of` now.

    Raises:
        InputError: a weight is not finite, no weight of the adapter moved, or the vectors are those of the start.
    """
    weights = dict(model.named_parameters())
    broken = sorted(name for name, weight in weights.items() if not torch.isfinite(weight).all())
    if broken:
        raise InputError(
            f"Training ended with weights that are not finite in {len(broken)} of {len(weights)} tensors, such as "
            f"{broken[0]}, and the model is not saved; log.json has the loss at each step. Lower "
            "training.learning_rate, or take bf16 in place of fp16."
        )
    adapter = [weight for name, weight in weights.items() if ".lora_B." in name]
    if adapter and not any(weight.any() for weight in adapter):
        raise InputError(
            "Training left the adapter as it was drawn: every lora_B weight is zero, so the model is the base. "
            "Set training.learning_rate above zero and let training take more steps than it warms up."
        )
    after = vectors_of(model)
    if not torch.isfinite(after).all() or torch.equal(before, after):
        kind = "are those of the untrained model" if torch.equal(before, after) else "are not finite"
        raise InputError(
            f"After training the vectors of the reference texts {kind}, and the model is not saved. Set "
            "training.learning_rate above zero, not too high, and let training take more steps than it warms up."
        )
    return after


def check_saved_adapter(model: SentenceTransformer, folder: Path) -> None:
    """Compare the adapter that was written to a folder with the one in memory, tensor by tensor.

    Raises:
        InputError: they differ.
    """
    in_memory = cast(Transformer, model[0]).model.get_adapter_state_dict()
    trained = {saved_name(name): weight for name, weight in in_memory.items()}
    saved = {
        name.removeprefix("base_model.model."): weight
        for name, weight in load_file(folder / "adapter_model.safetensors").items()
    }
    different = trained.keys() ^ saved.keys()
    different |= {name for name in trained.keys() & saved.keys() if not torch.equal(trained[name].cpu(), saved[name])}
    if different:
        raise InputError(
            f"{len(different)} tensors of the adapter in {folder} are not those that were trained, such as "
            f"{min(different)}. The model is not saved. Check the disk and run again."
        )


def check_same_vectors(name: str, vectors: Tensor, other_name: str, others: Tensor, dtype: Dtype) -> None:
    """Compare the vectors of two models that ought to be the same except for rounding in `dtype`.

    Raises:
        InputError: they differ, or are not finite.
    """
    least = cosine_similarity(vectors, others, dim=1).min().item()
    # Not the other way round: NaN is not above either.
    if not least > ROUNDING_COSINE[dtype]:
        raise InputError(
            f"The vectors of {name} differ from those of {other_name}: cosine similarity {least:.6f}, where rounding "
            f"in {dtype} leaves at least {ROUNDING_COSINE[dtype]}. The model is not saved. Train with base.dtype "
            "float32."
        )


def write_reference_vectors(vectors: Tensor, training_dir: Path) -> None:
    """Write what `vectors_of` returned for the trained model, so that nobody has to load it again to compare."""
    content = json.dumps({"texts": TEXTS, "vectors": vectors.tolist()}, ensure_ascii=False)
    (training_dir / REFERENCE_FILE).write_text(content, encoding="utf-8")


def read_reference_vectors(training_dir: Path) -> tuple[list[str], NDArray[np.float32]]:
    """Read what `write_reference_vectors` wrote.

    Returns:
        The texts, which are encoded without a prompt, and their vectors, of shape (texts, hidden size).

    Raises:
        InputError: the file is missing or cannot be read.
    """
    path = training_dir / REFERENCE_FILE
    with explained(f"{path} cannot be read", "Train again, into another --output-dir."):
        content = json.loads(path.read_text(encoding="utf-8"))
        return content["texts"], np.array(content["vectors"], dtype=np.float32)
