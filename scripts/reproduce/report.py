"""Fill docs/reproduction.md: next to each table of the paper, ours from the folders that the other scripts wrote.

    python scripts/reproduce/report.py [--runs runs/reproduce] [--commit HASH]

Everything between `<!-- NAME -->` and `<!-- end -->` is rewritten from FOLDER/NAME-SCALE; what has not been run stays
as it is. The text around the marks, which says what the numbers show, is written by hand.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
from pathlib import Path

from st_llm_embed.evaluation.mteb_report import load_references
from st_llm_embed.evaluation.report import markdown_table

ROOT = Path(__file__).resolve().parents[2]

CATEGORIES = ("Classification", "Clustering", "PairClassification", "Reranking", "Retrieval", "STS", "mean")

PAPER = {
    "main-table": ("paper-full", "paper-synthetic", "paper-synthetic-msmarco", "paper-without-synthetic"),
    "commercial": ("paper-full", "openai-3-large", "cohere-english-v3", "voyage-lite-01", "uae-large"),
    "contrastive-pretraining": ("xlm-r", "xlm-r-pretrained", "paper-full", "paper-full-pretrained"),
    "base-model": ("paper-synthetic-msmarco", "ablation-llama2"),
    "pooling": ("paper-synthetic-msmarco", "ablation-mean-pool", "ablation-weighted-mean"),
    "lora-rank": ("paper-synthetic-msmarco", "ablation-rank-8", "ablation-rank-32"),
    "instruction": ("paper-synthetic-msmarco", "ablation-task-type-prefix", "ablation-no-instruction"),
}
"""Systems of references.yaml next to each of our tables."""

SCRIPTS = (*PAPER, "multilingual", "long-context", "synthetic-statistics", "contamination")


def main() -> None:
    """Write the document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/reproduce"))
    parser.add_argument("--scale", default="tiny")
    parser.add_argument("--commit", help="of the code that ran; default: the one that is checked out")
    given = parser.parse_args()
    head = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], check=False, capture_output=True, text=True, cwd=ROOT
    )
    commit = given.commit or head.stdout.strip()
    document = ROOT / "docs" / "reproduction.md"
    text = document.read_text(encoding="utf-8")
    for name in SCRIPTS:
        folder = given.runs / f"{name}-{given.scale}"
        if not (folder / "table.md").is_file():
            print(f"{name}: {folder} has no table; left as it is")
            continue
        block = filled(name, folder, given.scale, commit)
        text, replaced = re.subn(
            rf"(<!-- {name} -->\n).*?(<!-- end -->)",
            lambda mark, block=block: mark[1] + block + mark[2],
            text,
            flags=re.S,
        )
        print(f"{name}: {'filled' if replaced else 'the document has no such mark'}")
    document.write_text(text, encoding="utf-8")


def filled(name: str, folder: Path, scale: str, commit: str) -> str:
    """Return the text between the marks: the paper's table, ours, the plot, the command."""
    parts = []
    if name in PAPER:
        parts += ["The paper, MTEB (56 tasks, in percent):", paper_table(PAPER[name])]
    ours = (folder / "table.md").read_text(encoding="utf-8").strip()
    parts += ["Ours:", re.sub(r"\A# .*\n+", "", ours)]
    if (folder / "plot.png").is_file():
        picture = ROOT / "docs" / "reproduction" / f"{name}-{scale}.png"
        picture.parent.mkdir(exist_ok=True)
        shutil.copy(folder / "plot.png", picture)
        parts.append(f"![{name}: each seed, mean, and lowest to highest](reproduction/{picture.name})")
    script = name.replace("-", "_")
    options = " --open-sets FOLDER" if "open set" in ours or "XQuAD" in ours else ""
    parts.append(f"`python scripts/reproduce/{script}.py --scale {scale}{options}`, commit {commit}.")
    return "\n\n".join(parts) + "\n"


def paper_table(systems: tuple[str, ...]) -> str:
    """Return the published scores of some systems by category."""
    references = load_references()
    tables = {table.system: table for table in references.by("category")}
    shown = [name for name in CATEGORIES if any(name in tables[system].scores for system in systems)]
    rows = [
        (
            references.systems[system],
            *(f"{tables[system].scores[name]:.1f}" if name in tables[system].scores else "" for name in shown),
        )
        for system in systems
    ]
    return markdown_table(("", *shown), rows)


if __name__ == "__main__":
    main()
