"""Tables 2 and 6: retrieval by language, in groups of high and low resources.

    python scripts/reproduce/multilingual.py --open-sets FOLDER [--scale tiny|small|full] [--runs FOLDER ...]

The paper uses MIRACL; this uses XQuAD's validation passages in twelve languages (FOLDER/xquad/<language>), which are
translations of each other, so that nothing but the language differs: nDCG@10 of the first 1,000 questions, before and
after training, over the runs of --runs. High-resource languages are those with more than an equal share
of the synthetic rows (st_llm_embed.languages). full runs `evaluate --tasks MIRACLRetrieval` instead.

tiny: 4 processor minutes for three runs, 2 GiB, no money. small and full: not measured.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from statistics import mean

from models import add_arguments, releases, st_llm_embed, write
from scales import errors_in_one_line

from st_llm_embed import LLMSentenceTransformer, Recipe
from st_llm_embed.languages import LANGUAGE_CODES, SAMPLING_WEIGHTS
from st_llm_embed.training.adapter import starting_model

sys.path.append(str(Path(__file__).resolve().parents[1]))
from ablate import spread
from open_sets import retrieval_score

LANGUAGES = ("ar", "de", "el", "en", "es", "hi", "ro", "ru", "th", "tr", "vi", "zh")
HIGH = {LANGUAGE_CODES[name] for name, weight in SAMPLING_WEIGHTS.items() if weight > 0.01}


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--open-sets", type=Path)
    given = parser.parse_args()
    folder = (given.output_dir or Path("runs/reproduce") / f"multilingual-{given.scale}").resolve()
    if given.scale != "full" and (given.open_sets is None or not (given.open_sets / "xquad" / "en").is_dir()):
        raise SystemExit("Error: --open-sets FOLDER with xquad/<language>/ in it is needed.")
    models = releases(given, folder)
    if given.scale == "full":
        command = ("--tasks", "MIRACLRetrieval", "--prompts", "paper", "--max-seq-length", "512")
        print(st_llm_embed("evaluate", models[0].resolve(), *command, "--output-dir", folder / "mteb"))
        return
    start = starting_model(Recipe.load(str(models[0].parent / "recipe.yaml")))
    before = {language: score(start, given.open_sets, language) for language in LANGUAGES}
    after: dict[str, list[float]] = {language: [] for language in LANGUAGES}
    for model in models:
        trained = LLMSentenceTransformer(str(model))
        for language in LANGUAGES:
            after[language].append(score(trained, given.open_sets, language))
    lines = ["| nDCG@10, XQuAD | before | after |", "|---|---|---|"]
    for label, group in (("high", set(LANGUAGES) & HIGH), ("low", set(LANGUAGES) - HIGH)):
        by_run = [mean(after[language][run] for language in group) for run in range(len(models))]
        named = ", ".join(sorted(group))
        lines.append(f"| {label} resources ({named}) | {mean(before[x] for x in group):.3f} | {spread(by_run)} |")
    lines += [f"| {language} | {before[language]:.3f} | {spread(after[language])} |" for language in LANGUAGES]
    write(folder, {"before": before, "after": after}, "\n".join(lines) + "\n")


def score(model: LLMSentenceTransformer, data: Path, language: str) -> float:
    """Return nDCG@10 in one language."""
    return retrieval_score(model, data / "xquad" / language, "validation")


if __name__ == "__main__":
    with errors_in_one_line():
        main()
