"""Table 5, instructions: natural language, the name of the task type, or none.

    python scripts/reproduce/instruction.py [--scale tiny|small|full] [--open-sets FOLDER]

Training, held-out rows and open sets agree: a variant is scored with the instructions it was trained with. The paper
does not print its task-type prefixes; here the name of the row's task type (sts, short-long, ...) replaces the
instruction in the same template.

tiny: 9 runs, 25 processor minutes with open sets. small: 9 runs, 0.13 GPU hours, 0.4 USD. full: 3 runs, 69 GPU hours,
207 USD. scales.py says what one run takes, its memory, and what of that was measured.
"""

from __future__ import annotations

from scales import ablate, arguments

AXES = {
    "instruction": {
        "natural language": (),
        "task type": ("base.instructions=task_type",),
        "none": ("base.instructions=none",),
    }
}

if __name__ == "__main__":
    ablate(arguments(__doc__), "instruction", "What is put before a query (paper, table 5).", AXES)
