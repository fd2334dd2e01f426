from __future__ import annotations

import json
from pathlib import Path

import mteb
import pytest
from mteb.models import ModelMeta
from small_tasks import SmallSTS
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from st_llm_embed import InputError, LLMSentenceTransformer
from st_llm_embed.evaluation.mteb_models import LocalModel, load_model
from st_llm_embed.evaluation.mteb import check_padding, check_tokens, preflight, text_count
from st_llm_embed.evaluation.mteb import evaluate


@pytest.fixture(scope="module")
def saved(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    LLMSentenceTransformer.from_base(str(tiny_base), max_seq_length=64, device="cpu").save(str(folder))
    return folder


def test_a_sound_model_passes_and_every_tasks_prompt_and_size_are_told(saved: Path) -> None:
    tasks = [mteb.get_task("STSBenchmark"), mteb.get_task("FEVERHardNegatives"), mteb.get_task("SciFact")]
    sts, fever, scifact = preflight(load_model(str(saved), prompts="mteb"), tasks, batch_size=8)
    assert (sts.prompt.source, sts.prompt.generic) == ("type", False)
    assert (fever.prompt.source, fever.prompt.generic) == ("type", True)
    assert scifact.prompt.query.startswith("Instruct: Given a scientific claim")
    assert sts.size == (2758, 147886)
    assert sts.seconds is not None
    assert scifact.seconds is not None
    assert sts.seconds < scifact.seconds


def test_only_the_subsets_asked_for_are_counted() -> None:
    whole, part = text_count(mteb.get_task("Tatoeba")), text_count(mteb.get_task("Tatoeba", hf_subsets=["fra-eng"]))
    assert whole is not None
    assert part is not None
    assert part.texts == 2000
    assert whole.texts > 50 * part.texts


def test_a_model_without_a_name_is_refused(saved: Path, tmp_path: Path) -> None:
    named = load_model(str(saved), prompts="mteb")
    unnamed = LocalModel(named.model, ModelMeta.create_empty(), "mteb")
    with pytest.raises(InputError, match=r"no_model_name/available.*all models without a name"):
        preflight(unnamed, [SmallSTS()], batch_size=8)
    with pytest.raises(InputError, match="no_model_name/available"):
        evaluate(unnamed, [SmallSTS()], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_texts_that_do_not_end_in_eos_are_refused(saved: Path) -> None:
    model = LLMSentenceTransformer(str(saved), device="cpu")
    model.tokenizer.backend_tokenizer.post_processor = TemplateProcessing("<s> $A", "<s> $A <s> $B", [("<s>", 1)])
    with pytest.raises(InputError, match="has to end in one '</s>'"):
        check_tokens(model)


def test_a_model_whose_tokenizer_has_no_eos_is_refused(saved: Path, tmp_path: Path) -> None:
    model = LLMSentenceTransformer(str(saved), device="cpu")
    model.save(str(tmp_path / "model"))
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        path = tmp_path / "model" / name
        if path.is_file():
            content = json.loads(path.read_text(encoding="utf-8"))
            content.pop("eos_token", None)
            path.write_text(json.dumps(content), encoding="utf-8")
    whole = tmp_path / "model" / "tokenizer.json"
    content = json.loads(whole.read_text(encoding="utf-8"))
    content["post_processor"] = None
    whole.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(InputError, match="no EOS token"):
        load_model(str(tmp_path / "model"), prompts="paper")


def test_texts_that_lack_the_bos_that_the_configuration_promises_are_refused(saved: Path, tmp_path: Path) -> None:
    LLMSentenceTransformer(str(saved), device="cpu").save(str(tmp_path / "model"))
    path = tmp_path / "model" / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    template = content["post_processor"]["single"]
    content["post_processor"]["single"] = [one for one in template if one.get("SpecialToken", {}).get("id") != "<s>"]
    path.write_text(json.dumps(content), encoding="utf-8")
    model = LLMSentenceTransformer(str(tmp_path / "model"), device="cpu")
    with pytest.raises(InputError, match="add_bos_token"):
        check_tokens(model)


def test_a_model_whose_vectors_depend_on_padding_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    tokenizer.save_pretrained(tmp_path / "base")
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2, n_positions=128, bos_token_id=1)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "base")
    model = LLMSentenceTransformer.from_base(str(tmp_path / "base"), max_seq_length=96, device="cpu")
    check_padding(model)
    # Its positions are counted from the left, padding included.
    model.tokenizer.padding_side = "left"
    with pytest.raises(InputError, match=r"alone and that in a batch.*'left'"):
        check_padding(model)
