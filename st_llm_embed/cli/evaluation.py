"""The commands that evaluate models, look for test texts in training sets, and prepare a submission."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from st_llm_embed.cli.options import configure_logging, listed, log_to_stderr, one_of
from st_llm_embed.errors import InputError

if TYPE_CHECKING:
    from mteb.results import TaskResult

    from st_llm_embed.data.beir import RetrievalSet
    from st_llm_embed.evaluation.mteb import PlannedTask
    from st_llm_embed.evaluation.retrieval import Found

app = typer.Typer()

Tasks = Annotated[
    str, typer.Option(metavar="A,B,...", help="mteb tasks; Tatoeba:fra-eng for one subset.", show_default=False)
]
Benchmark = Annotated[str | None, typer.Option(metavar="NAME", help="An mteb benchmark: 'MTEB(eng, v1)'.")]


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="Hub id or folder of any sentence-transformers model.")],
    tasks: Tasks = "",
    *,
    benchmark: Benchmark = None,
    data: Annotated[
        Path | None,
        typer.Option(help="In place of tasks: a BEIR folder, or a file of rows whose anchors look for positives."),
    ] = None,
    corpus: Annotated[Path | None, typer.Option(help="With --data ROWS: a file of further documents.")] = None,
    beside: Annotated[
        list[str] | None, typer.Option(metavar="MODEL", help="With --data: another model; may be repeated.")
    ] = None,
    instruction: Annotated[
        str | None,
        typer.Option(
            help="With --data: of every query, for models that take one.",
            show_default="each row's own, or the model's query prompt",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="With --data: print JSON.")] = False,
    prompts: Annotated[
        str | None,
        typer.Option(
            metavar="paper|mteb|none", help="The paper's instructions, mteb's, or none.", show_default="mteb"
        ),
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub model.")] = None,
    max_seq_length: Annotated[int | None, typer.Option(help="Longest text in tokens; the paper's is 512.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Texts per forward pass or request.")] = 32,
    device: Annotated[list[str] | None, typer.Option(help="cuda:0, cpu, ...; may be repeated.")] = None,
    output_dir: Annotated[Path, typer.Option(help="Where scores are kept, of any number of models.")] = Path(
        "runs/mteb"
    ),
    base_url: Annotated[
        str | None,
        typer.Option(help="OpenAI-compatible embeddings server that serves MODEL; its key is in OPENAI_API_KEY."),
    ] = None,
    max_usd: Annotated[float | None, typer.Option(min=0, help="With --base-url: most to spend.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="With --base-url: most tokens to send.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check model and prompts, estimate cost; evaluate nothing.")
    ] = False,
) -> None:
    """Evaluate a model on official mteb tasks, or on your own data beside BM25 and other models.

    Run it again to resume; finished mteb tasks are not repeated.
    """
    for_tasks = {"--tasks": tasks, "--benchmark": benchmark, "--prompts": prompts, "--base-url": base_url}
    for_data = {"--corpus": corpus, "--beside": beside, "--instruction": instruction, "--json": as_json}
    _refuse_others(for_data if data is None else for_tasks, "without" if data is None else "with")
    if data is not None:
        configure_logging()
        from st_llm_embed.data.beir import read_retrieval_set
        from st_llm_embed.evaluation.embedders import embedder_loader
        from st_llm_embed.evaluation.retrieval import compare

        options: dict[str, Any] = {"max_seq_length": max_seq_length, "device": next(iter(device or []), None)}
        models = {model: embedder_loader(model, revision=revision, **options)}
        models |= {name: embedder_loader(name, **options) for name in beside or []}
        rows = read_retrieval_set(data, corpus)
        if dry_run:
            typer.echo(f"{data}: {len(rows.queries):,} queries, {len(rows.corpus):,} documents; nothing is evaluated.")
            return
        found = compare(rows, models, instruction=instruction, batch_size=batch_size)
        if as_json:
            typer.echo(_found_json(rows, found))
        else:
            _print_found(rows, found)
        return
    mode = one_of(prompts or "mteb", ("paper", "mteb", "none"), "--prompts")
    log_to_stderr()
    import st_llm_embed.evaluation.mteb as evaluation
    from st_llm_embed.evaluation.mteb_models import load_model
    from st_llm_embed.evaluation.mteb_report import write_mteb_report
    from st_llm_embed.evaluation.served import ServedModel

    chosen = evaluation.resolve_tasks(listed(tasks), benchmark)
    if base_url is None:
        loaded = load_model(
            model, prompts=mode, revision=revision, max_seq_length=max_seq_length, devices=device or ()
        )
    else:
        loaded = ServedModel(
            base_url, model, mode, output_dir, max_usd=max_usd, max_tokens=max_tokens, max_seq_length=max_seq_length
        )
    with closing(loaded):
        todo = evaluation.unfinished(loaded, chosen, output_dir)
        if todo:
            planned = evaluation.preflight(loaded, todo)
            _print_preflight(planned, len(chosen))
            if isinstance(loaded, ServedModel):
                typer.echo(loaded.estimate(sum(one.characters for one in planned)))
        if not dry_run:
            scores = evaluation.evaluate(
                loaded, chosen, output_dir, batch_size=batch_size, after_each=write_mteb_report
            )
            write_mteb_report(output_dir)
            _print_scores(scores, output_dir)


@app.command()
def contamination(
    dataset: Annotated[
        str, typer.Argument(help="The folder of a run or a dataset, a .jsonl or .parquet file of rows, or embedded.")
    ],
    tasks: Tasks = "",
    benchmark: Benchmark = None,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with examples, in place of a table.")] = False,
) -> None:
    """Check a training set for contamination with the test texts of MTEB tasks."""
    log_to_stderr()
    from st_llm_embed.evaluation.mteb import resolve_tasks
    from st_llm_embed.evaluation.overlap import measure_overlap, overlap_json, overlap_markdown

    found = measure_overlap(dataset, resolve_tasks(listed(tasks), benchmark))
    typer.echo(overlap_json(found) if as_json else overlap_markdown(found))
    if found.not_compared:
        raise InputError(f"These tasks were not compared: {', '.join(found.not_compared)}. The output says why.")


@app.command()
def submit(
    model: Annotated[str, typer.Argument(metavar="ORG/NAME", help="The model's name on the Hub.")],
    results: Annotated[Path, typer.Option(help="What evaluate wrote with --prompts mteb.")],
    trained_on: Annotated[
        str | None,
        typer.Option(
            metavar="TASK,TASK|none", help="Tasks of mteb trained on, besides those of the recipe's known sources."
        ),
    ] = None,
    contamination: Annotated[Path | None, typer.Option(help="Output of contamination --json.")] = None,
) -> None:
    """Prepare a submission to the MTEB leaderboard. Nothing is sent; mteb submit-results does that."""
    log_to_stderr()
    from st_llm_embed.evaluation.submit import prepare_submission

    declared = None if trained_on is None else listed(trained_on)
    folder = prepare_submission(model, results, declared=declared, contamination=contamination)
    typer.echo((folder / "checklist.md").read_text(encoding="utf-8"))
    typer.echo(f"{folder}  the files of the submission")


def _refuse_others(options: Mapping[str, object], preposition: str) -> None:
    given = [name for name, value in options.items() if value]
    if given:
        raise InputError(
            f"{', '.join(given)} cannot be used {preposition} --data. Omit {'it' if len(given) == 1 else 'them'}."
        )


def _print_found(rows: RetrievalSet, found: Mapping[str, Found]) -> None:
    from rich.console import Console
    from rich.table import Table

    from st_llm_embed.evaluation.ranking import MEASURES, summarized

    title = f"{len(rows.queries):,} queries, {len(rows.corpus):,} documents; 95 % intervals over queries"
    table = Table("", *MEASURES.values(), "before a query", title=title)
    for name, one in found.items():
        scores = summarized(one.ranked.scores).values()
        cells = (f"{score['mean']:.3f} ({score['low']:.3f} to {score['high']:.3f})" for score in scores)
        table.add_row(name, *cells, one.query_prompt.strip() or "-")
    Console().print(table)
    for name, one in found.items():
        if one.lengths is not None:
            typer.echo(f"{name}: {one.lengths}")


def _found_json(rows: RetrievalSet, found: Mapping[str, Found]) -> str:
    from st_llm_embed.evaluation.ranking import summarized

    systems = {
        name: {
            "scores": summarized(one.ranked.scores),
            "query_prompt": one.query_prompt,
            "lengths": None if one.lengths is None else asdict(one.lengths),
        }
        for name, one in found.items()
    }
    return json.dumps({"queries": len(rows.queries), "documents": len(rows.corpus), "systems": systems}, indent=2)


def _print_preflight(planned: list[PlannedTask], count: int) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("task", "before a query", "from", "texts", title=f"{len(planned)} of {count} tasks to do")
    for one in planned:
        origin = one.prompt.source + (", GENERIC" if one.prompt.generic else "")
        table.add_row(one.name, one.prompt.query.strip() or "-", origin, f"{one.texts:,}" if one.texts else "?")
    Console().print(table)


def _print_scores(results: list[TaskResult], output_dir: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("task", "split", "subset", "main score", title="scores")
    for result in results:
        for split, scores in result.scores.items():
            for score in scores:
                table.add_row(result.task_name, split, str(score["hf_subset"]), f"{score['main_score']:.4f}")
    Console().print(table)
    typer.echo(f"{output_dir / 'results'}  all scores, in mteb's layout")
    typer.echo(f"{output_dir / 'report.md'}  scores beside published ones")
    typer.echo(f"{output_dir / 'run.json'}  prompts, tokens, truncation, time and versions of this run")
