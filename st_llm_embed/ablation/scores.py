"""What one run of a grid scored: held-out rows by its report, and open evaluation sets if there are any."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel
from sentence_transformers import SentenceTransformer

from st_llm_embed.evaluation.open_sets import check_open_sets, open_set_files, score_open_sets
from st_llm_embed.modules import LLMSentenceTransformer
from st_llm_embed.stage import file_hash

SCORES_FILE = "scores.json"

HELD_OUT = {
    "retrieval_ndcg_at_10": "held-out retrieval, nDCG@10",
    "sts_triplet_accuracy": "held-out STS triplets, accuracy",
    "bitext_accuracy": "held-out bitext, accuracy",
}
"""Keys of the report and what tables call them."""


class RunScores(BaseModel):
    """All in 0..1, by name; those of open sets as `<task type>: <set>`."""

    recipe: str
    """As YAML, every default written out."""
    release: str
    """Fingerprint of the released model that was scored."""
    before: dict[str, float]
    """Held-out rows before training."""
    after: dict[str, float]
    open_sets: dict[str, float]
    """After training."""
    open_sets_hash: str | None = None
    """Of the files of those sets; None where none were scored."""
    steps: int
    seconds: float
    """Of training, by the clock; since the last stop."""


def score_run(folder: Path, report: dict[str, Any], open_sets: Path | None) -> RunScores:
    """Put together the scores of a finished run, and write them into its folder; open sets are scored once.

    Args:
        folder: the run's.
        report: what it achieved, as `run_pipeline` returned it.
        open_sets: folder of the sets; None for none.

    Raises:
        InputError: an open set is not there.
    """
    manifest = json.loads((folder / "manifests" / "release.json").read_text(encoding="utf-8"))
    known, sets_hash, scored = read_scores(folder), None, {}
    if open_sets is not None:
        sets_hash = _hash(open_sets)
        if known is not None and (known.release, known.open_sets_hash) == (manifest["fingerprint"], sets_hash):
            scored = known.open_sets
        else:
            model = LLMSentenceTransformer(str(folder / "release"))
            scored = score_open_sets(cast(SentenceTransformer, model), open_sets)
    moments = {
        moment: {label: report[moment][key] for key, label in HELD_OUT.items() if report[moment][key] is not None}
        for moment in ("before", "after")
    }
    scores = RunScores(
        recipe=(folder / "recipe.yaml").read_text(encoding="utf-8"),
        release=manifest["fingerprint"],
        **moments,
        open_sets=scored,
        open_sets_hash=sets_hash,
        steps=report["training"]["steps"],
        seconds=report["training"]["seconds"],
    )
    partial = folder / f".{SCORES_FILE}.partial"
    partial.write_text(scores.model_dump_json(indent=1), encoding="utf-8")
    partial.replace(folder / SCORES_FILE)
    return scores


def read_scores(folder: Path) -> RunScores | None:
    """Give the scores of a run; None where it is not finished."""
    path = folder / SCORES_FILE
    return RunScores.model_validate_json(path.read_bytes()) if path.is_file() else None


def _hash(open_sets: Path) -> str:
    check_open_sets(open_sets)
    hashes = [file_hash(open_sets / name) for name in open_set_files()]
    return hashlib.sha256("".join(hashes).encode()).hexdigest()
