from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MatryoshkaLoss,
    MultipleNegativesRankingLoss,
)
from torch import nn
from training.two_processes import loss_and_gradients

from st_llm_embed import InputError, LLMSentenceTransformer, Recipe
from st_llm_embed.data.dataset import write_dataset
from st_llm_embed.data.rows import read_rows
from st_llm_embed.recipe import Loss
from st_llm_embed.training.check import check_training
from st_llm_embed.training.loss import InfoNCELoss, build_losses
from st_llm_embed.training.train import train

WORDS = ["question", "answer", "thing", "about", "subject", "retrieve", "given", "another"]

ALL_DIRECTIONS = ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")

EXTRAS_OFF: list[dict[str, Any]] = [
    {"temperature": 0.02},
    {"temperature": 1.0},
    {"temperature": 0.05, "hardness_strength": 5.0},
    {"temperature": 0.05, "directions": ALL_DIRECTIONS},
    {"temperature": 0.05, "directions": ALL_DIRECTIONS, "hardness_strength": 5.0},
]

EXTRAS_ON: list[dict[str, Any]] = [
    {"temperature": 0.05},
    {"temperature": 0.05, "directions": ALL_DIRECTIONS, "hardness_strength": 5.0},
    {"temperature": 0.05, "directions": ALL_DIRECTIONS, "false_negative_margin": 0.01},
    {"temperature": 0.05, "in_batch_negatives": False},
    {"temperature": 0.05, "false_negative_margin": 0.1, "matryoshka_dims": [32, 8]},
]


def random_texts(count: int, seed: int, longest: int = 40) -> list[str]:
    generator = random.Random(seed)  # noqa: S311
    return [" ".join(generator.choices(WORDS, k=1 + int(longest * generator.random() ** 3))) for _ in range(count)]


def random_columns(columns: int = 3, rows: int = 24) -> list[list[str]]:
    """Texts of most unequal lengths; rows 0 and 5 have one anchor, 1 and 7 one positive, 2 repeats its positive."""
    texts = [[f"{text} {number}" for number, text in enumerate(random_texts(rows, seed))] for seed in range(columns)]
    texts[0][5], texts[1][7], texts[-1][2] = texts[0][0], texts[1][1], texts[1][2]
    return texts


@pytest.fixture
def single(tiny_base: Path) -> LLMSentenceTransformer:
    return LLMSentenceTransformer.from_base(str(tiny_base), max_seq_length=48, device="cpu")


@pytest.fixture
def model(single: LLMSentenceTransformer) -> LLMSentenceTransformer:
    """In double precision, where two ways to the same sum agree to many digits."""
    return single.double()


def computed(loss: nn.Module, model: LLMSentenceTransformer, columns: list[list[str]]) -> dict[str, Any]:
    model.zero_grad()
    value = loss([model.preprocess(column) for column in columns], None)
    value.backward()
    return {"loss": value.detach(), "gradients": {name: one.grad.clone() for name, one in model.named_parameters()}}


def assert_equal(got: dict[str, Any], expected: dict[str, Any]) -> None:
    assert max(gradient.abs().max().item() for gradient in expected["gradients"].values()) > 1e-3
    torch.testing.assert_close(got["loss"], expected["loss"], atol=1e-6, rtol=1e-6)
    for name, gradient in expected["gradients"].items():
        torch.testing.assert_close(got["gradients"][name], gradient, atol=1e-6, rtol=1e-6)


def stock_options(options: dict[str, Any]) -> dict[str, Any]:
    strength = options.get("hardness_strength", 0.0)
    return {
        "scale": 1 / options["temperature"],
        "directions": options.get("directions", ("query_to_doc",)),
        "hardness_mode": "hard_negatives" if strength else None,
        "hardness_strength": strength,
    }


@pytest.mark.parametrize("options", EXTRAS_OFF, ids=str)
@pytest.mark.parametrize("columns", [2, 3, 5])
def test_without_extras_it_is_the_stock_loss(
    model: LLMSentenceTransformer, options: dict[str, Any], columns: int
) -> None:
    texts = random_columns(columns)
    stock = computed(MultipleNegativesRankingLoss(model, **stock_options(options)), model, texts)
    ours = computed(InfoNCELoss(model, mask_duplicates=False, **options), model, texts)
    assert_equal(ours, stock)
    cached = CachedMultipleNegativesRankingLoss(model, mini_batch_size=8, **stock_options(options))
    sorted_by_length = InfoNCELoss(model, mask_duplicates=False, mini_batch_num_tokens=100, **options)
    assert_equal(computed(sorted_by_length, model, texts), computed(cached, model, texts))


@pytest.mark.parametrize("hardness_strength", [0.0, 3.0])
def test_without_extras_the_papers_loss_is_the_stock_one_bit_for_bit(
    single: LLMSentenceTransformer, hardness_strength: float
) -> None:
    options = {"temperature": 0.02, "hardness_strength": hardness_strength}
    texts = random_columns()
    stock = computed(MultipleNegativesRankingLoss(single, **stock_options(options)), single, texts)
    ours = computed(InfoNCELoss(single, mask_duplicates=False, **options), single, texts)
    assert torch.equal(ours["loss"], stock["loss"])
    assert all(torch.equal(ours["gradients"][name], one) for name, one in stock["gradients"].items())


@pytest.mark.parametrize("options", EXTRAS_ON, ids=str)
@pytest.mark.parametrize("padding_side", ["right", "left"])
def test_gradcache_gives_the_plain_loss_and_gradients(
    model: LLMSentenceTransformer, options: dict[str, Any], padding_side: str
) -> None:
    texts = random_columns(4)
    expected = loss_and_gradients(model, texts, options)
    model.tokenizer.padding_side = padding_side
    assert_equal(loss_and_gradients(model, texts, options | {"mini_batch_num_tokens": 100}), expected)
    without = loss_and_gradients(model, texts, options | {"mask_duplicates": False})
    assert expected["loss"] < without["loss"]


def test_an_evaluation_computes_the_same_loss_without_gradients(model: LLMSentenceTransformer) -> None:
    texts, options = random_columns(), {"temperature": 0.05, "mini_batch_num_tokens": 100}
    expected = loss_and_gradients(model, texts, options)["loss"]
    model.zero_grad()
    with torch.no_grad():
        got = InfoNCELoss(model, **options)([model.preprocess(column) for column in texts])
    assert got.item() == pytest.approx(expected.item(), abs=1e-9)
    assert all(weight.grad is None for weight in model.parameters())


def test_score_rows_in_parts_give_the_same_gradients(
    model: LLMSentenceTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts, options = random_columns(), {"temperature": 0.05, "directions": ALL_DIRECTIONS, "hardness_strength": 5.0}
    expected = loss_and_gradients(model, texts, options)
    monkeypatch.setattr("st_llm_embed.training.loss.SCORED_ROWS", 7)
    assert_equal(loss_and_gradients(model, texts, options | {"mini_batch_num_tokens": 100}), expected)


def test_similarities_are_of_full_precision_under_autocast(single: LLMSentenceTransformer) -> None:
    """bfloat16 has 8 bits: a cosine of 0.9 divided by 0.02 would be off by up to 0.1."""
    texts = random_columns()
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        vectors = [single(single.preprocess(column))["sentence_embedding"].double() for column in texts]
        loss = InfoNCELoss(single, temperature=0.02, mask_duplicates=False)
        got = loss([single.preprocess(column) for column in texts])
        stock = MultipleNegativesRankingLoss(single, scale=50)([single.preprocess(column) for column in texts], None)
    anchors, *documents = [nn.functional.normalize(column, dim=-1) for column in vectors]
    exact = nn.functional.cross_entropy(anchors @ torch.cat(documents).T / 0.02, torch.arange(len(anchors)))
    assert got.dtype == torch.float32
    assert got.item() == pytest.approx(exact.item(), abs=1e-5)
    assert abs(stock.item() - exact.item()) > 1e-4


def test_the_floor_that_copies_put_under_the_loss_is_gone(model: LLMSentenceTransformer) -> None:
    """Four rows each have the same positive: no model can do better than log 4 without masking."""
    anchors, positives = random_texts(16, 1), [f"label {number % 4}" for number in range(16)]
    floors = {}
    for masked in (False, True):
        loss = InfoNCELoss(model, temperature=0.001, mask_duplicates=masked)
        # A perfect model: each anchor is where its positive is.
        perfect = torch.eye(32, dtype=torch.float64)[[number % 4 for number in range(16)]]
        model.forward = lambda features: {"sentence_embedding": perfect}  # noqa: ARG005, B023
        floors[masked] = loss([model.preprocess(anchors), model.preprocess(positives)]).item()
    assert floors[False] == pytest.approx(math.log(4), abs=1e-6)
    assert floors[True] == pytest.approx(0, abs=1e-6)


def test_false_negatives_above_the_margin_are_left_out(model: LLMSentenceTransformer) -> None:
    """Candidates 0.05 and 0.2 above the positive, at a margin of 0.1: the first stays, the second goes."""
    angles = [torch.tensor([math.cos(angle), math.sin(angle)]) for angle in map(math.acos, (0.7, 0.75, 0.9))]
    columns = [torch.tensor([[1.0, 0.0]]), *(angle[None] for angle in angles)]
    batch: Any = type("Batch", (), {"columns": 4, "place": None, "hashes": None})()
    values = {
        margin: InfoNCELoss(model, temperature=1, false_negative_margin=margin, mask_duplicates=False)
        .calculate_loss([[column] for column in columns], batch)
        .item()
        for margin in (None, 0.1, 0.0)
    }
    positive, near, far = map(math.exp, (0.7, 0.75, 0.9))
    assert values[None] == pytest.approx(-math.log(positive / (positive + near + far)), abs=1e-5)
    assert values[0.1] == pytest.approx(-math.log(positive / (positive + near)), abs=1e-5)
    assert values[0.0] == pytest.approx(0, abs=1e-5)


def test_own_negatives_only_compares_with_nothing_else(model: LLMSentenceTransformer) -> None:
    texts = random_columns(4)
    loss = InfoNCELoss(model, temperature=0.05, in_batch_negatives=False, mask_duplicates=False)
    got = computed(loss, model, texts)
    model.zero_grad()
    anchors, *documents = [model(model.preprocess(column))["sentence_embedding"] for column in texts]
    scores = (anchors[:, None] * torch.stack(documents, dim=1)).sum(dim=-1) / 0.05
    expected = nn.functional.cross_entropy(scores, torch.zeros(len(anchors), dtype=torch.long))
    expected.backward()
    gradients = {name: one.grad for name, one in model.named_parameters()}
    assert_equal(got, {"loss": expected.detach(), "gradients": gradients})


def test_dropout_is_replayed(model: LLMSentenceTransformer) -> None:
    """Both passes of GradCache have to drop the same values, or the gradients belong to other embeddings."""
    model[0].model.config.attention_dropout = 0.5
    for layer in model[0].model.layers:
        layer.self_attn.attention_dropout = 0.5
    model.train()
    vectors: list[torch.Tensor] = []
    model[2].register_forward_hook(lambda _, __, output: vectors.append(output["sentence_embedding"].detach()))
    InfoNCELoss(model, temperature=0.05, mini_batch_num_tokens=100)(
        [model.preprocess(column) for column in random_columns()]
    ).backward()
    half = len(vectors) // 2
    assert half > 3
    assert all(torch.equal(*pair) for pair in zip(vectors[:half], vectors[half:], strict=True))
    with torch.no_grad():
        again = [model(model.preprocess(["the same text"] * 2))["sentence_embedding"][0] for _ in range(2)]
    assert not torch.equal(*again)


def test_upstream_still_takes_mini_batches_as_columns(model: LLMSentenceTransformer) -> None:
    """Our mini-batches go through CachedLossMixin.forward_cached as columns, each of which it embeds in one piece.

    If this fails after an upgrade: forward_cached cuts by other rules, or no longer hands its second argument to
    calculate_loss. Look at sentence_transformers/base/losses/gradcache.py and at InfoNCELoss.forward.
    """
    shapes: list[tuple[int, int]] = []
    texts = random_columns()
    model[0].register_forward_pre_hook(lambda _, given: shapes.append(tuple(given[0]["input_ids"].shape)))
    InfoNCELoss(model, temperature=0.05, mini_batch_num_tokens=100)(
        [model.preprocess(column) for column in texts]
    ).backward()
    half = len(shapes) // 2
    assert shapes[:half] == shapes[half:]
    assert sum(rows for rows, _ in shapes[:half]) == 3 * 24
    assert all(rows * width <= 100 or rows == 1 for rows, width in shapes)
    widths = [width for _, width in shapes[:half]]
    assert widths == sorted(widths, reverse=True)
    assert max(rows for rows, _ in shapes) > 8 > min(rows for rows, _ in shapes)


def test_columns_that_cannot_be_pooled_are_cut_one_by_one(model: LLMSentenceTransformer) -> None:
    """As flash attention's inputs without padding, which sentence-transformers does not merge either."""
    texts = random_columns()
    features = [model.preprocess(column) for column in texts]
    features[0]["of_the_anchors_alone"] = True
    loss = InfoNCELoss(model, temperature=0.05, mini_batch_num_tokens=100)
    assert loss(features).item() == pytest.approx(
        loss_and_gradients(model, texts, {"temperature": 0.05})["loss"].item()
    )


@pytest.mark.integration
def test_two_processes_compute_what_one_does_with_the_joint_batch(
    model: LLMSentenceTransformer, tiny_base: Path, tmp_path: Path
) -> None:
    """Equal anchors and positives lie in different processes, and the second one's texts are longer."""
    columns = random_columns(4)
    half = len(columns[0]) // 2
    columns = [[*texts[:half], *(f"{text} {' '.join(WORDS)}" for text in texts[half:])] for texts in columns]
    columns[0][half], columns[1][half + 1], columns[2][half + 2] = columns[0][0], columns[1][1], columns[1][2]
    cases = [options | {"mini_batch_num_tokens": budget} for options in EXTRAS_ON for budget in (None, 100)]
    texts, output = tmp_path / "texts.json", tmp_path / "results.pt"
    texts.write_text(json.dumps({"columns": columns, "cases": cases}), encoding="utf-8")
    script = Path(__file__).with_name("two_processes.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(tiny_base), str(texts), str(output)],
        check=False,
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    for options, joint in zip(cases, torch.load(output, weights_only=True), strict=True):
        expected = loss_and_gradients(model, columns, options)
        assert_equal(joint, expected)
        # With weights spread over processes, one that calls the model more often than the other would hang.
        assert joint["calls"][0] == joint["calls"][1]


def test_a_recipe_can_ask_for_everything_at_once(tiny_recipe: Path, tmp_path: Path, rows_path: Path) -> None:
    options = [
        "loss.mini_batch_num_tokens=64",
        "loss.directions=[query_to_doc, query_to_query, doc_to_query, doc_to_doc]",
        "loss.own_negatives_only=[bitext]",
        "loss.false_negative_margin=0.1",
        "loss.matryoshka_dims=[32, 8]",
    ]
    recipe = Recipe.load(str(tiny_recipe), [*options, "training.max_steps=3"])
    check_training(recipe)
    write_dataset(read_rows(rows_path), tmp_path / "dataset", 0.4)
    train(recipe, [tmp_path / "dataset"], tmp_path / "training")
    log = json.loads((tmp_path / "training" / "log.json").read_text())
    assert all(math.isfinite(entry["loss"]) for entry in log if "loss" in entry)


def test_choices_reach_the_loss_of_their_task_type(model: LLMSentenceTransformer) -> None:
    triplet = ["anchor", "positive", "negative"]
    recipe = Loss(
        temperature=0.05,
        hardness_strength={"sts": 5},
        directions=("query_to_doc", "doc_to_query"),
        own_negatives_only=("long-short",),
        mini_batch_num_tokens=64,
        false_negative_margin=0.2,
    )
    losses = build_losses(model, recipe, {"sts-pairs": triplet[:2], "bitext": triplet, "long-short": triplet})
    chosen = ("temperature", "mini_batch_num_tokens", "false_negative_margin", "mask_duplicates")
    for loss in losses.values():
        assert isinstance(loss, InfoNCELoss)
        assert [loss.get_config_dict()[name] for name in chosen] == [0.05, 64, 0.2, True]
    different = ("hardness_strength", "directions", "in_batch_negatives")
    assert {name: tuple(loss.get_config_dict()[key] for key in different) for name, loss in losses.items()} == {
        "sts-pairs": (5, ("query_to_doc", "doc_to_query"), True),
        "bitext": (0, ("query_to_doc", "doc_to_query"), True),
        "long-short": (0, ("query_to_doc",), False),
    }
    matryoshka = build_losses(model, recipe.model_copy(update={"matryoshka_dims": (8, 32)}), {"sts": triplet})["sts"]
    assert isinstance(matryoshka, MatryoshkaLoss)
    assert matryoshka.matryoshka_dims == (32, 8)


def test_rows_without_anything_to_compare_with_are_refused(model: LLMSentenceTransformer) -> None:
    recipe = Loss(temperature=0.05, own_negatives_only=("sts",))
    with pytest.raises(InputError, match=r"sts-pairs have the texts anchor, positive and no negative.*take their"):
        build_losses(model, recipe, {"sts-pairs": ["anchor", "positive"]})
    with pytest.raises(InputError, match="have 2 text columns, and the loss needs 3"):
        InfoNCELoss(model, temperature=1, in_batch_negatives=False)([{}, {}])
    with pytest.raises(InputError, match=r"the directions are query_to_doc, doc_to_doc\. All but"):
        InfoNCELoss(model, temperature=1, in_batch_negatives=False, directions=("query_to_doc", "doc_to_doc"))


def test_dimensions_that_the_base_lacks_are_found_before_the_run(tiny_recipe: Path) -> None:
    for dims in ("[64, 8]", "[16, 8]"):
        with pytest.raises(InputError, match="have 32 dimensions"):
            check_training(Recipe.load(str(tiny_recipe), [f"loss.matryoshka_dims={dims}"]))
