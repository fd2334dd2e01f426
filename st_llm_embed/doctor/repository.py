"""What a saved repository says: a folder, or the small files of one on the Hub.

The one reader for doctor, cards, export and publish. Of weights it reads names and shapes alone, unless asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

import yaml
from huggingface_hub import HfApi, hf_hub_download, parse_safetensors_file_metadata, snapshot_download
from huggingface_hub.errors import HFValidationError, HTTPError
from safetensors import safe_open
from tokenizers import Tokenizer

from st_llm_embed.doctor.files import damage, files_in, read_json, read_pieces
from st_llm_embed.doctor.probe import PROBE_FILE, Probe, read_probe
from st_llm_embed.errors import InputError, explained, hub_reason
from st_llm_embed.modules.layout import SENTENCEPIECE_FILE, pooling_dimension, pooling_modes

if TYPE_CHECKING:
    from torch import Tensor

SETTINGS_FILE = "sentence_bert_config.json"
PROMPTS_FILE = "config_sentence_transformers.json"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"

SMALL_FILES = (
    "modules.json",
    "config.json",
    PROMPTS_FILE,
    SETTINGS_FILE,
    "tokenizer_config.json",
    "tokenizer.json",
    SENTENCEPIECE_FILE,
    "special_tokens_map.json",
    "chat_template.jinja",
    ADAPTER_CONFIG,
    WEIGHTS_INDEX,
    PROBE_FILE,
    "recipe.yaml",
    "README.md",
)
"""What the static checks read, besides the configuration of each module."""

WRONG_FILES = (
    "A value in config.json, tokenizer_config.json or modules.json is not of the kind it should be; save it again."
)

ENCODERS = (
    *("albert", "bert", "camembert", "deberta", "deberta-v2", "distilbert", "electra", "modernbert", "mpnet"),
    *("new", "nomic_bert", "roberta", "xlm-roberta", "xlm-roberta-xl", "t5", "mt5", "umt5", "bart", "xlnet"),
)
"""Model types whose embedding depends neither on EOS nor on the side of the padding."""

ONLY_DECODERS = "Nothing was checked; give the folder or the Hub id of a decoder, for whose traps doctor looks."

UNLIMITED = 10**7
"""Tokens; transformers writes 1e30 where a tokenizer has no limit."""


class NoDecoderError(InputError):
    """A repository that the traps of decoders do not concern."""


class Repository:
    """The files of one embedding repository; InputError where one that is asked for is not of its format.

    Args:
        name_or_path: a folder, or a Hub id, of which only the small files are fetched.
        revision: branch, tag or commit of a Hub repository.
        is_base: it is the base of an adapter, whose own base is not looked for.

    Raises:
        InputError: there is no such repository.
    """

    def __init__(self, name_or_path: str, *, revision: str | None = None, is_base: bool = False) -> None:
        self.name = name_or_path
        self.is_base = is_base
        self.revision = revision
        folder = Path(name_or_path)
        self.local = folder.is_dir()
        self._read: dict[str, Any] = {}
        if self.local:
            self.folder = folder
            self.files = frozenset(files_in(folder))
        else:
            try:
                self.files = frozenset(HfApi().list_repo_files(name_or_path, revision=revision))
                wanted = sorted(name for name in self.files if name in SMALL_FILES or name.endswith("/config.json"))
                paths = [hf_hub_download(name_or_path, name, revision=revision) for name in wanted]
            except (HFValidationError, HTTPError, OSError) as error:
                raise InputError(f"{name_or_path!r} is not a folder. {hub_reason(error, name_or_path)}") from error
            self.folder = Path(paths[0]).parents[wanted[0].count("/")] if paths else Path()

    def check_decoder(self) -> None:
        """Check that the repository holds a decoder, or an adapter of one.

        Raises:
            NoDecoderError: it holds no transformer, or an encoder.
        """
        if not {self.file_of("Transformer"), ADAPTER_CONFIG} & self.files:
            kind = "no decoder" if "modules.json" in self.files else "not a model"
            raise NoDecoderError(
                f"{self.name} has neither {self.file_of('Transformer')} nor {ADAPTER_CONFIG}, so it is {kind}. "
                f"{ONLY_DECODERS}"
            )
        # An encoder has no reason to be read at its last token, so that the name of the type is wrong.
        if (self.model_type in ENCODERS and self.pooling != "lasttoken") or self.config.get("is_encoder_decoder"):
            raise NoDecoderError(f"{self.name} is of type {self.model_type!r}, an encoder. {ONLY_DECODERS}")

    def whole_folder(self, without: Sequence[str] = ()) -> Path:
        """Return the folder with all files, weights included; those of a Hub repository are downloaded."""
        if self.local:
            return self.folder
        advice = "Check the network and the free space, and run the command again; finished files are kept."
        with explained(f"{self.name} cannot be downloaded", advice):
            return Path(snapshot_download(self.name, revision=self.revision, ignore_patterns=list(without)))

    def json(self, name: str) -> Any:
        """Read a JSON file, once."""
        if name not in self._read:
            with explained(f"{self.name}: {name} cannot be used", "Write or download it again."):
                self._read[name] = read_json(self.folder / name)
        return self._read[name]

    def table(self, name: str) -> dict[str, Any]:
        """Read a JSON file that has to hold an object; empty if there is none."""
        content = self.json(name) if name in self.files else {}
        if not isinstance(content, dict):
            raise InputError(f"{self.name}: {name} holds a {type(content).__name__}, not a JSON object.")
        return content

    def text(self, name: str) -> str:
        """Read a text file; empty if there is none."""
        return (self.folder / name).read_text(encoding="utf-8", errors="replace") if name in self.files else ""

    def damaged(self) -> dict[str, str]:
        """Return why a file cannot be read, by the name of each damaged one; of weights the headers are read."""
        tables = {name for name in SMALL_FILES if name.endswith(".json")} - {"modules.json", PROBE_FILE}
        found = {"modules.json": damage(lambda: self.modules)}
        if not found["modules.json"]:
            tables |= {self.file_of(module) for module in self.places}
            found |= {name: damage(lambda name=name: self.table(name)) for name in sorted(tables)}
            found[PROMPTS_FILE] = damage(lambda: self.prompts)
            config = self.file_of("Transformer")
            if "Transformer" in self.places and not {config, ADAPTER_CONFIG} & self.files:
                found[config] = f"There is no such file, nor {ADAPTER_CONFIG}."
        if not any(found.values()):
            found["tokenizer.json"] = damage(lambda: self.tokenizer)
            found[SENTENCEPIECE_FILE] = damage(lambda: self.pieces)
            found[PROBE_FILE] = damage(lambda: self.probe)
            found[WEIGHTS_INDEX] = damage(lambda: self.shards)
        if self.local and not any(found.values()):
            found |= {name: damage(lambda name=name: self.tensors(name)) for name in self.weight_files}
        return {name: why for name, why in found.items() if why}

    @cached_property
    def probe(self) -> Probe | None:
        """The canary texts; None where there are none."""
        return read_probe(self.folder / PROBE_FILE) if PROBE_FILE in self.files else None

    @cached_property
    def modules(self) -> list[dict[str, Any]]:
        """modules.json; empty if there is none."""
        if "modules.json" not in self.files:
            return []
        content = self.json("modules.json")
        if not content or not isinstance(content, list) or not all(map(_is_module, content)):
            raise InputError(
                f"{self.name}: modules.json has to be a list of modules, each with a type and a path inside the "
                "repository. Save it again."
            )
        return content

    @cached_property
    def places(self) -> dict[str, str]:
        """Folder of each module inside the repository, by class."""
        return {one["type"].rpartition(".")[2]: one.get("path", "") for one in reversed(self.modules)}

    def file_of(self, module: str, name: str = "config.json") -> str:
        """Return the path of a file of a module; that of the repository itself where it has no such module."""
        return f"{self.places.get(module, '')}/{name}".lstrip("/")

    def folders(self, module: str) -> list[str]:
        """Return the folders of all modules of a class, in their order."""
        return [one.get("path", "") for one in self.modules if one["type"].rpartition(".")[2] == module]

    @property
    def kind(self) -> Literal["transformer", "static"]:
        """`static`: a mean of token vectors alone."""
        return "static" if "StaticEmbedding" in self.places else "transformer"

    @cached_property
    def config(self) -> dict[str, Any]:
        """The transformer's config.json; for an adapter that of its base, if that can be reached; else empty."""
        own = self.table(self.file_of("Transformer"))
        return own if own or self.base is None else self.base.config

    @cached_property
    def text_config(self) -> dict[str, Any]:
        """The part of the configuration that describes the language model."""
        return self.config | self.config.get("text_config", {})

    @property
    def model_type(self) -> str | None:
        """The type of the transformer, such as `mistral`."""
        return self.config.get("model_type")

    @property
    def dtype(self) -> str | None:
        """Data type of the weights, as the configuration states it."""
        return self.config.get("dtype") or self.config.get("torch_dtype")

    @cached_property
    def stored_dtype(self) -> str | None:
        """Data type of the weights in the files of a folder, by the first of them; None where it is another one."""
        return {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}.get(
            next(iter(self.stored_dtypes.values()), "")
        )

    @cached_property
    def stored_dtypes(self) -> dict[str, str]:
        """Data type of each weight in the files of a folder, as safetensors names it, such as `BF16`."""
        found: dict[str, str] = {}
        for name in self.shards if self.local else ():
            with safe_open(self.folder / name, framework="np") as file:
                found |= {key: file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118
        return found

    @property
    def matryoshka_dimensions(self) -> Any:
        """What config.json states as dimensions that vectors may be cut to."""
        return self.config.get("matryoshka_dimensions")

    @cached_property
    def settings(self) -> dict[str, Any]:
        """sentence_bert_config.json."""
        return self.table(self.file_of("Transformer", SETTINGS_FILE))

    @property
    def split_special_tokens(self) -> bool:
        """Whether a literal ``</s>`` in a text stays text."""
        text = (self.settings.get("processing_kwargs") or {}).get("text") or {}
        return bool(text.get("split_special_tokens", self.tokenizer_config.get("split_special_tokens")))

    @cached_property
    def pooling_config(self) -> dict[str, Any] | None:
        """The configuration of the pooling; None where there is no such module."""
        return self.table(self.file_of("Pooling")) if "Pooling" in self.places else None

    @property
    def pooling(self) -> str | None:
        """What sentence-transformers 6 pools by; `+` joins several, which are put side by side."""
        if self.pooling_config is None:
            # Of a plain language model sentence-transformers makes a mean pooling.
            return None if self.modules else "mean"
        return "+".join(pooling_modes(self.pooling_config))

    @property
    def normalized(self) -> bool:
        """Whether a module scales vectors to length 1."""
        return "Normalize" in self.places

    @cached_property
    def dimension(self) -> int:
        """Size of a vector."""
        config = self.pooling_config or {}
        size = pooling_dimension(config)
        size = size and size * len(pooling_modes(config))
        for folder in self.folders("Dense"):
            size = self.table(f"{folder}/config.json").get("out_features") or size
        if size is None and "StaticEmbedding" in self.places:
            shapes = self.tensors(self.file_of("StaticEmbedding", "model.safetensors")).values()
            size = next((shape[1] for shape in shapes if len(shape) == 2), None)
        size = size or self.text_config.get("hidden_size")
        if not isinstance(size, int):
            raise InputError(
                f"{self.name} does not say how many numbers a vector has, neither in a pooling module nor as "
                "hidden_size in config.json. Save the model again."
            )
        return size

    @property
    def max_seq_length(self) -> int | None:
        """Tokens at which sentence-transformers cuts a text; None where no file limits it."""
        limit = self.settings.get("max_seq_length") or self.least("model_max_length", "max_position_embeddings")
        return limit if limit is not None and limit <= UNLIMITED else None

    def least(self, *keys: str) -> int | None:
        """Return the smallest limit that config.json and tokenizer_config.json state under these keys."""
        both = self.text_config | self.tokenizer_config
        limits = [both[key] for key in keys if isinstance(both.get(key), (int, float)) and 0 < both[key] <= UNLIMITED]
        return int(min(limits)) if limits else None

    @cached_property
    def tokenizer_config(self) -> dict[str, Any]:
        """tokenizer_config.json."""
        return self.table(self.file_of("Transformer", "tokenizer_config.json"))

    @cached_property
    def tokenizer_json(self) -> dict[str, Any]:
        """tokenizer.json."""
        return self.table("tokenizer.json")

    @cached_property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer of tokenizer.json without padding and truncation; None if there is none."""
        if "tokenizer.json" not in self.files:
            return None
        with explained(f"{self.name}: tokenizer.json cannot be read", "Save it again."):
            tokenizer = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return tokenizer

    @cached_property
    def prompts(self) -> dict[str, str]:
        """The prompts that sentence-transformers reads."""
        prompts = self.table(PROMPTS_FILE).get("prompts") or {}
        if not isinstance(prompts, dict) or not all(isinstance(one, str | None) for one in prompts.values()):
            raise InputError(f"{self.name}: prompts in {PROMPTS_FILE} have to be texts by name. Save the model again.")
        return {str(name): prompt or "" for name, prompt in prompts.items()}

    @cached_property
    def adapter(self) -> dict[str, Any]:
        """adapter_config.json; empty if the repository is not an adapter."""
        return self.table(ADAPTER_CONFIG)

    @cached_property
    def base(self) -> Repository | None:
        """The base of an adapter, if it can be reached."""
        name = self.adapter.get("base_model_name_or_path")
        # The base of a base is not followed: adapters could name each other.
        if not isinstance(name, str) or not name or self.is_base:
            return None
        try:
            return Repository(name, revision=self.adapter.get("revision"), is_base=True)
        except InputError:
            return None

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """The recipe that this project publishes with a model; empty if there is none."""
        try:
            content = yaml.safe_load(self.text("recipe.yaml"))
        except (yaml.YAMLError, RecursionError):
            return {}
        return content if isinstance(content, dict) and {"base", "loss", "training"} <= content.keys() else {}

    def special_token(self, role: str) -> str | None:
        """Return the token that the files call eos, bos or pad; None if there is none."""
        key = f"{role}_token"
        token = self.tokenizer_config.get(key) or self.table("special_tokens_map.json").get(key)
        return token["content"] if isinstance(token, dict) else token

    def token_id(self, role: str) -> int | None:
        """Return the id of `special_token`; None if the tokenizer does not know it."""
        content = self.special_token(role)
        return self.tokenizer.token_to_id(content) if content and self.tokenizer is not None else None

    def token(self, number: int) -> str:
        """Return a token's text."""
        return str(self.tokenizer.id_to_token(number)) if self.tokenizer is not None else str(number)

    @cached_property
    def around(self) -> tuple[list[int], list[int]]:
        """The special tokens that tokenizer.json puts before and after a text."""
        if self.tokenizer is None:
            return [], []
        whole = self.tokenizer.encode("a").ids
        bare = self.tokenizer.encode("a", add_special_tokens=False).ids
        for start in range(len(whole) - len(bare) + 1):
            if whole[start : start + len(bare)] == bare:
                return whole[:start], whole[start + len(bare) :]
        return [], []

    def tensors(self, name: str) -> dict[str, list[int]]:
        """Return names and shapes of a safetensors file's tensors from its header."""
        with explained(f"{self.name}: the header of {name} cannot be read", "Download or save the file again."):
            if self.local:
                with safe_open(self.folder / name, framework="np") as file:
                    return {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
            metadata = parse_safetensors_file_metadata(self.name, name, revision=self.revision)
            return {key: list(tensor.shape) for key, tensor in metadata.tensors.items()}

    @property
    def shards(self) -> list[str]:
        """The files of the transformer's weights, in the order in which transformers looks for them; empty for none.

        Those that an index names are listed whether they are there or not.
        """
        single = self.file_of("Transformer", WEIGHTS)
        index = self.file_of("Transformer", WEIGHTS_INDEX)
        if single in self.files or index not in self.files:
            return [single] if single in self.files else []
        names = self.table(index).get("weight_map")
        if not isinstance(names, dict) or not names:
            raise InputError(f"{self.name}: {index} does not say in which file a weight is. Save the model again.")
        return sorted({self.file_of("Transformer", str(name)) for name in names.values()})

    @property
    def pickles(self) -> list[str]:
        """Weights of the transformer or the adapter in a format that can run code."""
        starts = tuple(self.file_of("Transformer", name) for name in ("pytorch_model", "adapter_model.bin"))
        return sorted(name for name in self.files if name.startswith(starts))

    @property
    def weight_files(self) -> list[str]:
        """The safetensors files that belong to the model: of its transformer, its adapter and its other modules."""
        other = [f"{one['path']}/{WEIGHTS}" for one in self.modules if one.get("path")]
        own = [ADAPTER_WEIGHTS] if self.adapter else self.shards
        return [name for name in (*own, *other) if name in self.files]

    def weights(self, name: str) -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors of a local safetensors file, one after the other; imports torch."""
        with safe_open(self.folder / name, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118
                yield key, file.get_tensor(key)

    @cached_property
    def pieces(self) -> list[str] | None:
        """The pieces of tokenizer.model in the order of their ids; None if there is no such file."""
        return read_pieces(self.folder / SENTENCEPIECE_FILE) if SENTENCEPIECE_FILE in self.files else None


def _is_module(entry: object) -> bool:
    """Whether an entry of modules.json has a type, and a path that does not lead out of the repository."""
    if not isinstance(entry, dict) or not isinstance(entry.get("type"), str):
        return False
    path = entry.get("path", "")
    return isinstance(path, str) and not PurePosixPath(path).is_absolute() and ".." not in PurePosixPath(path).parts
