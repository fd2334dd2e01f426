"""Pass keys over context lengths and settings: RoPE base and sliding window (paper, section 5.2)."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, cast

from mteb.cache import ResultCache
from mteb.models.model_meta import ModelMeta
from transformers import AutoConfig, PreTrainedConfig

from st_llm_embed.errors import InputError, explained
from st_llm_embed.evaluation.benchmark.models import LocalModel
from st_llm_embed.evaluation.benchmark.run import evaluate, set_torn_files_aside
from st_llm_embed.evaluation.plots import plot_passkey
from st_llm_embed.evaluation.tasks.passkey import CANDIDATES, PasskeyRetrieval
from st_llm_embed.modules import LLMSentenceTransformer
from st_llm_embed.modules.layout import model_identity

logger = logging.getLogger(__name__)

SWEPT = ("rope_theta", "sliding_window")

TOKENS_AT_ONCE = 32_768
"""Tokens of a batch, so that one of short texts takes no more memory than one text of the longest length."""

Setting = dict[str, float | int | None]
"""What replaces values of the model's configuration: `rope_theta`, `sliding_window` (None for full attention)."""


class PasskeyLine(NamedTuple):
    """Top-1 accuracy of the model under one setting, by length in tokens."""

    setting: Setting
    accuracy: dict[int, float]

    @property
    def label(self) -> str:
        """The setting in words."""
        return setting_label(self.setting)


def swept_settings(sweeps: Sequence[str]) -> list[Setting]:
    """Read sweeps such as `rope_theta=1e4,1e5` and `sliding_window=256,none`; several are combined, each with each.

    Returns:
        The settings; a single one that changes nothing where there are no sweeps.

    Raises:
        InputError: a sweep is not of this form, or there are two of a name.
    """
    values: dict[str, list[float | int | None]] = {}
    for sweep in sweeps:
        name, _, listed = sweep.partition("=")
        if name not in SWEPT or name in values:
            raise InputError(
                f"--sweep is {sweep!r}; give NAME=VALUE,VALUE,... with each of {' and '.join(SWEPT)} once at the "
                "most: --sweep rope_theta=1e4,1e5 --sweep sliding_window=4096,none."
            )
        values[name] = [_swept_value(sweep, name, value.strip()) for value in listed.split(",")]
    return [dict(zip(values, chosen, strict=True)) for chosen in product(*values.values())]


def setting_label(setting: Setting) -> str:
    """Say a setting in words, for tables and plots."""
    if not setting:
        return "as saved"
    window = setting.get("sliding_window")
    words = {
        "rope_theta": f"RoPE base {setting.get('rope_theta'):,.0f}" if "rope_theta" in setting else "",
        "sliding_window": f"window {window:,}" if window else "full attention",
    }
    return ", ".join(words[name] for name in setting)


def run_passkey(
    name_or_path: str, output_dir: Path, *, lengths: Sequence[int], settings: Sequence[Setting], seed: int = 0
) -> list[PasskeyLine]:
    """Score a model on pass keys at every length under every setting; what is finished is not run again.

    Args:
        name_or_path: Hub id or local folder of an embedding model that `LLMSentenceTransformer` loads.
        output_dir: mteb's results lie in `results/` as always, those of a setting in mteb's `experiments/` folder of
            its name; a table and a plot of this call in `passkey/`.
        lengths: tokens of the texts, special tokens included. The model's max_seq_length is raised to the longest.
        settings: of `swept_settings`.
        seed: draws names, keys and places.

    Raises:
        InputError: there is no such model, it has too few positions, or nothing that a setting could change.
    """
    config = _config(name_or_path)
    _check_positions(name_or_path, config, lengths)
    overrides = [_overrides(name_or_path, config, setting) for setting in settings]
    name, revision = model_identity(name_or_path)
    lines = []
    for setting, override in zip(settings, overrides, strict=True):
        meta = ModelMeta.create_empty({"name": name, "revision": revision, "experiment_kwargs": setting or None})
        _run_setting(name_or_path, meta, override, output_dir, lengths=lengths, seed=seed)
        finished = _finished(output_dir, meta, seed)
        lines.append(PasskeyLine(setting, {length: finished[length] for length in lengths}))
    _write(lines, output_dir, name=name, revision=revision, seed=seed)
    return lines


def _run_setting(
    name_or_path: str,
    meta: ModelMeta,
    override: dict[str, Any],
    output_dir: Path,
    *,
    lengths: Sequence[int],
    seed: int,
) -> None:
    """Evaluate the lengths that are not finished, shortest first, each saved as soon as it is scored."""
    finished = _finished(output_dir, meta, seed)
    missing = sorted(set(lengths) - set(finished))
    if not missing:
        return
    with explained(f"The model {name_or_path!r} cannot be loaded", "Name an embedding model: a released folder."):
        model = LLMSentenceTransformer(name_or_path, config_kwargs=override)
    model.max_seq_length = max(lengths)
    evaluated = LocalModel(model, meta, "mteb")
    label = setting_label(dict(meta.experiment_kwargs or {}))
    for length in missing:
        logger.info("pass keys, %s: %d texts of %d tokens", label, CANDIDATES, length)
        task = PasskeyRetrieval(model.tokenizer, [length], seed)
        evaluate(evaluated, [task], output_dir, batch_size=max(1, TOKENS_AT_ONCE // length))


def _finished(output_dir: Path, meta: ModelMeta, seed: int) -> dict[int, float]:
    """Give the top-1 accuracy of every length that has been evaluated."""
    task, cache = PasskeyRetrieval(None, seed=seed), ResultCache(output_dir)
    set_torn_files_aside(cache, meta, [task])
    path = cache.get_task_result_path(task.metadata.name, meta)
    with explained(f"{path} holds no scores of mteb", "Remove it, and its lengths are run again."):
        result = cache.load_task_result(task.metadata.name, meta)
    scores = result.scores if result is not None else {}
    return {int(split.removeprefix("len")): float(one[0]["main_score"]) for split, one in scores.items()}


def _config(name_or_path: str) -> PreTrainedConfig:
    with explained(
        f"The configuration of {name_or_path!r} cannot be read",
        "Name a released folder or a Hub model; merge an adapter into its base first.",
    ):
        return cast(PreTrainedConfig, AutoConfig.from_pretrained(name_or_path))


def _check_positions(name_or_path: str, config: PreTrainedConfig, lengths: Sequence[int]) -> None:
    most = getattr(config.get_text_config(), "max_position_embeddings", None)
    wrong = [length for length in lengths if length < 1 or (most is not None and length > most)]
    if wrong or not lengths:
        raise InputError(
            f"--lengths has {', '.join(map(str, wrong)) or 'no length'}; {name_or_path} has positions for "
            f"{most or 'any number of'} tokens. Give --lengths from 1 to that. If the model's positions are rotary, "
            "max_position_embeddings in its config.json may be raised to see how it does beyond."
        )


def _overrides(name_or_path: str, config: PreTrainedConfig, setting: Setting) -> dict[str, Any]:
    """Give the keyword arguments of the configuration that a setting stands for.

    Raises:
        InputError: the model has no RoPE base of its own, or no sliding window.
    """
    overrides: dict[str, Any] = {}
    if "rope_theta" in setting:
        rope = getattr(config, "rope_parameters", None)
        # transformers 5 has the base in rope_parameters, and takes a bare rope_theta without effect.
        if not isinstance(rope, dict) or "rope_theta" not in rope:
            raise InputError(
                f"--sweep rope_theta cannot change {name_or_path}: a {config.model_type} has no rotary positions, or "
                "several RoPE bases. Leave this sweep away."
            )
        overrides["rope_parameters"] = rope | {"rope_theta": setting["rope_theta"]}
    if "sliding_window" in setting:
        if not hasattr(config, "sliding_window"):
            raise InputError(
                f"--sweep sliding_window cannot change {name_or_path}: transformers' {config.model_type} has no "
                "sliding window. Leave this sweep away."
            )
        window = setting["sliding_window"]
        overrides["sliding_window"] = window
        layer_types = getattr(config, "layer_types", None)
        if layer_types:
            kind = "full_attention" if window is None else "sliding_attention"
            overrides |= {"layer_types": [kind] * len(layer_types), "use_sliding_window": window is not None}
    return overrides


def _write(lines: Sequence[PasskeyLine], output_dir: Path, *, name: str, revision: str, seed: int) -> None:
    """Write what this call was asked for: `passkey/<model>-<revision>-seed<seed>.json` and the plot beside it."""
    folder = output_dir / "passkey"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name.replace('/', '__')}-{revision[:8]}-seed{seed}.json"
    report = {
        "model": name,
        "revision": revision,
        "seed": seed,
        "lines": [{"setting": line.setting, "accuracy": line.accuracy} for line in lines],
    }
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    plot_passkey({line.label: line.accuracy for line in lines}, 1 / CANDIDATES, path.with_suffix(".png"))


def _swept_value(sweep: str, name: str, value: str) -> float | int | None:
    if name == "sliding_window" and value == "none":
        return None
    try:
        number = float(value)
    except ValueError:
        number = 0.0
    if number >= 1 and (name == "rope_theta" or number.is_integer()):
        return number if name == "rope_theta" else int(number)
    raise InputError(
        f"--sweep {sweep!r} has {value!r}; rope_theta takes numbers of 1 or more, sliding_window whole numbers of "
        "tokens or none, for full attention."
    )
