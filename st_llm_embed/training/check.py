"""What can be found wrong with a training before it starts, in seconds and without writing anything."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from datasets import Dataset, DatasetDict
from sentence_transformers.sentence_transformer.evaluation import SentenceEvaluator
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers.trainer_utils import IntervalStrategy

from st_llm_embed.errors import InputError, explained
from st_llm_embed.modules import LLMSentenceTransformer, base_path, load_tokenizer
from st_llm_embed.recipe import EMBEDDED, Recipe
from st_llm_embed.training.adapter import add_without_weights
from st_llm_embed.training.arguments import training_arguments
from st_llm_embed.training.reporting import check_reporting
from st_llm_embed.training.starting_model import BASE_ADVICE, quantization_config
from st_llm_embed.training.train import build_trainer


def check_training(recipe: Recipe) -> None:
    """Build everything that training builds, but the weights.

    Raises:
        InputError: the base, its tokenizer, or the lora or training section cannot be used.
    """
    quantization_config(recipe)
    trainings = recipe.trainings()
    for training in trainings:
        _rehearse_trainer(training)
    name = recipe.base.name_or_path
    with explained(f"The base model {name!r} cannot be loaded", BASE_ADVICE):
        tokenizer = load_tokenizer(name, revision=recipe.base.revision, max_seq_length=recipe.base.max_seq_length)
        decoder = _decoder_without_weights(recipe)
    vocabulary = decoder.get_input_embeddings().num_embeddings
    if max(tokenizer("")["input_ids"]) >= vocabulary:
        raise InputError(
            f"The tokenizer of the base model {name!r} puts the tokens "
            f"{tokenizer.convert_ids_to_tokens(tokenizer('')['input_ids'])} around a text, and one of them is outside "
            f"the model's vocabulary of {vocabulary}. Give tokenizer and model that belong together."
        )
    dimensions = decoder.config.get_text_config().hidden_size
    for training in trainings:
        if training.loss.matryoshka_dims and max(training.loss.matryoshka_dims) != dimensions:
            raise InputError(
                f"loss.matryoshka_dims is {list(training.loss.matryoshka_dims)}, and the vectors of the base model "
                f"{name!r} have {dimensions} dimensions. The largest number has to be that, so that whole vectors are "
                "trained, too."
            )
    add_without_weights(decoder, recipe)


def _decoder_without_weights(recipe: Recipe) -> PreTrainedModel:
    """Build the base on the meta device; of a local folder the headers of its weight files are read, too."""
    path = base_path(recipe.base.name_or_path)
    if not Path(path).is_dir():
        config = AutoConfig.from_pretrained(path, revision=recipe.base.revision)
        with torch.device("meta"):
            return AutoModel.from_config(config)
    decoder, loaded = AutoModel.from_pretrained(path, device_map="meta", output_loading_info=True)
    if loaded["missing_keys"]:
        raise InputError(
            f"The weights of the base model {path} lack {len(loaded['missing_keys'])} tensors of a "
            f"{type(decoder).__name__}, such as {min(loaded['missing_keys'])}. Give a folder whose config.json and "
            "weights belong together."
        )
    return decoder


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
