"""Loading a model: each weight that it asks for is in its files, and what is wrong with the files is named.

transformers fills weights that are missing, or have another name, at random, and those of an adapter with zeros; the
only sign is a table in the log.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Collection, Generator, Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peft import PeftConfig
from peft.utils.save_and_load import load_peft_weights
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from st_llm_embed.errors import InputError
from st_llm_embed.modules.layout import LFS_POINTER, base_path

NAMES_SHOWN = 3

LONGEST_REASON = 400
"""Characters. transformers lists all its model types where one is unknown."""

READ_FILES = (".json", ".safetensors", ".bin", ".model")

NOT_READ = re.compile(
    r"(^|\.)(pooler|lm_head|ranknum|(randlora|vera)_[AB])\.|\.(inv_freq|masked_bias|attn\.bias|attention\.bias)$"
)
"""Weights that no embedding depends on, those that some adapters draw from a seed, and what is computed: old
checkpoints hold masks and rotary frequencies."""

MAGNITUDE = "lora_magnitude_vector"
"""DoRA's magnitudes. peft saves them under this name alone, where transformers only finds them under its `.weight`."""


@contextmanager
def loading(problem: str, name_or_path: str | None, advice: str) -> Generator[None]:
    """Re-raise what goes wrong while a model is loaded as an InputError that names the file at fault, if one is.

    Args:
        problem: what cannot be loaded; the reason follows it.
        name_or_path: Hub id or folder of the model; None for one that is built from its parts.
        advice: what is allowed and what to do.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        # tokenizers and safetensors raise Exception itself, so no narrower class would do.
        found = _damage(Path(base_path(name_or_path))) if name_or_path is not None else None
        raise InputError(f"{problem}: {found or _reason(error)}. {advice}") from error


def check_weights(name: str, decoder: PreTrainedModel, report: Mapping[str, Collection[Any]]) -> None:
    """Compare the weights that a model asks for with those that were found.

    Args:
        name: of the model, for the message.
        decoder: the loaded model; on the meta device it will do.
        report: of transformers (`output_loading_info`): missing_keys, unexpected_keys and mismatched_keys.

    Raises:
        InputError: weights are missing, have another shape, or belong to layers that the configuration does not have.
    """
    missing = weights_read(report["missing_keys"])
    surplus = weights_read(report["unexpected_keys"])
    shapes = sorted(f"{key} {tuple(is_)}, not {tuple(asked)}" for key, is_, asked in report["mismatched_keys"])
    asked_for = {_structure(key) for key in decoder.state_dict()}
    prefix = f"{decoder.base_model_prefix}."
    layers = [key for key in surplus if _structure(key.removeprefix(prefix)) in asked_for]
    problems = _counted(
        (missing, "are missing, and would be drawn at random"),
        (surplus if missing else [], "have names that it does not know"),
        (shapes, "have another shape"),
        ([] if missing else layers, "belong to layers that it does not have"),
    )
    if problems:
        raise InputError(
            f"The weights of {name!r} are not those of the {type(decoder).__name__} that its configuration describes: "
            f"{problems}. Download or save the model again, so that its files belong together."
        )


def check_finite(name: str, decoder: PreTrainedModel) -> None:
    """Raise an InputError that names the weights with a NaN or infinite number in them."""
    broken = []
    for key, weight in decoder.named_parameters():
        if weight.is_floating_point() and weight.numel() and not weight.is_meta:
            least, most = weight.detach().aminmax()
            if not (least.isfinite() and most.isfinite()):
                broken.append(key)
    if broken:
        raise InputError(
            f"Weights of {name!r} cannot be used: {_counted((broken, 'have a NaN or infinite number in them'))}. "
            "Download or save the model again, or choose another."
        )


def load_trained_adapter(decoder: PreTrainedModel, adapter: str, *, trainable: bool = False, **hub: Any) -> None:
    """Put a saved adapter on a model, all of it.

    Args:
        decoder: the base.
        adapter: Hub id or folder.
        trainable: whether the adapter can be trained further.
        **hub: where on the Hub, such as revision and token.

    Raises:
        InputError: weights of the adapter are missing, belong to nothing in the base, or have another shape.
    """
    config = PeftConfig.from_pretrained(adapter, **hub)
    weights = load_peft_weights(adapter, device="cpu", **hub)
    names = decoder._weight_conversions
    report = decoder.load_adapter(
        peft_config=config,
        adapter_state_dict={saved_name(key): weight for key, weight in weights.items()},
        is_trainable=trainable,
        ignore_mismatched_sizes=True,
    )
    # transformers 5.23 keeps peft's names here, and would save merged weights under them.
    decoder._weight_conversions = names
    problems = _counted(
        (weights_read(report.missing_keys), "are missing"),
        (weights_read(report.unexpected_keys), "belong to nothing in the base, which would run without them"),
        (sorted(key for key, *_ in report.mismatched_keys), "have another shape"),
    )
    if problems:
        raise InputError(
            f"The adapter {adapter!r} does not fit its base {decoder.name_or_path!r}: {problems}. Give the base that "
            "it was trained on, or save the adapter again."
        )


def rename_magnitudes(path: Path) -> None:
    """Rewrite the file of a DoRA adapter, so that transformers finds the magnitudes, which peft then does as well."""
    with safe_open(path, framework="pt") as file:
        metadata, keys = file.metadata(), list(file.keys())
    if any(saved_name(key) != key for key in keys):
        save_file({saved_name(key): weight for key, weight in load_file(path).items()}, path, metadata)


def saved_name(key: str) -> str:
    """Return under which name a weight of an adapter is saved, of the one that peft has for it."""
    return f"{key}.weight" if key.endswith(MAGNITUDE) else key


def weights_read(keys: Iterable[str]) -> list[str]:
    """Return those of some weights that an embedding depends on, sorted."""
    return sorted(key for key in keys if not NOT_READ.search(key))


def _structure(key: str) -> str:
    """Return a weight's name without the numbers of its layers."""
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", key.removeprefix("model."))


def _counted(*kinds: tuple[list[str], str]) -> str:
    """Return how many weights are at fault in which way, and the first of them."""
    return "; ".join(f"{len(keys)} {what} ({', '.join(keys[:NAMES_SHOWN])})" for keys, what in kinds if keys)


def _reason(error: Exception) -> str:
    if "trust_remote_code" in str(error):
        return "it needs code of its own (auto_map in a configuration), which is not run"
    words = " ".join(str(error).split()).rstrip(".")
    if isinstance(error, (AttributeError, LookupError, TypeError)):
        return f"an option, or what one of its files holds, does not fit ({type(error).__name__}: {words})"
    return words if len(words) < LONGEST_REASON else f"{words[:LONGEST_REASON]}..."


def _damage(folder: Path) -> str | None:
    """Return what is wrong with a file of a model folder, and what to do; None if each can be read."""
    if folder.is_absolute() and not folder.is_dir():
        return "there is no such folder"
    for path in sorted(path for pattern in ("*", "*/*") for path in folder.glob(pattern)):
        if path.suffix in READ_FILES and (reason := _damage_of(path)) is not None:
            return f"{path.relative_to(folder)} {reason}"
    return None


def _check_json(path: Path) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    is_table = "config" in path.name or path.name == "tokenizer.json"
    if (is_table and not isinstance(content, dict)) or (path.name == "modules.json" and not isinstance(content, list)):
        raise ValueError(f"it holds a {type(content).__name__}")


def _damage_of(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            start = file.read(200)
        if start.startswith(LFS_POINTER):
            return f"is a Git LFS pointer and not the file that it stands for; run `git lfs pull` in {path.parent}"
        if not start:
            return "is empty"
        if path.suffix == ".json":
            _check_json(path)
        elif path.suffix == ".safetensors":
            with safe_open(path, framework="pt"):
                pass
        elif path.suffix == ".bin" and start.startswith(b"PK") and not zipfile.is_zipfile(path):
            return "is cut short"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    except (ValueError, SafetensorError) as error:
        return f"is cut short or damaged ({error})"
    return None
