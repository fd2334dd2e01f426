"""encode: instructions, shared prefix, token budgets, and what stock promises."""

from __future__ import annotations

import copy
import json
import logging
import pickle
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from peft import LoraConfig
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

from st_llm_embed import InputError, LLMSentenceTransformer
from st_llm_embed.modules.texts import batches, groups, under_instructions

INSTRUCTION = "Given a question about some subject, retrieve the answer to it"
PROMPT = f"Instruct: {INSTRUCTION}\nQuery: "
QUERIES = [f"question {number} about {'thing ' * (number % 9)}" for number in range(40)]


@pytest.fixture(scope="module")
def folder(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved")
    LLMSentenceTransformer.from_base(str(tiny_base), max_seq_length=64, device="cpu").save_pretrained(str(path))
    return path


@pytest.fixture
def ours(folder: Path) -> LLMSentenceTransformer:
    return LLMSentenceTransformer(str(folder), device="cpu")


@pytest.fixture
def stock(folder: Path) -> SentenceTransformer:
    return SentenceTransformer(str(folder), device="cpu")


@pytest.fixture(scope="module")
def wrong_inputs_model(folder: Path) -> LLMSentenceTransformer:
    return LLMSentenceTransformer(str(folder), device="cpu")


@pytest.fixture
def forwards(ours: LLMSentenceTransformer) -> list[tuple[int, ...]]:
    """Shapes of the token ids that go through the language model."""
    shapes: list[tuple[int, ...]] = []
    embeddings = ours[0].model.get_input_embeddings()
    embeddings.register_forward_pre_hook(lambda _, ids: shapes.append(tuple(ids[0].shape)))
    return shapes


def close(one: np.ndarray, other: np.ndarray) -> None:
    np.testing.assert_allclose(one, other, atol=1e-6)


def test_an_instruction_equals_the_stock_prompt(ours: LLMSentenceTransformer, stock: SentenceTransformer) -> None:
    expected = stock.encode(QUERIES, prompt=PROMPT)
    close(ours.encode(QUERIES, instruction=INSTRUCTION), expected)
    close(ours.encode_query(QUERIES, instruction=INSTRUCTION), expected)
    close(ours.encode_query(QUERIES[0], instruction=INSTRUCTION), expected[0])
    close(ours.encode(QUERIES, prompt=PROMPT), expected)


def test_an_instruction_per_query(ours: LLMSentenceTransformer, stock: SentenceTransformer) -> None:
    instructions = [f"Find number {number % 3}" for number in range(len(QUERIES))]
    expected = stock.encode([f"Instruct: {i}\nQuery: {q}" for i, q in zip(instructions, QUERIES, strict=True)])
    close(ours.encode_query(QUERIES, instruction=instructions), expected)
    ours.default_prompt_name = "query"
    close(ours.encode(QUERIES, instruction=instructions), expected)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"instruction": ["a", "b"]}, "2 instructions are given for 40 texts"),
        ({"instruction": [*["a"] * 39, None]}, "Text 39 is a str and its instruction a NoneType"),
        ({"instruction": "a", "task": "document"}, "Documents take no instruction"),
        ({"instruction": "a", "prompt": "b"}, "either an instruction or a prompt"),
        ({"instruction": "a", "prompt_name": "query"}, "either an instruction or a prompt"),
        ({"batch_num_tokens": 0}, "batch_num_tokens is 0"),
        ({"batch_num_tokens": 100, "output_value": "token_embeddings"}, "batch_num_tokens is for"),
        ({"batch_num_tokens": 9, "processing_kwargs": {"text": {"max_length": 8}}}, "batch_num_tokens is for"),
    ],
)
def test_contradicting_arguments_are_refused(
    arguments: dict[str, object], expected: str, ours: LLMSentenceTransformer
) -> None:
    with pytest.raises(InputError, match=expected):
        ours.encode(QUERIES, **arguments)


def test_pairs_behave_as_in_stock(ours: LLMSentenceTransformer, stock: SentenceTransformer) -> None:
    pairs = [["one", "two"], ["three", "four five"]]
    close(ours.encode(pairs), stock.encode(pairs))
    close(ours.encode(pairs, instruction=INSTRUCTION), stock.encode(pairs, prompt=PROMPT))
    with pytest.raises(InputError, match="Text 0 is a list"):
        ours.encode(pairs, instruction=["a", "b"])


def test_arguments_by_position_and_by_their_old_name(ours: LLMSentenceTransformer, stock: SentenceTransformer) -> None:
    expected = stock.encode(QUERIES, prompt=PROMPT)
    close(ours.encode(QUERIES, None, PROMPT, 8), expected)
    close(ours.encode(QUERIES, None, None, 8, instruction=INSTRUCTION), expected)
    close(ours.encode(sentences=QUERIES, instruction=INSTRUCTION), expected)
    close(ours.encode_query(sentences=QUERIES, prompt=PROMPT), expected)
    close(ours.encode_query(QUERIES, None, None, 8, instruction=[INSTRUCTION] * 40), expected)
    close(ours.encode(QUERIES, "STS"), stock.encode(QUERIES, "STS"))
    close(ours.encode(sentences=QUERIES), stock.encode(QUERIES))
    close(ours.encode_document(sentences=QUERIES), stock.encode(QUERIES))


def test_the_shared_tokens_go_through_the_model_once(
    ours: LLMSentenceTransformer, forwards: list[tuple[int, ...]]
) -> None:
    ours.encode(QUERIES, instruction=INSTRUCTION, batch_size=16)
    ids = ours[0].token_ids([PROMPT + query for query in QUERIES])
    (one, shared), *batches = forwards
    assert one == 1
    assert shared >= len(ours[0].token_ids([PROMPT])[0]) - 3
    assert [texts for texts, _ in batches] == [16, 16, 8]
    assert batches[0][1] == max(map(len, ids)) - shared


def test_every_instruction_goes_through_the_model_once(
    ours: LLMSentenceTransformer, stock: SentenceTransformer, forwards: list[tuple[int, ...]]
) -> None:
    names = [("first", "second")[number % 2] if number < 36 else f"rare {number}" for number in range(40)]
    instructions = [f"{INSTRUCTION}, of the {name} kind" for name in names]
    got = ours.encode_query(QUERIES, instruction=instructions, batch_size=9)
    close(got, stock.encode([f"Instruct: {i}\nQuery: {q}" for i, q in zip(instructions, QUERIES, strict=True)]))
    # Two groups of 18 texts, then the four that are alone with their instruction, which still begin alike.
    assert [texts for texts, _ in forwards] == [1, 9, 9, 1, 9, 9, 1, 4]
    assert forwards[0][1] > len(ours[0].token_ids([f"Instruct: {INSTRUCTION}"])[0]) - 2 > forwards[1][1]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda model: setattr(model.tokenizer, "padding_side", "left"),
        lambda model: setattr(model[0].model.config, "is_causal", False),
        lambda model: setattr(model[0].model.config, "sliding_window", 16),
    ],
    ids=["left padding", "bidirectional", "sliding window"],
)
def test_sharing_is_off_where_it_would_be_wrong(
    spoil: Callable[[LLMSentenceTransformer], None],
    ours: LLMSentenceTransformer,
    stock: SentenceTransformer,
    forwards: list[tuple[int, ...]],
) -> None:
    spoil(ours)
    spoil(stock)
    close(ours.encode(QUERIES, instruction=INSTRUCTION), stock.encode(QUERIES, prompt=PROMPT))
    assert all(texts > 1 for texts, _ in forwards)


LONG = [f"{'long ' * 100}{number}" for number in range(4)] + ["short"]


@pytest.mark.parametrize("texts", [["one"], ["same"] * 5, ["", "a"], QUERIES[:3], [], LONG])
def test_few_equal_empty_and_long_texts(
    texts: list[str], ours: LLMSentenceTransformer, stock: SentenceTransformer
) -> None:
    close(ours.encode(texts, instruction=INSTRUCTION), stock.encode(texts, prompt=PROMPT))
    close(ours.encode(texts), stock.encode(texts))


def test_weights_dtype_and_adapter_may_change_between_calls(
    ours: LLMSentenceTransformer, stock: SentenceTransformer
) -> None:
    ours.encode(QUERIES, instruction=INSTRUCTION)
    for model in (ours, stock):
        torch.manual_seed(0)
        model.add_adapter(LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    close(ours.encode(QUERIES, instruction=INSTRUCTION), stock.encode(QUERIES, prompt=PROMPT))
    for model in (ours, stock):
        with torch.no_grad():
            model[0].model.get_input_embeddings().weight.mul_(1.5)
    close(ours.encode(QUERIES, instruction=INSTRUCTION), stock.encode(QUERIES, prompt=PROMPT))
    for model in (ours, stock):
        model.to(torch.bfloat16)
    halves = ours.encode(QUERIES, instruction=INSTRUCTION), stock.encode(QUERIES, prompt=PROMPT)
    alone = stock.encode(QUERIES, prompt=PROMPT, batch_size=1)
    noise = (halves[1] * alone).sum(axis=1).min()
    assert (halves[0] * halves[1]).sum(axis=1).min() >= min(noise, 0.999) - 1e-3


def test_batches_keep_within_a_token_budget(
    ours: LLMSentenceTransformer, stock: SentenceTransformer, forwards: list[tuple[int, ...]]
) -> None:
    close(ours.encode(QUERIES, batch_num_tokens=100), stock.encode(QUERIES))
    assert all(texts * length <= 100 for texts, length in forwards)
    assert sum(texts for texts, _ in forwards) == len(QUERIES)
    lengths = [length for _, length in forwards]
    assert lengths == sorted(lengths, reverse=True)


@pytest.mark.parametrize("pooling_mode", ["mean", "cls"])
def test_models_of_other_pooling_load_and_save_unchanged(pooling_mode: str, tiny_base: Path, tmp_path: Path) -> None:
    transformer = Transformer(str(tiny_base))
    transformer.tokenizer.pad_token = transformer.tokenizer.eos_token
    pooling = Pooling(transformer.get_embedding_dimension(), pooling_mode=pooling_mode)
    stock = SentenceTransformer(modules=[transformer, pooling], device="cpu")
    stock.save_pretrained(str(tmp_path / "stock"))
    ours = LLMSentenceTransformer(str(tmp_path / "stock"), device="cpu")
    texts = ["one text", "another, longer text"]
    np.testing.assert_array_equal(ours.encode(texts), stock.encode(texts))
    ours.save_pretrained(str(tmp_path / "ours"))
    again = SentenceTransformer(str(tmp_path / "ours"), device="cpu")
    np.testing.assert_array_equal(again.encode(texts), stock.encode(texts))


def test_threads_do_not_meet_each_others_prefix(ours: LLMSentenceTransformer, stock: SentenceTransformer) -> None:
    instructions = [f"{INSTRUCTION} number {number} of {'many ' * number}" for number in range(4)] * 4
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda one: ours.encode(QUERIES[:8], instruction=one), instructions))
    for one, vectors in zip(instructions, got, strict=True):
        close(vectors, stock.encode([f"Instruct: {one}\nQuery: {query}" for query in QUERIES[:8]]))


def test_texts_keep_their_prompt_between_processes() -> None:
    texts = pickle.loads(pickle.dumps(under_instructions(["x"] * 32, ["a", "b"] * 16)))  # noqa: S301
    assert groups(texts, "") == [
        ("Instruct: a\nQuery: ", list(range(0, 32, 2))),
        ("Instruct: b\nQuery: ", list(range(1, 32, 2))),
    ]


@pytest.mark.parametrize("options", [{"pad_to_multiple_of": 16}, {"padding": "max_length"}])
def test_padding_options_are_respected(
    options: dict[str, object],
    ours: LLMSentenceTransformer,
    stock: SentenceTransformer,
    forwards: list[tuple[int, ...]],
) -> None:
    expected = stock.encode(QUERIES)
    ours[0].processing_kwargs = {"text": options}
    close(ours.encode(QUERIES), expected)
    assert all(length % 16 == 0 for _, length in forwards)


def test_a_tokenizer_without_a_pad_token_will_do(ours: LLMSentenceTransformer, stock: SentenceTransformer) -> None:
    ours.tokenizer.pad_token = None
    close(ours.encode(QUERIES), stock.encode(QUERIES))


def test_batches_cover_every_text_once() -> None:
    assert list(batches([9, 5, 5, 2, 1], 2, None, None)) == [(0, 2), (2, 4), (4, 5)]
    assert list(batches([9, 5, 5, 2, 1], 2, 10, None)) == [(0, 1), (1, 3), (3, 5)]
    assert list(batches([9, 5], 2, 4, None)) == [(0, 1), (1, 2)]
    assert list(batches([9, 5, 5, 2, 1], 2, None, 5)) == [(0, 1), (1, 3), (3, 5)]


def test_an_instruction_that_leaves_no_room_is_warned_about(
    ours: LLMSentenceTransformer, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="st_llm_embed"):
        ours.encode(["where is it?"], instruction="too long " * 60)
        assert "where is it?" in caplog.text
        assert "64 tokens" in caplog.text
        caplog.clear()
        ours.encode(["where is it?"], instruction=INSTRUCTION)
        assert not caplog.text


def test_stock_options_behave_as_in_stock(ours: LLMSentenceTransformer, stock: SentenceTransformer) -> None:
    texts = QUERIES[:8]
    for options in (
        {"truncate_dim": 8},
        {"truncate_dim": 8, "normalize_embeddings": True},
        {"prompt_name": "STS"},
        {"output_value": "token_embeddings"},
        {"output_value": None},
        {"convert_to_numpy": False},
        {"convert_to_tensor": True},
    ):
        for pair in zip(ours.encode(texts, **options), stock.encode(texts, **options), strict=True):
            got, expected = (one["sentence_embedding"] if isinstance(one, dict) else one for one in pair)
            close(np.asarray(got), np.asarray(expected))
    np.testing.assert_array_equal(ours.encode(texts, precision="binary"), stock.encode(texts, precision="binary"))


@pytest.mark.integration
def test_several_processes_give_the_vectors_of_one(ours: LLMSentenceTransformer) -> None:
    expected = ours.encode(QUERIES, instruction=INSTRUCTION)
    pool = ours.start_multi_process_pool(["cpu", "cpu"])
    try:
        close(ours.encode(QUERIES, instruction=INSTRUCTION, pool=pool, chunk_size=10), expected)
        close(ours.encode_query(QUERIES, instruction=[INSTRUCTION] * len(QUERIES), pool=pool), expected)
    finally:
        ours.stop_multi_process_pool(pool)


def test_bidirectional_attention_and_split_special_tokens_survive_saving(tiny_base: Path, tmp_path: Path) -> None:
    model = LLMSentenceTransformer.from_base(str(tiny_base), max_seq_length=64, device="cpu")
    causal = model.encode(QUERIES)
    assert model[0].token_ids(["a </s> b"])[0].count(2) == 2
    model[0].config.is_causal = False
    model[0].processing_kwargs = {"text": {"split_special_tokens": True}}
    assert model[0].token_ids(["a </s> b"])[0].count(2) == 1
    model.save_pretrained(str(tmp_path))
    texts = [*QUERIES, "a </s> b"]
    expected = model.encode(texts)
    close(SentenceTransformer(str(tmp_path), device="cpu").encode(texts), expected)
    assert np.abs(expected[:40] - causal).max() > 1e-3
    close(model.encode(texts, batch_size=1), expected)
    close(model.encode(QUERIES, instruction=INSTRUCTION), model.encode([PROMPT + query for query in QUERIES]))


def test_a_repository_whose_tokenizer_lost_eos_is_repaired_with_a_warning(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(folder, tmp_path / "broken")
    path = tmp_path / "broken" / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    tokenizer["post_processor"] = None
    path.write_text(json.dumps(tokenizer), encoding="utf-8")
    with caplog.at_level(logging.WARNING, logger="st_llm_embed"):
        model = LLMSentenceTransformer(str(tmp_path / "broken"), device="cpu")
    assert "did not end texts with '</s>'" in caplog.text
    assert model[0].token_ids(["a"])[0][-1] == 2


def test_pooling_refuses_a_text_that_does_not_end_in_eos(ours: LLMSentenceTransformer) -> None:
    features = ours.preprocess(["a text", "another"])
    features["input_ids"][1, int(features["attention_mask"][1].sum()) - 1] = 5
    with pytest.raises(InputError, match="Text 1 of the batch ends in token 5"):
        ours(features)


def test_threads_do_not_meet_each_others_padding(ours: LLMSentenceTransformer, stock: SentenceTransformer) -> None:
    """Pad is EOS here: a text that is padded by another thread ends in more tokens of it than one."""
    texts = [f"{'word ' * (number % 13)}{number}" for number in range(24)]
    short = {"text": {"max_length": 8}}
    calls = {
        "plain": lambda model: model.encode(texts),
        "instruction": lambda model: model.encode_query(texts[:5]),
        "token embeddings": lambda model: model.encode(texts[:3], output_value="token_embeddings")[0].numpy(),
        "short": lambda model: model.encode(texts[:7], processing_kwargs=short),
        "tokens": lambda model: model.preprocess(texts[:4])["input_ids"].numpy(),
    }
    expected = {name: call(stock) for name, call in calls.items()}
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(5) as pool:
            names = [*calls] * 30
            got = list(pool.map(lambda name: calls[name](ours), names))
    finally:
        sys.setswitchinterval(interval)
    for name, result in zip(names, got, strict=True):
        np.testing.assert_allclose(result, expected[name], atol=1e-5, err_msg=name)


def test_a_model_is_copied_and_pickled(ours: LLMSentenceTransformer) -> None:
    for model in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):  # noqa: S301
        close(model.encode(QUERIES[:3]), ours.encode(QUERIES[:3]))


WRONG_INPUTS: list[tuple[Any, dict[str, Any], str]] = [
    (["a", None], {}, "Text 1 is None, a NoneType; every text has to be a str"),
    (["a", "b", float("nan")], {}, "Text 2 is nan, a float"),
    (["a", 5], {"instruction": ["x", "y"]}, "Text 1 is 5, a int"),
    (["a", ["b", 5]], {}, r"Text 1 is \['b', 5\], a list"),
    (["a", Path("b")], {}, "Text 1 is .*b'.*, a PosixPath"),
    (["a", b"b"], {}, "Text 1 is b'b', a bytes"),
    (["a", ("b", None)], {}, "Text 1 is"),
    (np.array(["a", 3], dtype=object), {}, "Text 1 is 3, a int"),
    (["ok", "bad \ud835 text"], {}, r"Text 1 is not Unicode, it holds half of a surrogate pair: 'bad \\ud835 text'"),
    ("caf\udce9", {"instruction": "x"}, "Text 0 is not Unicode"),
    ([["a", "\ud800"]], {}, "Text 0 is not Unicode"),
    (Path("a"), {}, "inputs is a PosixPath; it has to be a str, or a list of str"),
    (None, {}, "inputs is a NoneType"),
    (5, {}, "inputs is a int"),
    (b"a", {}, "inputs is a bytes"),
    ((text for text in "ab"), {}, "inputs is a generator"),
    (pd.Series(["a", "b"], index=[0, 2]), {}, r"inputs is a Series.*inputs\.tolist\(\)"),
    (pd.Series(["a", "b"]), {"instruction": ["x", "y"]}, "inputs is a Series"),
    ("a", {"instruction": 5}, "instruction is 5"),
    ("a", {"instruction": "x \ud800"}, "not Unicode"),
    ("a", {"prompt": "x \ud800"}, "not Unicode"),
    ("a", {"prompt": 5}, "prompt is 5"),
    ("a", {"batch_size": 0}, "batch_size is 0"),
    ("a", {"batch_size": -1}, "batch_size is -1"),
    ("a", {"batch_size": "5"}, "batch_size is '5'"),
    ("a", {"batch_num_tokens": "5"}, "batch_num_tokens is '5'"),
    ("a", {"truncate_dim": 0}, "truncate_dim is 0; the vectors have 32 dimensions"),
    ("a", {"truncate_dim": -5}, "truncate_dim is -5"),
    ("a", {"truncate_dim": 33}, "truncate_dim is 33"),
    ("a", {"truncate_dim": 8.0, "output_value": None}, r"truncate_dim is 8\.0"),
]


@pytest.mark.parametrize(("inputs", "options", "message"), WRONG_INPUTS)
def test_a_wrong_input_is_named(
    inputs: Any, options: dict[str, Any], message: str, wrong_inputs_model: LLMSentenceTransformer
) -> None:
    model = wrong_inputs_model
    for encode in (model.encode, model.encode_query):
        with pytest.raises(InputError, match=message):
            encode(inputs, **options)
    if not isinstance(inputs, type(text for text in "")) and "instruction" not in options:
        with pytest.raises(InputError, match=message):
            model.encode_document(inputs, **options)


@pytest.mark.parametrize("length", [0, 1, 2, -5, None, 16.0, "16", True])
def test_a_length_without_room_for_a_token_is_refused(length: Any, ours: LLMSentenceTransformer) -> None:
    with pytest.raises(
        InputError, match=f"max_seq_length is {length!r}. Allowed is a whole number of tokens from 3 on"
    ):
        ours.max_seq_length = length
    assert ours.max_seq_length == 64
    ours.max_seq_length = 3
    assert [len(ids) for ids in ours[0].token_ids(["a b c d"])] == [3]
