"""The commands that evaluate models, look for test texts in training sets, and prepare a submission."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from st_llm_embed.cli.options import configure_logging, listed, log_to_stderr, one_of, parsed_parameters
from st_llm_embed.errors import InputError

if TYPE_CHECKING:
    from mteb.results import TaskResult

    from st_llm_embed.evaluation.benchmark.preflight import PlannedTask
    from st_llm_embed.evaluation.tasks import PasskeyLine

app = typer.Typer()


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="Hub id or folder of any sentence-transformers model.")],
    tasks: Annotated[
        str, typer.Option(metavar="A,B,...", help="mteb tasks; Tatoeba:fra-eng for one subset.", show_default=False)
    ] = "",
    *,
    benchmark: Annotated[str | None, typer.Option(metavar="NAME", help="An mteb benchmark: 'MTEB(eng, v1)'.")] = None,
    prompts: Annotated[
        str, typer.Option(metavar="paper|mteb|none", help="The paper's instructions, mteb's, or none.")
    ] = "mteb",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub model.")] = None,
    name: Annotated[
        str | None, typer.Option(metavar="ORG/NAME", help="What to call a local model.", show_default="local/<folder>")
    ] = None,
    max_seq_length: Annotated[int | None, typer.Option(help="Longest text in tokens; the paper's is 512.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Texts per forward pass.")] = 32,
    device: Annotated[list[str] | None, typer.Option(help="cuda:0, cpu, ...; may be repeated.")] = None,
    output_dir: Annotated[Path, typer.Option(help="Where scores are kept, of any number of models.")] = Path(
        "runs/mteb"
    ),
    keep_vectors: Annotated[
        bool, typer.Option("--keep-vectors", help="Keep documents' vectors (float16), for tasks with the same ones.")
    ] = False,
    base_url: Annotated[
        str | None, typer.Option(help="Address of an OpenAI-compatible embeddings server that serves MODEL.")
    ] = None,
    api_key_env: Annotated[str, typer.Option(help="With --base-url: variable that holds the key.")] = "OPENAI_API_KEY",
    tokenizer: Annotated[
        str | None, typer.Option(help="With --base-url: the model's tokenizer, to cut texts at --max-seq-length.")
    ] = None,
    parameter: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="With --base-url: a further field of requests; may be repeated."),
    ] = None,
    price: Annotated[float | None, typer.Option(min=0, help="With --base-url: USD per million tokens.")] = None,
    max_usd: Annotated[float | None, typer.Option(min=0, help="With --base-url: most to spend.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="With --base-url: most tokens to send.")] = None,
    compare_with: Annotated[
        Path | None, typer.Option(help="Output folder of another run, such as that of the model before training.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check model, prompts, time and cost; evaluate nothing.")
    ] = False,
) -> None:
    """Evaluate a model on official mteb tasks. Run it again to go on after a stop; finished tasks are not repeated."""
    mode = one_of(prompts, ("paper", "mteb", "none"), "--prompts")
    log_to_stderr()
    import st_llm_embed.evaluation.benchmark.run as evaluation
    from st_llm_embed.evaluation.benchmark.models import LocalModel, load_model
    from st_llm_embed.evaluation.benchmark.preflight import preflight
    from st_llm_embed.evaluation.benchmark.report import write_mteb_report

    chosen = evaluation.resolve_tasks(listed(tasks), benchmark)
    with ExitStack() as opened:
        if base_url is None:
            vectors_dir = output_dir / "vectors" if keep_vectors else None
            loaded = load_model(
                model,
                prompts=mode,
                revision=revision,
                name=name,
                max_seq_length=max_seq_length,
                devices=device or (),
                vectors_dir=vectors_dir,
            )
            opened.callback(loaded.close)
        else:
            from st_llm_embed.evaluation.server.client import Server
            from st_llm_embed.evaluation.server.cost import Limits
            from st_llm_embed.evaluation.server.endpoint import open_endpoint

            loaded = opened.enter_context(
                open_endpoint(
                    Server(base_url, model, parsed_parameters(parameter or [])),
                    mode,
                    output_dir,
                    api_key_env=api_key_env,
                    limits=Limits(price, max_usd, max_tokens),
                    tokenizer=tokenizer,
                    max_seq_length=max_seq_length,
                )
            )
        todo = evaluation.unfinished(loaded, chosen, output_dir)
        if todo:
            if not isinstance(loaded, LocalModel):
                typer.echo(loaded.estimate(todo).describe())
            # mteb's mock tasks have texts, too, and a dry run pays for nothing.
            if isinstance(loaded, LocalModel) or not dry_run:
                _print_preflight(preflight(loaded, todo, batch_size=batch_size), len(chosen))
        if not dry_run:
            report = partial(write_mteb_report, before=compare_with)
            scores = evaluation.evaluate(loaded, chosen, output_dir, batch_size=batch_size, after_each=report)
            report(output_dir)
            _print_scores(scores, output_dir)


@app.command()
def passkey(
    model: Annotated[str, typer.Argument(help="A released folder or Hub id of an embedding model.")],
    *,
    lengths: Annotated[
        str, typer.Option(metavar="N,N,...", help="Tokens of the texts, special tokens included.")
    ] = "256,512,1024,2048,4096,8192,16384,32768",
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE,...",
            help="Load the model with each value of rope_theta or sliding_window; may be given for both.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Draws names, keys and places.")] = 0,
    output_dir: Annotated[Path, typer.Option(help="Where results, table and plot are written.")] = Path(
        "runs/passkey"
    ),
) -> None:
    """Score how far a model sees: whose pass key stands in which long text. Run it again to go on after a stop."""
    tokens = _lengths(lengths)
    from st_llm_embed.evaluation.tasks import run_passkey, swept_settings

    configure_logging()
    lines = run_passkey(model, output_dir, lengths=tokens, settings=swept_settings(sweep or []), seed=seed)
    _print_passkey(lines, tokens)
    typer.echo(f"{output_dir / 'passkey'}  the table and the plot")
    typer.echo(f"{output_dir / 'results'}  mteb's results")


@app.command()
def overlap(
    dataset: Annotated[
        str, typer.Argument(help="The folder of a run or a dataset, a .jsonl or .parquet file of rows, or embedded.")
    ],
    tasks: Annotated[str | None, typer.Option(metavar="NAME,NAME", help="Tasks of mteb.")] = None,
    benchmark: Annotated[str | None, typer.Option(help="All tasks of a benchmark of mteb.")] = None,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with examples, in place of a table.")] = False,
) -> None:
    """Look up the test texts of MTEB tasks in a training set: what a model trained on it has seen."""
    log_to_stderr()
    from st_llm_embed.evaluation.benchmark.run import resolve_tasks
    from st_llm_embed.evaluation.submission.overlap import measure_overlap, overlap_json, overlap_markdown

    found = measure_overlap(dataset, resolve_tasks(listed(tasks), benchmark))
    typer.echo(overlap_json(found) if as_json else overlap_markdown(found))
    if found.not_compared:
        raise InputError(f"These tasks were not compared: {', '.join(found.not_compared)}. The output says why.")


@app.command()
def submit(
    model: Annotated[str, typer.Argument(metavar="ORG/NAME", help="The model's name on the Hub.")],
    results: Annotated[Path, typer.Option(help="What evaluate wrote with --prompts mteb.")],
    benchmark: Annotated[str | None, typer.Option(help="Submit the tasks of this benchmark alone.")] = None,
    trained_on: Annotated[
        str | None,
        typer.Option(
            metavar="TASK,TASK|none", help="Tasks of mteb trained on, besides those of the recipe's known sources."
        ),
    ] = None,
    overlap: Annotated[Path | None, typer.Option(help="What overlap --json printed.")] = None,
    *,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open the pull request with the scores.")] = False,
) -> None:
    """Write what the two pull requests for the MTEB leaderboard need. Nothing is opened without --create-pr."""
    log_to_stderr()
    from st_llm_embed.evaluation.submission.prepare import open_results_pull_request, prepare_submission

    declared = None if trained_on is None else listed(trained_on)
    submission = prepare_submission(model, results, benchmark=benchmark, declared=declared, overlap=overlap)
    typer.echo((submission.folder / "checklist.md").read_text(encoding="utf-8"))
    typer.echo(f"{submission.folder}  the files of both pull requests")
    if create_pr:
        typer.echo(open_results_pull_request(submission))


def _lengths(numbers: str) -> list[int]:
    """Read the value of --lengths."""
    try:
        return sorted({int(number) for number in numbers.split(",")})
    except ValueError:
        raise InputError(
            f"--lengths is {numbers!r}; give whole numbers of tokens with commas between: --lengths 256,512,1024."
        ) from None


def _print_preflight(planned: list[PlannedTask], count: int) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("task", "before a query", "from", "texts", "minutes", title=f"{len(planned)} of {count} tasks to do")
    for one in planned:
        origin = f"{one.prompt.source}, GENERIC" if one.prompt.generic else one.prompt.source
        texts = f"{one.size.texts:,}" if one.size else "?"
        minutes = f"{one.seconds / 60:,.1f}" if one.seconds is not None else "?"
        table.add_row(one.name, one.prompt.query.strip() or "-", origin, texts, minutes)
    Console().print(table)
    known = [one.seconds for one in planned if one.seconds is not None]
    if known:
        typer.echo(f"About {sum(known) / 60:,.0f} minutes, from the speed on a few texts.")


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
    typer.echo(f"{output_dir / 'report.md'}  scores beside published ones, with pictures")
    typer.echo(f"{output_dir / 'run.json'}  prompts, tokens, truncation, time and versions of this run")


def _print_passkey(lines: list[PasskeyLine], lengths: list[int]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("tokens", *(f"{length:,}" for length in lengths), title="top-1 accuracy; 0.01 is chance")
    for line in lines:
        table.add_row(line.label, *(f"{line.accuracy[length]:.2f}" for length in lengths))
    Console().print(table)
