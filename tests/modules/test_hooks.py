"""Canaries: they fail when sentence-transformers changes the private methods that LLMSentenceTransformer overrides."""

from __future__ import annotations

import inspect

from sentence_transformers import SentenceTransformer
from sentence_transformers.base.model import BaseModel
from sentence_transformers.sentence_transformer.modules import Transformer

from st_llm_embed import LLMSentenceTransformer
from st_llm_embed.modules.transformer import CheckedTransformer

EXPLANATION = (
    "sentence-transformers changed {name}, a private method that LLMSentenceTransformer overrides. Read the new code, "
    "adapt st_llm_embed/modules/model.py, then this test."
)


def test_the_hook_that_chooses_module_classes_is_as_expected() -> None:
    explanation = EXPLANATION.format(name="_load_module_class_from_ref")
    hook = inspect.signature(BaseModel._load_module_class_from_ref)
    assert list(hook.parameters)[:2] == ["self", "class_ref"], explanation
    assert "_load_module_class_from_ref(" in inspect.getsource(BaseModel._load_config_modules), explanation


def test_the_hook_that_runs_inference_is_as_expected() -> None:
    explanation = EXPLANATION.format(name="_inference")
    parameters = inspect.signature(SentenceTransformer._inference).parameters
    expected = {"self", "inputs", "prompt", "batch_size", "show_progress_bar", "output_value", "save_to_cpu"}
    expected |= {"normalize_embeddings", "truncate_dim", "device", "kwargs"}
    assert set(parameters) == expected, explanation
    assert "self._inference(" in inspect.getsource(SentenceTransformer.encode), explanation
    assert "_inference(" in inspect.getsource(BaseModel._multi_process_worker), explanation
    # What ours does instead of it.
    source = inspect.getsource(SentenceTransformer._inference)
    for step in ("self._resolve_inference_device(device)", "self.eval()", "truncate_embeddings", ".cpu()"):
        assert step in source, explanation


def test_the_hook_that_loads_weights_is_as_expected() -> None:
    explanation = EXPLANATION.format(name="Transformer._load_model").replace("model.py", "transformer.py")
    parameters = inspect.signature(Transformer._load_model).parameters
    expected = ["self", "model_name_or_path", "transformer_task", "config", "backend", "is_peft_model", "model_kwargs"]
    assert list(parameters) == expected, explanation
    # What it returns with output_loading_info.
    assert "return model_cls.from_pretrained(" in inspect.getsource(Transformer._load_model), explanation
    assert "self.model = self._load_model(" in inspect.getsource(Transformer.__init__), explanation


def test_no_other_private_method_is_overridden() -> None:
    own = {name for name in vars(LLMSentenceTransformer) if name.startswith("_") and not name.startswith("__")}
    inherited = {name for name in own if any(name in vars(base) for base in LLMSentenceTransformer.__mro__[1:])}
    # abc keeps its own entry in every class.
    assert inherited - {"_abc_impl"} == {"_load_module_class_from_ref", "_inference"}
    assert {name for name in vars(CheckedTransformer) if hasattr(Transformer, name) and name.startswith("_load")} == {
        "_load_model"
    }
