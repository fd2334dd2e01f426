"""Table 7: is contrastive pre-training needed? A pretrained or fresh base, with or without such a stage before.

    python scripts/training_pairs.py --to data
    python scripts/reproduce/contrastive_pretraining.py [--scale tiny|small|full] [--pairs data] [--open-sets FOLDER]

The paper's pre-training is that of mE5 on about a billion pairs. Here the stage has as many steps as the training
after it, at tiny half as many, on the public pairs of the recipe demo-real with the negatives of the batch alone;
if those are not downloaded, on the rows themselves without their hard negatives, which is a weaker test. full uses
MS MARCO for the stage. Settings without the stage have fewer steps.

tiny: 12 runs, 38 processor minutes with open sets, 24 without. small: 12 runs, 0.3 GPU hours, 0.8 USD. full: 4 runs,
138 GPU hours, 414 USD. scales.py says what one run takes, its memory, and what of that was measured.
"""

from __future__ import annotations

from scales import PAIRS, SCALES, ablate, arguments, pairs_are_there, sources, stages

from st_llm_embed.recipe import TASK_TYPES

TRAINING = {"name": "training", "configurations": TASK_TYPES}


if __name__ == "__main__":
    given = arguments(__doc__)
    scale, pretraining_on = SCALES[given.scale], TASK_TYPES
    if given.scale == "full":
        pretraining_on = ["msmarco"]
    elif pairs_are_there(given.pairs):
        scale = scale.with_overrides(sources("demo-real", *PAIRS, pairs=given.pairs))
        pretraining_on = list(PAIRS)
    pretraining = {"name": "pretraining", "configurations": pretraining_on, "hard_negatives": False}
    if given.scale == "tiny":
        # Hardness concerns hard negatives, and this stage has none.
        pretraining |= {"loss": {"hardness_strength": {}}, "training": {"max_steps": 20}}
    axes = {
        "base": {"pretrained base": (), "fresh weights": ("base.random_init=true",)},
        "stages": {
            "training alone": (stages(TRAINING),),
            "contrastive pre-training before": (stages(pretraining, TRAINING),),
        },
    }
    if given.scale != "tiny":
        # An adapter cannot make up for untrained weights: fresh ones are trained whole.
        axes["base"]["fresh weights"] = ("base.random_init=true", "lora=null")
    question = "Contrastive pre-training before the training, from pretrained and from fresh weights (paper, table 7)."
    ablate(given, "contrastive-pretraining", question, axes, scale)
