"""Table 5, pooling: the last token, the mean, or a mean whose weights rise with the position.

    python scripts/reproduce/pooling.py [--scale tiny|small|full] [--open-sets FOLDER]

EOS is appended with each pooling; means are over all tokens, the instruction's included.

tiny: 9 runs, 25 processor minutes with open sets. small: 9 runs, 0.13 GPU hours, 0.4 USD. full: 3 runs, 69 GPU hours,
207 USD. scales.py says what one run takes, its memory, and what of that was measured.
"""

from __future__ import annotations

from scales import ablate, arguments

AXES = {
    "pooling": {
        "last token": (),
        "mean": ("base.pooling_mode=mean",),
        "weighted mean": ("base.pooling_mode=weightedmean",),
    }
}

if __name__ == "__main__":
    ablate(arguments(__doc__), "pooling", "How a text's vector is pooled (paper, table 5).", AXES)
