"""The student before training: an encoder's checkpoint, a fresh encoder, or token vectors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from tempfile import TemporaryDirectory
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, StaticEmbedding, Transformer
from torch import nn
from transformers import AutoConfig, AutoModel, BertConfig, BertModel, PreTrainedTokenizerBase, set_seed

from st_llm_embed.errors import InputError, explained, shown
from st_llm_embed.instructions import published_prompts
from st_llm_embed.modules.base import is_decoder_only
from st_llm_embed.modules.stock import load_stock
from st_llm_embed.recipe import Instructions, Student

STUDENT_ADVICE = "Give the Hub id or folder of an encoder such as BERT, XLM-R or MiniLM as distillation.student."

RARE = 1e-3
"""Tokens that make up this share of all or more begin with half of their vector or less (arXiv 1711.01541, SIF)."""

COUNTED_TEXTS = 20_000
"""Texts whose tokens are counted for that."""

LEAST_WEIGHT = 1e-4
"""Of a token in the mean that a fresh encoder begins as, as a share of the greatest weight."""

MEAN_OVER_OWN = 4.0
"""How much larger the mean is than a token's own vector in what a fresh encoder begins with."""


def build_student(
    student: Student,
    tokenizer: PreTrainedTokenizerBase,
    token_vectors: Callable[[int | None], NDArray[np.float32]],
    texts: Iterable[str],
    *,
    instructions: Instructions,
    seed: int,
) -> SentenceTransformer:
    """Build the student that training starts from; the same weights each time.

    Unless it starts from a checkpoint, it has the teacher's tokenizer, and its token vectors are those that
    `token_vectors` returns: the teacher's, shape (tokens, dimension), on at most as many axes as asked for; those of
    tokens that are frequent in `texts` made shorter. `instructions` are the teacher's.
    """
    set_seed(seed)
    if student.name_or_path is not None:
        model = _checkpoint(student)
    elif student.kind == "encoder":
        model = _fresh_encoder(student, tokenizer)
        transformer = cast(Any, model[0]).model
        # Two dimensions are for the weights.
        vectors = token_vectors(transformer.config.hidden_size - 2)
        _start_as_weighted_mean(transformer, _weighted(vectors, tokenizer, texts, special_tokens=True))
    else:
        vectors = _weighted(token_vectors(student.dimensions), tokenizer, texts, special_tokens=False)
        embedding = StaticEmbedding(cast(Any, tokenizer), embedding_weights=vectors)
        model = SentenceTransformer(modules=[embedding, Normalize()])
    prompts = published_prompts(instructions) if student.instructions else {"query": "", "document": ""}
    model.prompts = dict(prompts)
    model.default_prompt_name = None
    model.similarity_fn_name = "cosine"
    return model


def check_student(student: Student) -> None:
    """Check what is said of the student, without its weights.

    Raises:
        InputError: the checkpoint, its layers, the settings of fresh weights or the length of texts cannot be used.
    """
    if student.bert is not None:
        _check_bert(student, student.bert)
    if (name := student.name_or_path) is None:
        return
    with explained(f"The student {shown(name)} cannot be loaded", STUDENT_ADVICE):
        config = AutoConfig.from_pretrained(name, revision=student.revision)
        if is_decoder_only(config):
            raise InputError(
                f"The student {shown(name)} is a decoder, of type {config.model_type!r}. {STUDENT_ADVICE}"
            )
        with torch.device("meta"):
            model = AutoModel.from_config(config)
    _check_positions(student, model)
    if student.layers is not None and student.layers > (most := len(_stack_of_layers(model)[-1])):
        raise InputError(
            f"distillation.student.layers is {student.layers}, and {name} has {most} layers. Set it to at most that."
        )


def _check_bert(student: Student, bert: dict[str, Any]) -> None:
    with explained("distillation.student.bert is refused", "Change what the message names."):
        if unknown := sorted(bert.keys() - BertConfig().to_dict().keys()):
            raise ValueError(f"{', '.join(unknown)} is not an argument of transformers.BertConfig")
        config = _bert_config(student)
        if config.num_hidden_layers < 1 or config.hidden_size < 8:
            raise ValueError("num_hidden_layers has to be 1 or more, and hidden_size 8 or more")
        with torch.device("meta"):
            _check_positions(student, BertModel(config))


def _bert_config(student: Student, **own: int | None) -> BertConfig:
    """Return the config of fresh weights, with what the recipe does not say."""
    positions = {"max_position_embeddings": max(512, student.max_seq_length)}
    return BertConfig(**cast(dict[str, Any], positions | (student.bert or {}) | own))


def _check_positions(student: Student, model: nn.Module) -> None:
    """Refuse texts longer than the table of positions; an encoder without such a table has no longest text."""
    for name, table in model.named_modules():
        if not isinstance(table, nn.Embedding) or name.rpartition(".")[2] != "position_embeddings":
            continue
        # RoBERTa and its like count from behind the padding's position.
        most = table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1)
        if student.max_seq_length > most:
            raise InputError(
                f"distillation.student.max_seq_length is {student.max_seq_length}, and "
                f"{student.name_or_path or 'distillation.student.bert'} has {most} positions for tokens. Set it to at "
                "most that."
            )


def _checkpoint(student: Student) -> SentenceTransformer:
    model = load_stock(cast(str, student.name_or_path), "student", STUDENT_ADVICE, revision=student.revision)
    if student.layers is not None:
        _keep_layers(cast(Transformer, model[0]).model, student.layers)
    return _finished(student, list(model.children()))


def _fresh_encoder(student: Student, tokenizer: PreTrainedTokenizerBase) -> SentenceTransformer:
    config = _bert_config(student, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id)
    with TemporaryDirectory() as folder:
        BertModel(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        transformer = Transformer(folder)
    return _finished(student, [transformer, Pooling(config.hidden_size, pooling_mode="mean")])


def _finished(student: Student, modules: list[nn.Module]) -> SentenceTransformer:
    """Add a projection to the length asked for, and Normalize."""
    modules = [module for module in modules if not isinstance(module, Normalize)]
    own = int(SentenceTransformer(modules=modules, device="cpu").get_embedding_dimension() or 0)
    if student.dimensions not in (None, own):
        modules.append(Dense(own, student.dimensions, bias=False, activation_function=nn.Identity()))
    model = SentenceTransformer(modules=[*modules, Normalize()])
    model.max_seq_length = student.max_seq_length
    return model


def _keep_layers(model: Any, count: int) -> None:
    """Cut the stack of layers down to some, evenly spread from first to last."""
    config = model.config
    parent, name, layers = _stack_of_layers(model)
    kept = np.linspace(0, len(layers) - 1, count).round().astype(int).tolist()
    setattr(parent, name, nn.ModuleList(layers[number] for number in kept))
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[number] for number in kept]
    config.num_hidden_layers = count


def _stack_of_layers(model: Any) -> tuple[nn.Module, str, nn.ModuleList]:
    """Return the module that holds an encoder's stack of layers, its name there, and the stack."""
    for module in model.modules():
        for name, part in module.named_children():
            if isinstance(part, nn.ModuleList) and len(part) == model.config.num_hidden_layers:
                return module, name, part
    raise InputError(
        f"distillation.student.layers cannot be used: {model.config.model_type!r} has one layer, used again. Omit it."
    )


def _weighted(
    vectors: NDArray[np.float32], tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], *, special_tokens: bool
) -> NDArray[np.float32]:
    """Make the vectors of frequent tokens shorter: what all texts have says nothing of one."""
    counts: Counter[int] = Counter()
    for text, _ in zip(texts, range(COUNTED_TEXTS), strict=False):
        counts.update(tokenizer(text, add_special_tokens=special_tokens)["input_ids"])
    share = np.array([counts[number] for number in range(len(vectors))]) / max(counts.total(), 1)
    return (vectors * (RARE / (RARE + share))[:, None]).astype(np.float32)


def _start_as_weighted_mean(bert: Any, vectors: NDArray[np.float32]) -> None:
    """Make a fresh BERT begin as the mean of token vectors, shape (tokens, hidden size - 2 or less), by their lengths.

    Layer normalization makes all token vectors equally long, so the first layer's attention weights each token by the
    logarithm of its length, which is in the last two dimensions (with both signs, so that normalization changes
    nothing), and adds the mean to every token. All other weights stay as drawn.
    """
    config = bert.config
    size, head = config.hidden_size, config.hidden_size // config.num_attention_heads
    lengths = np.linalg.norm(vectors, axis=1)
    logarithms = np.log(np.maximum(lengths, lengths.max() * LEAST_WEIGHT))
    logarithms -= logarithms.mean()
    scale = float(np.abs(logarithms).max())
    weights = logarithms / max(scale, 1e-12)
    vectors = np.pad(vectors, ((0, 0), (0, size - 2 - vectors.shape[1])))
    directions = vectors - vectors.mean(axis=1, keepdims=True)
    directions /= np.maximum(np.linalg.norm(directions, axis=1, keepdims=True), 1e-12)
    directions *= np.sqrt(size - 2 * weights**2)[:, None]
    tokens = np.concatenate([directions, weights[:, None], -weights[:, None]], axis=1)
    first = bert.encoder.layer[0].attention
    with torch.no_grad():
        # Normalization undoes their size; as small as BERT draws them they move soon enough in training.
        small = config.initializer_range * torch.from_numpy(tokens.astype(np.float32))
        bert.embeddings.word_embeddings.weight[: len(tokens)] = small
        bert.embeddings.position_embeddings.weight.zero_()
        bert.embeddings.token_type_embeddings.weight.zero_()
        first.self.query.weight[::head] = 0
        first.self.query.bias[::head] = scale * head**0.5
        first.self.key.weight[::head] = 0
        first.self.key.weight[::head, -2] = 1
        first.self.value.weight.copy_(torch.eye(size))
        first.output.dense.weight.copy_(MEAN_OVER_OWN * torch.eye(size))
        first.output.dense.weight[-2:] = 0
