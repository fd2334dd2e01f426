"""Figure 4 (section 5.2): personalized passkey retrieval over context lengths, RoPE bases and sliding windows.

    python scripts/reproduce/long_context.py [--scale tiny|small|full] [--runs FOLDER]

Calls scripts/passkey.py on one model, the first that --runs names. tiny: 256 to 2,048 tokens, the positions that the
embedded base has (it was pretrained at 256), at RoPE bases of 10,000 and 100,000. small and full: up to 32,768 tokens;
full sweeps the paper's bases and a sliding window of 4,096 tokens. The texts are those of mteb's LEMBPasskeyRetrieval,
from the Hub.

tiny: about three processor minutes and 2 GiB besides the download. small and full: not measured; 6.5 million tokens
for each setting of the sweep (docs/evaluation.md).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from models import add_arguments, releases, write

PASSKEY = Path(__file__).parents[1] / "passkey.py"

LENGTHS = {"tiny": "256,512,1024,2048", "small": "256,512,1024,2048,4096,8192,16384,32768"}
LENGTHS["full"] = LENGTHS["small"]

SWEEPS = {
    "tiny": ("rope_theta=10000,100000",),
    "small": (),
    "full": ("rope_theta=10000,100000", "sliding_window=4096,none"),
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    given = parser.parse_args()
    folder = (given.output_dir or Path("runs/reproduce") / f"long-context-{given.scale}").resolve()
    [model, *_] = releases(given, folder)
    sweeps = [part for sweep in SWEEPS[given.scale] for part in ("--sweep", sweep)]
    command = [sys.executable, PASSKEY, model.resolve(), "--lengths", LENGTHS[given.scale], *sweeps]
    subprocess.run([*command, "--output-dir", folder / "passkey"], check=True)
    lines = json.loads((folder / "passkey" / "table.json").read_text(encoding="utf-8"))["lines"]
    lengths = list(lines[0]["accuracy"])
    rows = [f"| top-1 accuracy by tokens (chance 0.01) | {' | '.join(lengths)} |", "|---" * (len(lengths) + 1) + "|"]
    for line in lines:
        setting = ", ".join(f"{key} {value}" for key, value in line["setting"].items()) or "as released"
        cells = [f"{line['accuracy'][length]:.2f}" for length in lengths]
        rows.append(f"| {setting} | {' | '.join(cells)} |")
    write(folder, {"lines": lines}, "\n".join(rows) + "\n")
