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
from sentence_transformers.sentence_transformer.modules import (
    Dense,
    Normalize,
    Pooling,
    StaticEmbedding,
    Transformer,
)
from torch import nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, BertConfig, BertModel, PreTrainedTokenizerBase, set_seed

from st_llm_embed.errors import InputError, explained, shown
from st_llm_embed.instructions import published_prompts
from st_llm_embed.modules.base import is_decoder_only
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

LEAST_HIDDEN_SIZE = 8
"""Of fresh weights; as many as `dimensions` has at the least."""

NO_PROMPTS = {"query": "", "document": ""}


def build_student(
    student: Student,
    tokenizer: PreTrainedTokenizerBase | None,
    start: Callable[[PreTrainedTokenizerBase, int | None], NDArray[np.float32]] | None,
    texts: Iterable[str],
    *,
    teacher_dimension: int | None,
    instructions: Instructions,
    seed: int,
) -> SentenceTransformer:
    """Build the student that training starts from; the same weights each time.

    Args:
        student: the recipe's choices.
        tokenizer: of fresh weights and static kinds; None for a checkpoint.
        start: gives the teacher's vectors of a tokenizer's tokens, shape (tokens, dimension), on as many axes as asked
            for; None draws all from chance.
        texts: whose tokens say which are frequent.
        teacher_dimension: length of the teacher's vectors; None without a teacher.
        instructions: what a student that gets instructions has before its queries.
        seed: of what is drawn.

    Raises:
        InputError: the checkpoint or what is said of it cannot be used.
    """
    set_seed(seed)
    if tokenizer is None:
        model = _checkpoint(student)
    elif student.kind == "encoder":
        model = _fresh_encoder(student, tokenizer)
        if start is not None:
            transformer = cast(Any, model[0]).model
            # Two dimensions are for the weights.
            vectors = start(tokenizer, transformer.config.hidden_size - 2)
            _start_as_weighted_mean(transformer, _weighted(vectors, tokenizer, texts, special_tokens=True))
    else:
        model = _static(student, tokenizer, start, texts, teacher_dimension)
    model.prompts = dict(published_prompts(instructions) if student.instructions else NO_PROMPTS)
    model.default_prompt_name = None
    model.similarity_fn_name = "cosine"
    return model


def student_tokenizer(student: Student, teacher: PreTrainedTokenizerBase | None) -> PreTrainedTokenizerBase | None:
    """Load the tokenizer of fresh weights or of a static kind; None for a checkpoint, which has its own.

    Raises:
        InputError: it cannot be loaded, or is none of the fast ones that static kinds need.
    """
    if student.name_or_path is not None:
        return None
    tokenizer = teacher
    if student.tokenizer is not None:
        with explained(f"The tokenizer {shown(student.tokenizer)} cannot be loaded", "Give a Hub id or a folder."):
            tokenizer = cast(PreTrainedTokenizerBase, AutoTokenizer.from_pretrained(student.tokenizer))
    if tokenizer is None or not tokenizer.is_fast:
        raise InputError(
            f"The tokenizer of the student ({student.tokenizer or 'of the teacher'}) is no fast one, with a "
            "tokenizer.json. Name another with distillation.student.tokenizer."
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return tokenizer


def check_student(student: Student) -> None:
    """Check what is said of the student, without its weights.

    Raises:
        InputError: the checkpoint, its layers, the tokenizer, the settings of fresh weights or the length of texts
            cannot be used.
    """
    if student.tokenizer is not None:
        student_tokenizer(student, None)
    if student.bert is not None:
        with explained("distillation.student.bert is refused", "Change what the message names."):
            known = BertConfig().to_dict()
            if unknown := sorted(student.bert.keys() - known.keys()):
                raise ValueError(f"{', '.join(unknown)} is no argument of transformers.BertConfig")
            config = _bert_config(student)
            if config.num_hidden_layers < 1 or config.hidden_size < LEAST_HIDDEN_SIZE:
                raise ValueError(
                    f"num_hidden_layers is {config.num_hidden_layers} and hidden_size {config.hidden_size}; allowed "
                    f"are 1 or more and {LEAST_HIDDEN_SIZE} or more"
                )
            with torch.device("meta"):
                _check_positions(student, BertModel(config))
    if student.name_or_path is None:
        return
    with explained(f"The student {shown(student.name_or_path)} cannot be loaded", STUDENT_ADVICE):
        config = AutoConfig.from_pretrained(student.name_or_path, revision=student.revision)
    if is_decoder_only(config):
        raise InputError(
            f"The student {shown(student.name_or_path)} is of type {config.model_type!r}, a decoder. {STUDENT_ADVICE}"
        )
    most = getattr(config, "num_hidden_layers", None)
    if student.layers is not None and (most is None or student.layers > most):
        raise InputError(
            f"distillation.student.layers is {student.layers}, and {student.name_or_path} has "
            f"{most or 'no stack of'} layers. Give a number up to that, or null for all."
        )
    with (
        explained(f"The student {shown(student.name_or_path)} cannot be loaded", STUDENT_ADVICE),
        torch.device("meta"),
    ):
        model = AutoModel.from_config(config)
    _check_positions(student, model)
    if student.layers is not None:
        _stack_of_layers(model)


def known_dimensions(student: Student) -> int | None:
    """Give the length of the student's vectors where its section alone says it."""
    if student.dimensions is None and student.bert is not None:
        return _bert_config(student).hidden_size
    return student.dimensions


def _bert_config(student: Student, **own: int | None) -> BertConfig:
    """Give the configuration of fresh weights, with what is not the recipe's to say."""
    positions = {"max_position_embeddings": max(512, student.max_seq_length)}
    return BertConfig(**cast(dict[str, Any], positions | (student.bert or {}) | own))


def _check_positions(student: Student, model: nn.Module) -> None:
    """Refuse texts longer than the table of positions; an encoder without such a table has no longest text."""
    for name, table in model.named_modules():
        if not isinstance(table, nn.Embedding) or name.rpartition(".")[2] != "position_embeddings":
            continue
        # RoBERTa and its kin count from behind the padding's place.
        most = table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1)
        if student.max_seq_length > most:
            raise InputError(
                f"distillation.student.max_seq_length is {student.max_seq_length}, and "
                f"{student.name_or_path or 'distillation.student.bert'} has {most} positions for tokens. Set "
                f"max_seq_length to {most} or less"
                f"{'.' if student.bert is None else ', or bert.max_position_embeddings to more.'}"
            )


def _checkpoint(student: Student) -> SentenceTransformer:
    with explained(f"The student {shown(student.name_or_path)} cannot be loaded", STUDENT_ADVICE):
        model = SentenceTransformer(student.name_or_path, revision=student.revision)
    if student.layers is not None:
        _keep_layers(cast(Transformer, model[0]), student.layers)
    return _finished(student, list(model.children()))


def _fresh_encoder(student: Student, tokenizer: PreTrainedTokenizerBase) -> SentenceTransformer:
    config = _bert_config(student, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id)
    with TemporaryDirectory() as folder:
        BertModel(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        transformer = Transformer(folder)
    return _finished(student, [transformer, Pooling(config.hidden_size, pooling_mode="mean")])


def _finished(student: Student, modules: list[nn.Module]) -> SentenceTransformer:
    """Add what makes vectors of the length asked for, and of unit length."""
    modules = [module for module in modules if not isinstance(module, Normalize)]
    own = int(SentenceTransformer(modules=modules, device="cpu").get_embedding_dimension() or 0)
    if student.dimensions not in (None, own):
        modules.append(Dense(own, student.dimensions, bias=False, activation_function=nn.Identity()))
    model = SentenceTransformer(modules=[*modules, Normalize()])
    model.max_seq_length = student.max_seq_length
    return model


def _keep_layers(transformer: Transformer, count: int) -> None:
    """Cut the stack of layers down to some, evenly spread from first to last."""
    config: Any = transformer.config
    parent, name, layers = _stack_of_layers(transformer.model)
    kept = np.linspace(0, len(layers) - 1, count).round().astype(int).tolist()
    setattr(parent, name, nn.ModuleList(layers[number] for number in kept))
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[number] for number in kept]
    config.num_hidden_layers = count


def _stack_of_layers(model: Any) -> tuple[nn.Module, str, nn.ModuleList]:
    """Give the stack of an encoder's layers, with the module that holds it and its name there.

    Raises:
        InputError: it has none, as ALBERT, all of whose layers are the same one.
    """
    config = model.config
    for module in model.modules():
        for name, part in module.named_children():
            if isinstance(part, nn.ModuleList) and len(part) == config.num_hidden_layers:
                return module, name, part
    raise InputError(
        f"distillation.student.layers says how many layers to keep, and this encoder, of type {config.model_type!r}, "
        f"shares its layers: there is no stack of {config.num_hidden_layers} to choose from. Leave layers out."
    )


def _static(
    student: Student,
    tokenizer: PreTrainedTokenizerBase,
    start: Callable[[PreTrainedTokenizerBase, int | None], NDArray[np.float32]] | None,
    texts: Iterable[str],
    teacher_dimension: int | None,
) -> SentenceTransformer:
    dimensions = student.dimensions or teacher_dimension
    assert dimensions is not None  # noqa: S101 - the recipe's own check
    if start is None:
        drawn = np.random.default_rng(torch.initial_seed() % 2**32)
        vectors = drawn.normal(scale=dimensions**-0.5, size=(len(tokenizer), dimensions)).astype(np.float32)
    else:
        vectors = start(tokenizer, None if dimensions == teacher_dimension else dimensions)
    embedding = StaticEmbedding(cast(Any, tokenizer), embedding_weights=_weighted(vectors, tokenizer, texts))
    return SentenceTransformer(modules=[embedding, Normalize()])


def _weighted(
    vectors: NDArray[np.float32],
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str],
    *,
    special_tokens: bool = False,
) -> NDArray[np.float32]:
    """Make the vectors of frequent tokens shorter: what all texts have says nothing of one."""
    counts: Counter[int] = Counter()
    for text, _ in zip(texts, range(COUNTED_TEXTS), strict=False):
        counts.update(tokenizer(text, add_special_tokens=special_tokens)["input_ids"])
    share = np.array([counts[number] for number in range(len(vectors))]) / max(counts.total(), 1)
    return (vectors * (RARE / (RARE + share))[:, None]).astype(np.float32)


def _start_as_weighted_mean(bert: Any, vectors: NDArray[np.float32]) -> None:
    """Make a fresh BERT begin as the mean of token vectors, each weighted by its length.

    Layer normalisation makes all token vectors equally long, so the weights go another way: the first layer's
    attention looks at each token by the logarithm of its length, which stands in the last two dimensions (twice, with
    both signs, so that normalisation changes nothing), and adds what it sees to every token. All other weights stay as
    drawn.

    Args:
        bert: whose weights are set.
        vectors: of the tokens, shape (tokens, hidden size - 2 or less).
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
        # Normalisation undoes their size; as small as BERT draws them they move soon enough in training.
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
