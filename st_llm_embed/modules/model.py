"""LLMSentenceTransformer: a SentenceTransformer that knows decoders and instructions, and is saved as a stock one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self, cast, get_args

import torch
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer
from sentence_transformers.util import batch_to_device, truncate_embeddings
from sentence_transformers.util.decorators import deprecated_kwargs
from torch import Tensor
from tqdm.auto import trange
from transformers import AutoModel
from transformers.utils.quantization_config import QuantizationConfigMixin

from st_llm_embed.errors import InputError, explained
from st_llm_embed.instructions import PUBLISHED_PROMPTS, instruction_prompt
from st_llm_embed.modules.base import fit_vocabulary, is_decoder_only, load_tokenizer, loading_base
from st_llm_embed.modules.eos import check_eos, end_token_id
from st_llm_embed.modules.layout import base_path, make_portable
from st_llm_embed.modules.loading import loading, rename_magnitudes
from st_llm_embed.modules.rotary import length_of_change
from st_llm_embed.modules.texts import batches, check_inputs, check_options, groups, under_instructions
from st_llm_embed.modules.transformer import DecoderTransformer, LastTokenPooling
from st_llm_embed.recipe import Dtype, PoolingMode

# Text only: without it, a base with a chat template renders every text as a chat message, without BOS and EOS.
TEXT_ONLY = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}

MODEL_ADVICE = (
    "Give the Hub id of a sentence-transformers model or the folder of a saved one, complete with its weights, and a "
    "device that exists."
)

RUNTIME_CLASSES: dict[type, type] = {Transformer: DecoderTransformer, Pooling: LastTokenPooling}
"""Stock module classes and what they are loaded into."""


class LLMSentenceTransformer(SentenceTransformer):
    """A sentence-transformers model made of a decoder-only language model.

    Loads any stock repository, merged or adapter only, and saves stock modules, so that `SentenceTransformer` loads
    what it saves, with equal vectors and nothing else installed. At run time it ensures that every text ends in EOS,
    takes an instruction per call or per query, sorts texts by their exact length in tokens, and computes the tokens
    that all texts of a call begin with once.

    Example::

        model = LLMSentenceTransformer("org/e5-mistral")
        queries = model.encode_query(["why is the sky blue"], instruction="Given a question, retrieve the answer")
        documents = model.encode_document(["Air scatters blue light more than red."])
    """

    def __init__(self, model_name_or_path: str | os.PathLike[str] | None = None, **kwargs: Any) -> None:
        """Load a stock repository, or build from `modules`; the keyword arguments are those of SentenceTransformer.

        Raises:
            InputError: it cannot be loaded, lacks weights, is a plain language model, or `modules` has stock modules.
        """
        if model_name_or_path is None:
            super().__init__(**kwargs)
        else:
            model_name_or_path = os.fspath(model_name_or_path)
            with loading(f"The model {model_name_or_path!r} cannot be loaded", model_name_or_path, MODEL_ADVICE):
                super().__init__(model_name_or_path, **kwargs)
        # Repositories are loaded into our classes; stock builds a plain language model of its own.
        if any(type(module) in RUNTIME_CLASSES for module in self):
            raise InputError(
                f"{model_name_or_path or 'modules='} is not an embedder that LLMSentenceTransformer can load. Make "
                "one of a plain language model with LLMSentenceTransformer.from_base(name, max_seq_length=...); in "
                "modules=, give a DecoderTransformer and a LastTokenPooling instead of stock's."
            )
        if not self._makes_one_vector():
            kinds = ", ".join(type(module).__name__ for module in self)
            raise InputError(
                f"{model_name_or_path or 'modules='} consists of {kinds}, which make no vector of a text. Allowed are "
                "a transformer, a pooling of its tokens, and then Dense and Normalize. Correct its modules.json."
            )
        if self._reads_text():
            first = cast(DecoderTransformer, self[0])
            fit_vocabulary(first.tokenizer, first.config, str(model_name_or_path))
        pooling = self._last_token_pooling()
        if pooling is not None:
            transformer = cast(DecoderTransformer, self[0])
            transformer.repair_eos()
            pooling.end_token_id = end_token_id(transformer.tokenizer)

    @classmethod
    def from_base(
        cls,
        name_or_path: str | os.PathLike[str],
        *,
        max_seq_length: int,
        revision: str | None = None,
        random_init: bool = False,
        dtype: Dtype = "float32",
        quantization_config: QuantizationConfigMixin | None = None,
        pooling_mode: PoolingMode = "lasttoken",
        device: str | None = None,
    ) -> Self:
        """Build an embedder from a decoder-only base: EOS appended, last-token pooling, unit length.

        Args:
            name_or_path: Hub id or local folder of the base, or ``embedded`` for the one inside the package.
            max_seq_length: longest text in tokens, special tokens included; at most what the base has positions for.
            revision: branch, tag or commit of a Hub model.
            random_init: draw fresh weights from torch's current random state instead of the pretrained ones.
            dtype: data type of the weights.
            quantization_config: transformers' own, for weights that are quantized as they are loaded.
            pooling_mode: means are for comparison with the last token.
            device: where the model is put; None for the best there is.

        Returns:
            A model whose embeddings have shape (number of texts, hidden size) and norm 1.

        Raises:
            InputError: there is no such base, it is not a decoder, it lacks weights, it cannot be made to end texts
                with EOS, or it cannot have this length, dtype or pooling.
        """
        name_or_path = os.fspath(name_or_path)
        for name, value, allowed in (("dtype", dtype, Dtype), ("pooling_mode", pooling_mode, PoolingMode)):
            if value not in get_args(allowed):
                raise InputError(f"{name} is {value!r}; allowed are {', '.join(map(repr, get_args(allowed)))}.")
        tokenizer = load_tokenizer(name_or_path, revision=revision, max_seq_length=max_seq_length)
        source = {"revision": revision, "trust_remote_code": False}
        with loading_base(name_or_path):
            transformer = DecoderTransformer(
                base_path(name_or_path),
                model_kwargs=source | {"dtype": getattr(torch, dtype), "quantization_config": quantization_config},
                config_kwargs=source,
                processor_kwargs=source,
                modality_config=TEXT_ONLY,
                module_output_name="token_embeddings",
            )
        fit_vocabulary(tokenizer, transformer.config, name_or_path)
        transformer.processor = tokenizer
        if random_init:
            transformer.model = AutoModel.from_config(transformer.config, dtype=getattr(torch, dtype))
        transformer.max_seq_length = max_seq_length
        transformer.config.pad_token_id = tokenizer.pad_token_id
        pooling = LastTokenPooling(transformer.get_embedding_dimension(), pooling_mode=pooling_mode)
        with explained(
            f"The device {device!r} cannot be used", "Allowed is one of this machine, or None for the best."
        ):
            model = cls(modules=[transformer, pooling, Normalize()], device=device, prompts=dict(PUBLISHED_PROMPTS))
        check_eos(model)
        return model

    @deprecated_kwargs(sentences="inputs")
    def encode(  # type: ignore[override]
        self,
        inputs: Any,
        prompt_name: str | None = None,
        prompt: str | None = None,
        *args: Any,
        instruction: str | Sequence[str] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Encode texts, under an instruction if one is given; other arguments as in SentenceTransformer.encode.

        Args:
            inputs: a text or a list of texts.
            prompt_name: as in stock, like `prompt` and `*args`.
            prompt: see there.
            *args: see there.
            instruction: one for all texts, or a list with one per text. Equal to the prompt that
                `instructions.instruction_prompt` makes of it.
            **kwargs: as in stock. Also ``batch_num_tokens``: a batch then holds as many texts as fit into this many
                padded tokens, instead of `batch_size` texts.

        Returns:
            Embeddings of shape (number of texts, hidden size). In float32 they are within 1e-5 of those of stock; in
            bfloat16 and float16 they differ from them as stock's own do between two batch sizes.

        Raises:
            InputError: the instruction comes with a prompt or with documents, or there is not one str per text;
                batch_num_tokens is below 1, or given for what only stock computes (such as token_embeddings).
        """
        if self.modalities == ["text"]:
            check_inputs(inputs, singular=self.is_singular_input(inputs))
        check_options(args[0] if args else kwargs.get("batch_size", 1), prompt, instruction)
        if instruction is None:
            return super().encode(inputs, prompt_name, prompt, *args, **kwargs)
        if kwargs.get("task") == "document":
            raise InputError("Documents take no instruction; give it to encode_query, or to encode.")
        if prompt is not None or prompt_name is not None:
            raise InputError("Give either an instruction or a prompt; an instruction becomes one.")
        if isinstance(instruction, str):
            return super().encode(inputs, None, instruction_prompt(instruction), *args, **kwargs)
        texts = [inputs] if self.is_singular_input(inputs) else list(inputs)
        # An empty prompt, so that no default one is put before the instructions.
        return super().encode(under_instructions(texts, instruction), None, "", *args, **kwargs)

    @deprecated_kwargs(sentences="inputs")
    def encode_query(  # type: ignore[override]
        self,
        inputs: Any,
        prompt_name: str | None = None,
        prompt: str | None = None,
        *args: Any,
        instruction: str | Sequence[str] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Encode queries, under the saved query prompt or under an instruction; as in `encode`."""
        if instruction is None:
            return super().encode_query(inputs, prompt_name, prompt, *args, **kwargs)
        return self.encode(inputs, prompt_name, prompt, *args, instruction=instruction, task="query", **kwargs)

    def save(self, path: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Save stock modules in the portable layout; arguments as in SentenceTransformer.save."""
        folder = os.fspath(path)
        ours = {module: type(module) for module in self if type(module) in RUNTIME_CLASSES.values()}
        stock = {runtime: stock for stock, runtime in RUNTIME_CLASSES.items()}
        try:
            for module, runtime in ours.items():
                module.__class__ = stock[runtime]
            super().save(folder, *args, **kwargs)
        finally:
            for module, runtime in ours.items():
                module.__class__ = runtime
        first = self[0]
        if isinstance(first, DecoderTransformer) and is_decoder_only(first.config) and self._reads_text():
            make_portable(Path(folder), self.tokenizer, first.sentencepiece_file())
            if (adapter := Path(folder, SAFETENSORS_WEIGHTS_NAME)).is_file():
                rename_magnitudes(adapter)

    @property
    def reads_last_token(self) -> bool:
        """Whether an embedding is the hidden state of a decoder's last token alone."""
        return self._last_token_pooling() is not None

    # The two private hooks of sentence-transformers; tests/modules/test_hooks.py fails when they change.

    def _load_module_class_from_ref(self, class_ref: str, *args: Any, **kwargs: Any) -> type:
        loaded = super()._load_module_class_from_ref(class_ref, *args, **kwargs)
        return RUNTIME_CLASSES.get(loaded, loaded)

    @torch.inference_mode()
    def _inference(
        self,
        inputs: list[Any],
        *,
        prompt: str | None,
        batch_size: int,
        output_value: str | None,
        device: str | torch.device | None = None,
        batch_num_tokens: int | None = None,
        **options: Any,
    ) -> Any:
        if batch_num_tokens is not None and not (isinstance(batch_num_tokens, int) and batch_num_tokens >= 1):
            raise InputError(
                f"batch_num_tokens is {batch_num_tokens!r}; a batch has to have room for at least 1 token, as a whole "
                "number."
            )
        self._check_dimension(options.get("truncate_dim"))
        if self._last_token_pooling() is None or not self._is_plain_text(inputs, output_value, options):
            if batch_num_tokens is not None and inputs:
                raise InputError(
                    "batch_num_tokens is for the sentence embeddings of plain texts by a decoder with last-token "
                    "pooling and stock's default options. Omit it and set batch_size."
                )
            return super()._inference(
                inputs, prompt=prompt, batch_size=batch_size, output_value=output_value, device=device, **options
            )
        return self._embed_texts(
            inputs, prompt or "", batch_size, batch_num_tokens, self._resolve_inference_device(device), **options
        )

    def _makes_one_vector(self) -> bool:
        """Return whether the first module reads texts, and a later one makes a vector of its tokens."""
        first, *others = self
        tokens = isinstance(first, Transformer) and first.module_output_name == "token_embeddings"
        left = [module for module in others if not isinstance(module, (Dense, Normalize))]
        return not isinstance(first, (Pooling, Dense, Normalize)) and (bool(left) or not tokens)

    def _reads_text(self) -> bool:
        """Return whether a transformer comes first and nothing but text goes in, not even as a chat ("message")."""
        return isinstance(self[0], DecoderTransformer) and self.modalities == ["text"]

    def _check_dimension(self, dimension: int | None) -> None:
        if dimension is None:
            return
        modules = cast(list[Any], list(self))
        sizes = [module.get_embedding_dimension() for module in modules if hasattr(module, "get_embedding_dimension")]
        most = sizes[-1] if sizes else None
        if not isinstance(dimension, int) or dimension < 1 or (most is not None and dimension > most):
            raise InputError(
                f"truncate_dim is {dimension!r}; the vectors have {most or 'some'} dimensions. Give a whole number "
                "from 1 to that, or None."
            )

    def _is_plain_text(self, inputs: list[Any], output_value: str | None, options: dict[str, Any]) -> bool:
        """Return whether `_embed_texts` can do what is asked for; the rest is left to stock."""
        transformer = cast(DecoderTransformer, self[0])
        return (
            len(inputs) > 0
            and all(isinstance(text, str) for text in inputs)
            and output_value == "sentence_embedding"
            and not options.get("processing_kwargs")
            and not any(option.startswith("pad") for option in transformer.text_options)
            and transformer.query_length is None
            and transformer.document_length is None
            and not transformer.can_flatten_inputs
        )

    def _embed_texts(
        self,
        inputs: list[str],
        prompt: str,
        batch_size: int,
        batch_num_tokens: int | None,
        device: torch.device,
        *,
        show_progress_bar: bool,
        save_to_cpu: bool,
        normalize_embeddings: bool,
        truncate_dim: int | None,
        **kwargs: Any,
    ) -> Tensor:
        """Compute what stock's `_inference` does, with batches by length in tokens and shared prefixes."""
        self.eval()
        transformer = cast(DecoderTransformer, self[0])
        ids = transformer.token_ids([prompt + text for text in inputs])
        parts: list[Tensor] = []
        places: list[int] = []
        with trange(len(inputs), desc="Texts", disable=not show_progress_bar) as progress:
            for group_prompt, group in groups(inputs, prompt):
                if group_prompt:
                    transformer.warn_without_room(group_prompt, [inputs[group[0]].removeprefix(group_prompt)])
                group.sort(key=lambda place: -len(ids[place]))
                prefix = transformer.shared_prefix([ids[place] for place in group], device)
                lengths = [len(ids[place]) for place in group]
                change = length_of_change(transformer.config)
                for start, stop in batches(lengths, batch_size, batch_num_tokens, change):
                    batch = transformer.padded([ids[place] for place in group[start:stop]], prefix)
                    embeddings = self(batch_to_device(batch, device), **kwargs)["sentence_embedding"]
                    embeddings = truncate_embeddings(embeddings, truncate_dim)
                    if normalize_embeddings:
                        embeddings = torch.nn.functional.normalize(embeddings, dim=1)
                    parts.append(embeddings.cpu() if save_to_cpu else embeddings)
                    progress.update(stop - start)
                places += group
        embeddings = torch.cat(parts)
        return embeddings[torch.tensor(places, device=embeddings.device).argsort()]

    def _last_token_pooling(self) -> LastTokenPooling | None:
        """Return the pooling of a decoder whose embedding is the hidden state of the last token alone."""
        poolings = [module for module in self if isinstance(module, Pooling)]
        first = self[0]
        if not isinstance(first, DecoderTransformer) or not is_decoder_only(first.config) or len(poolings) != 1:
            return None
        [pooling] = poolings
        # A repository with a chat template stays as stock has it.
        if "message" in first.modality_config or not isinstance(pooling, LastTokenPooling):
            return None
        return pooling if pooling.pooling_mode == "lasttoken" else None
