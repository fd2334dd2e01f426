"""Table 1: full data, synthetic rows alone, synthetic rows and one public set; table 17: public sets alone.

    python scripts/training_pairs.py --to data
    python scripts/reproduce/main_table.py [--scale tiny|small|full] [--pairs data] [--open-sets FOLDER]

tiny and small use the four public sets of the recipe demo-real instead of the paper's thirteen, and JaQuAD instead of
MS MARCO; steps are equal, so a mix of more sets has less of each. If the pairs are not downloaded, the kinds of
synthetic rows are compared instead: those of two steps, and sts and bitext.

tiny: 12 runs, 29 processor minutes with open sets. small: 12 runs, 0.2 GPU hours, 0.5 USD. full: 4 runs, 92 GPU hours
and 276 USD with the synthetic rows alone; --dry-run counts the public sets once they are there. scales.py says what
one run takes, its memory, and what of that was measured.
"""

from __future__ import annotations

from scales import PAIRS, SCALES, ablate, arguments, pairs_are_there, sources, stages

from st_llm_embed import Recipe
from st_llm_embed.recipe import TASK_TYPES

if __name__ == "__main__":
    given = arguments(__doc__)
    scale = SCALES[given.scale]
    if given.scale == "full":
        every = list(Recipe.load("e5-mistral-7b").data.sources)
        scale, one = scale.with_overrides(sources("e5-mistral-7b", *every)), "msmarco"
    elif pairs_are_there(given.pairs):
        every = list(PAIRS)
        scale, one = scale.with_overrides(sources("demo-real", *every, pairs=given.pairs)), "jaquad"
    else:
        every, one = [], ""
    if every:
        mixes = {
            "full data": [*TASK_TYPES, *every],
            "synthetic alone": TASK_TYPES,
            f"synthetic and {one}": [*TASK_TYPES, one],
            "public sets alone": every,
        }
    else:
        mixes = {
            "all task types": TASK_TYPES,
            "two-step types": TASK_TYPES[:4],
            "sts and bitext": TASK_TYPES[4:],
        }
    axes = {"data": {label: (stages({"name": "training", "configurations": mix}),) for label, mix in mixes.items()}}
    ablate(given, "main-table", "What is trained on (paper, tables 1 and 17).", axes, scale)
