"""Personalized passkey retrieval by context length, over RoPE bases and sliding windows (paper, section 5.2).

    python scripts/passkey.py MODEL [--lengths 256,512] [--sweep rope_theta=1e4,1e5] [--sweep sliding_window=4096,none]

Runs mteb's LEMBPasskeyRetrieval (100 texts and 50 queries of each length, about 256 to 32,768 tokens) and prints its
main score nDCG@1, which is top-1 accuracy: 0.01 by chance. A sweep loads the model with each value; several are
combined, each with each. MODEL is a released folder or the Hub id of an embedding model. Results are mteb's, in
--output-dir, those of a setting in the `experiments` folder of its name; table.json there is what this call was asked
for. Run it again to resume. The data comes from the Hub, or from mteb/LEMBPasskeyRetrieval in the working directory.
"""

from __future__ import annotations

import argparse
import json
import sys
from itertools import product
from pathlib import Path
from typing import Any, cast

import mteb
from mteb.cache import ResultCache
from mteb.models.model_meta import ModelMeta
from mteb.results import TaskResult
from transformers import AutoConfig, PreTrainedConfig

from st_llm_embed import InputError, LLMSentenceTransformer
from st_llm_embed.errors import explained
from st_llm_embed.evaluation.mteb import evaluate
from st_llm_embed.evaluation.mteb_models import LocalModel
from st_llm_embed.evaluation.report import markdown_table
from st_llm_embed.modules.layout import model_identity

TASK = "LEMBPasskeyRetrieval"
TOKENS_AT_ONCE = 32_768
"""Tokens of a batch, so that one of short texts needs no more memory than one text of the longest length."""

Setting = dict[str, float | int | None]
"""Replaces values of the model's configuration: `rope_theta`, `sliding_window` (None for full attention)."""


def main() -> None:
    """Score the model at every length under every setting, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--lengths", default="256,512,1024,2048,4096,8192,16384,32768")
    parser.add_argument("--sweep", action="append", default=[], metavar="NAME=VALUE,...")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/passkey"))
    given = parser.parse_args()
    try:
        lengths = sorted({int(length) for length in given.lengths.split(",")})
        lines = sweep_lengths(given.model, given.output_dir, lengths, swept_settings(given.sweep))
    except ValueError as error:
        sys.exit(f"Error: {error}")
    (given.output_dir / "table.json").write_text(json.dumps({"lines": lines}, indent=2) + "\n", encoding="utf-8")
    rows = [
        (
            ", ".join(f"{name} {value}" for name, value in line["setting"].items()) or "as saved",
            *(f"{line['accuracy'][length]:.2f}" for length in lengths),
        )
        for line in lines
    ]
    print(markdown_table(("tokens", *(f"{length:,}" for length in lengths)), rows))


def swept_settings(sweeps: list[str]) -> list[Setting]:
    """Read sweeps such as `rope_theta=1e4,1e5` and `sliding_window=256,none`; several are combined, each with each.

    Raises:
        InputError: a sweep is not of this form, or there are two of a name.
    """
    values: dict[str, list[float | int | None]] = {}
    readers: dict[str, Any] = {"rope_theta": float, "sliding_window": lambda one: None if one == "none" else int(one)}
    for sweep in sweeps:
        name, _, listed = sweep.partition("=")
        with explained(
            f"--sweep is {sweep!r}",
            "Give NAME=VALUE,VALUE,... with each of rope_theta and sliding_window at most once: --sweep "
            "rope_theta=1e4,1e5 --sweep sliding_window=4096,none.",
        ):
            values |= {name: list(map(readers.pop(name), listed.split(",")))}
    return [dict(zip(values, chosen, strict=True)) for chosen in product(*values.values())]


def sweep_lengths(
    name_or_path: str, output_dir: Path, lengths: list[int], settings: list[Setting]
) -> list[dict[str, Any]]:
    """Return the setting and the accuracy by length of each line of the table; what is finished is not run again.

    Raises:
        InputError: there is no such model, it has too few positions, or nothing that a setting could change.
    """
    with explained(f"The configuration of {name_or_path!r} cannot be read", "Name a released folder or a Hub model."):
        config = cast(PreTrainedConfig, AutoConfig.from_pretrained(name_or_path))
    most = getattr(config.get_text_config(), "max_position_embeddings", None)
    if most is not None and max(lengths) > most:
        raise InputError(f"--lengths has {max(lengths)}; {name_or_path} has positions for {most} tokens.")
    overrides = [config_overrides(name_or_path, config, setting) for setting in settings]
    name, revision = model_identity(name_or_path)
    lines = []
    for setting, override in zip(settings, overrides, strict=True):
        with explained(f"The model {name_or_path!r} cannot be loaded", "Name an embedding model: a released folder."):
            model = LLMSentenceTransformer(name_or_path, config_kwargs=override)
        model.max_seq_length = max(lengths)
        meta = ModelMeta.create_empty({"name": name, "revision": revision, "experiment_kwargs": setting or None})
        for length in lengths:
            task = mteb.get_task(TASK, eval_splits=[f"test_{length}"])
            batch_size = max(1, TOKENS_AT_ONCE // length)
            evaluate(LocalModel(model, meta, "mteb"), [task], output_dir, batch_size=batch_size)
        scores = cast(TaskResult, ResultCache(output_dir).load_task_result(TASK, meta)).scores
        accuracy = {length: scores[f"test_{length}"][0]["main_score"] for length in lengths}
        lines.append({"setting": setting, "accuracy": accuracy})
    return lines


def config_overrides(name_or_path: str, config: PreTrainedConfig, setting: Setting) -> dict[str, Any]:
    """Return the keyword arguments of the configuration that a setting stands for.

    Raises:
        InputError: the model has no RoPE base of its own, or no sliding window.
    """
    overrides: dict[str, Any] = {}
    rope: Any = getattr(config, "rope_parameters", None)
    # transformers 5 has the base in rope_parameters, and ignores a bare rope_theta.
    missing = "rope_theta" in setting and not (isinstance(rope, dict) and "rope_theta" in rope)
    if missing or ("sliding_window" in setting and not hasattr(config, "sliding_window")):
        raise InputError(
            f"--sweep cannot change {name_or_path}: a {config.model_type} has no "
            f"{'RoPE base' if missing else 'sliding window'}. Omit this sweep."
        )
    if "rope_theta" in setting:
        overrides["rope_parameters"] = rope | {"rope_theta": setting["rope_theta"]}
    if "sliding_window" in setting:
        window = overrides["sliding_window"] = setting["sliding_window"]
        if layer_types := getattr(config, "layer_types", None):
            kind = "full_attention" if window is None else "sliding_attention"
            overrides |= {"layer_types": [kind] * len(layer_types), "use_sliding_window": window is not None}
    return overrides


if __name__ == "__main__":
    main()
