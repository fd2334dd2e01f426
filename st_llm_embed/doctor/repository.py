"""A repository as files: a folder, or the small files of one on the Hub. Weights are read by their headers alone."""

from __future__ import annotations

import json
import struct
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import yaml
from huggingface_hub import HfApi, hf_hub_download, parse_safetensors_file_metadata, snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from numpy.typing import NDArray
from tokenizers import Tokenizer

from st_llm_embed.doctor.probe import PROBE_FILE, Probe, read_probe
from st_llm_embed.errors import InputError, explained

SMALL_FILES = (
    "modules.json",
    "config.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
    "tokenizer_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "chat_template.jinja",
    "adapter_config.json",
    "model.safetensors.index.json",
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
"""Model types whose embedding hangs neither on EOS nor on the side of the padding."""


FLOATS = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
"""numpy's types of the data types in safetensors files."""


class NoDecoderError(InputError):
    """A repository that the traps of decoders do not concern."""


class Repository:
    """The files of one embedding repository.

    Args:
        name_or_path: a folder, or a Hub id, of which only the small files are fetched.
        revision: branch, tag or commit of a Hub repository.

    Raises:
        InputError: there is no such repository.
        NoDecoderError: it holds no transformer, or an encoder.
    """

    def __init__(self, name_or_path: str, *, revision: str | None = None, is_base: bool = False) -> None:
        self.name = name_or_path
        self.is_base = is_base
        self.revision = revision
        folder = Path(name_or_path)
        self.local = folder.is_dir()
        if self.local:
            self.folder = folder
            self.files = frozenset(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
        else:
            with _asking_the_hub(name_or_path):
                self.files = frozenset(HfApi().list_repo_files(name_or_path, revision=revision))
                wanted = [name for name in self.files if name in SMALL_FILES or name.endswith("/config.json")]
                paths = [hf_hub_download(name_or_path, name, revision=revision) for name in sorted(wanted)]
            self.folder = Path(paths[0]).parents[sorted(wanted)[0].count("/")] if paths else Path()
        if not {"config.json", "adapter_config.json"} & self.files and "modules.json" in self.files:
            raise NoDecoderError(
                f"{name_or_path} has no transformer at its top: it is a static model or an asymmetric pair, and what "
                "doctor looks for are the traps of decoders. Nothing was checked; give a decoder."
            )
        if not {"config.json", "adapter_config.json"} & self.files:
            raise NoDecoderError(
                f"{name_or_path} holds neither config.json nor adapter_config.json, so it is no model. Give the "
                "folder or the Hub id of an embedding model."
            )
        kind = self.config.get("model_type")
        if kind in ENCODERS or self.config.get("is_encoder_decoder"):
            raise NoDecoderError(
                f"{name_or_path} is of type {kind!r}, an encoder, and what doctor looks for are the traps of "
                "decoders: EOS, last-token pooling, padding, adapters. Nothing was checked; give a decoder."
            )

    def whole_folder(self, without: Sequence[str] = ()) -> Path:
        """Give the folder with all files, weights included; those of a Hub repository are downloaded.

        Args:
            without: patterns of files that need not be downloaded.

        Raises:
            InputError: they cannot be.
        """
        if self.local:
            return self.folder
        with explained(
            f"{self.name} cannot be downloaded",
            "Check the network and the room on the disk, and give the command again; finished files are kept.",
        ):
            return Path(snapshot_download(self.name, revision=self.revision, ignore_patterns=list(without)))

    def json(self, name: str) -> Any:
        """Read a JSON file; None if there is none.

        Raises:
            InputError: it is no JSON.
        """
        if name not in self.files:
            return None
        try:
            return json.loads((self.folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(
                f"{self.name}: {name} cannot be read as JSON ({error}). Write it again, or download it again."
            ) from error

    def table(self, name: str) -> dict[str, Any]:
        """Read a JSON file that has to hold an object; empty if there is none.

        Raises:
            InputError: it holds something else.
        """
        content = self.json(name)
        if content is not None and not isinstance(content, dict):
            raise InputError(f"{self.name}: {name} holds a {type(content).__name__}, and a JSON object is wanted.")
        return content or {}

    def text(self, name: str) -> str:
        """Read a text file; empty if there is none."""
        return (self.folder / name).read_text(encoding="utf-8", errors="replace") if name in self.files else ""

    @cached_property
    def probe(self) -> Probe | None:
        """The canary texts; None where there are none.

        Raises:
            InputError: probe.json is not of the format.
        """
        return read_probe(self.folder / PROBE_FILE) if PROBE_FILE in self.files else None

    @cached_property
    def config(self) -> dict[str, Any]:
        """The decoder's config.json, the base's for an adapter whose base lies here; empty where there is none."""
        own = self.table("config.json")
        if own or self.base is None:
            return own
        return self.base.config

    @cached_property
    def text_config(self) -> dict[str, Any]:
        """The part of the configuration that describes the language model."""
        return self.config | self.config.get("text_config", {})

    @cached_property
    def tokenizer_config(self) -> dict[str, Any]:
        """tokenizer_config.json."""
        return self.table("tokenizer_config.json")

    @cached_property
    def tokenizer_json(self) -> dict[str, Any]:
        """tokenizer.json."""
        return self.table("tokenizer.json")

    @cached_property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer of tokenizer.json without padding and truncation; None if there is none.

        Raises:
            InputError: the library tokenizers cannot read it.
        """
        if "tokenizer.json" not in self.files:
            return None
        with explained(f"{self.name}: tokenizer.json cannot be read", "Save it again."):
            tokenizer = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return tokenizer

    @cached_property
    def modules(self) -> list[dict[str, Any]]:
        """modules.json; empty if there is none."""
        content = self.json("modules.json")
        if content is not None and not (isinstance(content, list) and all(map(_is_module, content))):
            raise InputError(
                f"{self.name}: modules.json has to be a list of modules, each with a type and a path inside the "
                "repository. Save it again."
            )
        return content or []

    def module(self, kind: str) -> dict[str, Any] | None:
        """Give the first module whose class has this name."""
        return next((one for one in self.modules if one["type"].rsplit(".", 1)[-1] == kind), None)

    def file_of(self, module: dict[str, Any], name: str = "config.json") -> str:
        """Give the path of a module's file."""
        return f"{module['path']}/{name}" if module.get("path") else name

    @cached_property
    def prompts(self) -> dict[str, str]:
        """The prompts that sentence-transformers reads."""
        prompts = self.table("config_sentence_transformers.json").get("prompts") or {}
        return {str(name): prompt or "" for name, prompt in prompts.items()}

    @cached_property
    def adapter(self) -> dict[str, Any]:
        """adapter_config.json; empty if the repository is no adapter."""
        return self.table("adapter_config.json")

    @cached_property
    def base(self) -> Repository | None:
        """The base of an adapter, if it can be reached."""
        name = self.table("adapter_config.json").get("base_model_name_or_path")
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
        except yaml.YAMLError:
            return {}
        return content if isinstance(content, dict) and {"base", "loss", "training"} <= content.keys() else {}

    def token_id(self, role: str) -> int | None:
        """Give the id of the token that tokenizer_config.json calls eos, bos or pad; None if there is none."""
        token = self.tokenizer_config.get(f"{role}_token") or self.table("special_tokens_map.json").get(
            f"{role}_token"
        )
        content = token.get("content") if isinstance(token, dict) else token
        return self.tokenizer.token_to_id(content) if content and self.tokenizer is not None else None

    def token(self, number: int) -> str:
        """Give a token's text."""
        return str(self.tokenizer.id_to_token(number)) if self.tokenizer is not None else str(number)

    def tensors(self, name: str) -> dict[str, list[int]]:
        """Give names and shapes of a safetensors file's tensors from its header; no weights are read.

        Raises:
            InputError: the file is no safetensors file.
        """
        try:
            if self.local:
                with (self.folder / name).open("rb") as file:
                    [length] = struct.unpack("<Q", file.read(8))
                    header = json.loads(file.read(length))
                return {key: value["shape"] for key, value in header.items() if key != "__metadata__"}
            metadata = parse_safetensors_file_metadata(self.name, name, revision=self.revision)
        except (OSError, ValueError, struct.error, HfHubHTTPError) as error:
            raise InputError(
                f"{self.name}: the header of {name} cannot be read ({error}). Download or save the file again."
            ) from error
        return {key: list(tensor.shape) for key, tensor in metadata.tensors.items()}

    def arrays(self, name: str) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Give the floating-point tensors of a safetensors file that lies here, one after the other, as float32."""
        with (self.folder / name).open("rb") as file:
            [length] = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
            for key, value in header.items():
                if key == "__metadata__" or value["dtype"] not in FLOATS:
                    continue
                start, stop = value["data_offsets"]
                file.seek(8 + length + start)
                raw = np.frombuffer(file.read(stop - start), dtype=FLOATS[value["dtype"]])
                # numpy has no bfloat16, which is the upper half of a float32.
                floats = (raw.astype(np.uint32) << 16).view(np.float32) if value["dtype"] == "BF16" else raw
                yield key, floats.astype(np.float32).reshape(value["shape"])

    @cached_property
    def weight_names(self) -> frozenset[str]:
        """Names of the decoder's weights; empty where no weights lie here."""
        index = self.table("model.safetensors.index.json").get("weight_map", {})
        if index:
            return frozenset(index)
        return frozenset(self.tensors("model.safetensors")) if "model.safetensors" in self.files else frozenset()


def _is_module(entry: object) -> bool:
    """Whether an entry of modules.json has a type, and a path that does not lead out of the repository."""
    if not isinstance(entry, dict) or not isinstance(entry.get("type"), str):
        return False
    path = entry.get("path", "")
    return isinstance(path, str) and not PurePosixPath(path).is_absolute() and ".." not in PurePosixPath(path).parts


@contextmanager
def _asking_the_hub(repo_id: str) -> Generator[None]:
    try:
        yield
    except (RepositoryNotFoundError, HFValidationError) as error:
        reason = "no folder, and no repository on the Hub"
        advice = "Check the spelling; a private repository needs a token (`hf auth login`)."
        raise InputError(f"{repo_id!r} is {reason} that can be seen. {advice}") from error
    except OfflineModeIsEnabled as error:
        raise InputError(
            f"{repo_id!r} is no folder, and the environment variable HF_HUB_OFFLINE forbids asking the Hub for it. "
            "Give a folder, or unset the variable."
        ) from error
    except RevisionNotFoundError as error:
        raise InputError(
            f"{repo_id!r} has no such branch, tag or commit. Its page on the Hub lists them; leave --revision away "
            "for the main branch."
        ) from error
    except (HTTPError, OSError) as error:
        raise InputError(f"The Hub did not answer for {repo_id!r}: {error}. Check the network.") from error
