"""The command line: parse, call, print. Heavy imports stay inside the commands, so that --help answers at once."""

from __future__ import annotations

import json
import logging
import re
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from st_llm_embed.errors import InputError, explained
from st_llm_embed.recipe import Recipe, recipe_text, recipe_to_start_from, shipped_recipes

if TYPE_CHECKING:
    from mteb.results import TaskResult

    from st_llm_embed.evaluation.preflight import PlannedTask
    from st_llm_embed.evaluation.tasks import PasskeyLine
    from st_llm_embed.synthesis.generate import Projection
    from st_llm_embed.training.plan import Plan

Choice = TypeVar("Choice", bound=str)

app = typer.Typer(
    help="Turn a large language model into a text embedding model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
recipes_app = typer.Typer(help="List, show and copy the shipped recipes.", no_args_is_help=True)
app.add_typer(recipes_app, name="recipes")

RecipeArgument = Annotated[str | None, typer.Argument(help="A shipped recipe's name, or the path of a .yaml file.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Check recipe, rows and base, print the resolved recipe, write nothing.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override one value of the recipe; may be repeated."),
]
PushTo = Annotated[
    str | None, typer.Option(metavar="ORG/NAME", help="Push the dataset to this repository of the Hugging Face Hub.")
]
Private = Annotated[bool, typer.Option("--private", help="With --push-to: as a private repository.")]
OutputDir = Annotated[
    Path | None, typer.Option(help="Where everything is written.", show_default="runs/<recipe name>")
]

CONTENTS = {
    "release": "the model: SentenceTransformer(...) loads this folder",
    "evaluation/report.md": "the report, with plots",
    "training/model": "the trained model, not evaluated and not ready to publish",
    "training": "checkpoints and log",
    "dataset": "the rows, train and held out",
    "sources": "the pairs of other sets to train on",
    "journal": "every answer of the LLM",
    "recipe.yaml": "every choice of this run",
}


@app.command()
def run(
    recipe: RecipeArgument = None,
    output_dir: OutputDir = None,
    overrides: Overrides = None,
    *,
    dry_run: DryRun = False,
) -> None:
    """Run every stage of a recipe: dataset, training, evaluation, release. Run it again to go on after a stop."""
    resolved = Recipe.load(_required(recipe, "run"), overrides or [])
    from st_llm_embed.pipeline import check_inputs, run_pipeline, training_folders
    from st_llm_embed.training import is_first_process

    if is_first_process():
        _configure_logging()
    if dry_run:
        check_inputs(resolved)
        sys.stdout.write(resolved.to_yaml())
        return
    folder = output_dir or Path("runs") / resolved.name
    report = run_pipeline(resolved, folder)
    if is_first_process():
        _print_outcome(report, folder, training_folders(resolved))


@app.command("build-data")
def build_data(
    recipe: RecipeArgument = None,
    output_dir: OutputDir = None,
    overrides: Overrides = None,
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the rows or the LLM, print the resolved recipe, write nothing.")
    ] = False,
) -> None:
    """Run a recipe up to training: rows of an LLM, mining, dataset, sources. `train` and `run` go on from there."""
    resolved = Recipe.load(_required(recipe, "build-data"), overrides or [])
    from st_llm_embed.pipeline import check_data, run_build_data

    _configure_logging()
    if dry_run:
        check_data(resolved)
        sys.stdout.write(resolved.to_yaml())
        return
    folder = output_dir or Path("runs") / resolved.name
    run_build_data(resolved, folder)
    _print_contents(folder, "dataset", "sources", "journal")


@app.command()
def train(
    recipe: RecipeArgument = None,
    output_dir: OutputDir = None,
    overrides: Overrides = None,
    *,
    dry_run: DryRun = False,
) -> None:
    """Run a recipe up to and with training, building data that is not there; `run` goes on from there."""
    resolved = Recipe.load(_required(recipe, "train"), overrides or [])
    from st_llm_embed.pipeline import check_inputs, run_training, training_folders
    from st_llm_embed.training import is_first_process

    if is_first_process():
        _configure_logging()
    if dry_run:
        check_inputs(resolved)
        sys.stdout.write(resolved.to_yaml())
        return
    folder = output_dir or Path("runs") / resolved.name
    run_training(resolved, folder)
    if is_first_process():
        *former, last = training_folders(resolved)
        _print_contents(folder, f"{last}/model", *former, last, "dataset", "sources", "journal")


@app.command()
def plan(
    recipe: Annotated[str | None, typer.Argument(help="A shipped recipe's name, or the path of a .yaml file.")] = None,
    output_dir: OutputDir = None,
    overrides: Overrides = None,
    *,
    devices: Annotated[int, typer.Option(min=1, help="GPUs that train together.")] = 1,
    sharded: Annotated[
        bool, typer.Option("--sharded", help="Weights, gradients and optimizer are spread over them: ZeRO-3, FSDP.")
    ] = False,
    device_memory: Annotated[
        float | None, typer.Option(metavar="GIB", help="Memory of one; find the largest mini-batch that fits.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print what training a recipe takes: steps, tokens, negatives, operations, memory. Writes nothing."""
    resolved = Recipe.load(_required(recipe, "plan"), overrides or [])
    if device_memory is not None and not 0 < device_memory < float("inf"):
        raise InputError(f"--device-memory is {device_memory}; give the memory of one device in GiB, such as 80.")
    from st_llm_embed.training.plan import plan_training

    planned = plan_training(
        resolved,
        output_dir or Path("runs") / resolved.name,
        devices=devices,
        sharded=sharded,
        device_memory=device_memory,
    )
    if as_json:
        typer.echo(json.dumps(planned.to_dict(), indent=2))
    else:
        _print_plan(planned)


@app.command()
def synthesize(
    recipe: RecipeArgument = None,
    output_dir: OutputDir = None,
    overrides: Overrides = None,
    *,
    estimate: Annotated[
        int | None,
        typer.Option(metavar="K", help="Send K requests of each step and project requests, tokens, USD and hours."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check recipe, prices and key, print the first prompts, send nothing.")
    ] = False,
    push_to: PushTo = None,
    private: Private = False,
) -> None:
    """Have an LLM write the rows: requests, journal, filters, dataset. Run it again to go on after a stop."""
    resolved = _recipe_to_push(_required(recipe, "synthesize"), overrides, push_to)
    if estimate is not None and (estimate < 1 or dry_run):
        raise InputError(
            f"--estimate is {estimate}{' beside --dry-run' if dry_run else ''}; give the number of requests to send "
            "for each step, 20 or more for a useful projection, and no --dry-run, which sends nothing."
        )
    _log_to_stderr()
    folder = output_dir or Path("runs") / resolved.name
    from st_llm_embed.pipeline import check_data, planned_prompts, run_estimate, run_synthesis

    if dry_run:
        check_data(resolved)
        typer.echo("\n\n".join(planned_prompts(resolved)))
    elif estimate is not None:
        _print_projections(run_estimate(resolved, folder, estimate))
    else:
        _print_statistics(run_synthesis(resolved, folder), folder)
        _push_dataset(folder, push_to, private=private)


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
    mode = _one_of(prompts, ("paper", "mteb", "none"), "--prompts")
    _log_to_stderr()
    import st_llm_embed.evaluation.run as evaluation
    from st_llm_embed.evaluation.models import LocalModel, load_model
    from st_llm_embed.evaluation.mteb_report import write_mteb_report
    from st_llm_embed.evaluation.preflight import preflight

    chosen = evaluation.resolve_tasks([one for one in tasks.split(",") if one.strip()], benchmark)
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
        else:
            from st_llm_embed.evaluation.embedding_client import Server
            from st_llm_embed.evaluation.embedding_cost import Limits
            from st_llm_embed.evaluation.endpoint import open_endpoint, parsed_parameters

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
def reparse(
    recipe: RecipeArgument = None,
    output_dir: OutputDir = None,
    overrides: Overrides = None,
    *,
    push_to: PushTo = None,
    private: Private = False,
) -> None:
    """Make the dataset anew of the answers in the journal, with this recipe's filters. No LLM is asked or paid."""
    resolved = _recipe_to_push(_required(recipe, "reparse"), overrides, push_to)
    _log_to_stderr()
    folder = output_dir or Path("runs") / resolved.name
    from st_llm_embed.pipeline import run_synthesis

    _print_statistics(run_synthesis(resolved, folder, ask=False), folder)
    _push_dataset(folder, push_to, private=private)


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
    tokens = _whole_numbers(lengths)
    from st_llm_embed.evaluation.tasks import run_passkey, swept_settings

    _configure_logging()
    lines = run_passkey(model, output_dir, lengths=tokens, settings=swept_settings(sweep or []), seed=seed)
    _print_passkey(lines, tokens)
    typer.echo(f"{output_dir / 'passkey'}  the table and the plot")
    typer.echo(f"{output_dir / 'results'}  mteb's results")


@recipes_app.command("list")
def list_recipes() -> None:
    """Print the name of each shipped recipe and what it makes."""
    for name in shipped_recipes():
        typer.echo(f"{name:20} {Recipe.load(name).description}")


@recipes_app.command("show")
def show_recipe(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe's name, or the path of a .yaml file.")],
    overrides: Overrides = None,
) -> None:
    """Print a recipe: as written, with its comments, or resolved where --set is given."""
    typer.echo(Recipe.load(recipe, overrides).to_yaml() if overrides else recipe_text(recipe))


@recipes_app.command("copy")
def copy_recipe(
    name: Annotated[str, typer.Argument(help="A shipped recipe's name.")],
    to: Annotated[Path | None, typer.Option(help="The new file, .yaml or .yml.", show_default="NAME.yaml")] = None,
) -> None:
    """Start a recipe of your own: a shipped one with its comments, the file's name, and no description or limits."""
    target = to or Path(f"{name}.yaml")
    content = recipe_to_start_from(name, target)
    with explained(f"{target} cannot be written", "Choose another file with --to."):
        if target.exists():
            raise InputError(f"{target} exists. Choose another file with --to, or remove it.")
        target.write_text(content, encoding="utf-8")
    typer.echo(f"Wrote {target}. Run it with: st-llm-embed run {target}")


def main() -> None:
    """Run the command line; the user's mistakes end with one message and exit code 2."""
    try:
        app()
    except InputError as error:
        typer.echo(f"Error: {error}", err=True)
        sys.exit(2)


def _required(recipe: str | None, command: str) -> str:
    if recipe is None:
        raise InputError(
            f"{command} needs a recipe: a shipped one ({', '.join(shipped_recipes())}) or the path of a .yaml file. "
            f"To see the whole path in minutes, without network or GPU: st-llm-embed {command} demo."
        )
    return recipe


def _one_of(value: str, allowed: tuple[Choice, ...], option: str) -> Choice:
    for one in allowed:
        if one == value:
            return one
    raise InputError(f"{option} is {value!r}; allowed are {', '.join(allowed)}.")


def _recipe_to_push(recipe: str, overrides: list[str] | None, push_to: str | None) -> Recipe:
    """Load a recipe; where its dataset is to be pushed, check that it can be, before anything is paid."""
    if push_to is None:
        return Recipe.load(recipe, overrides or [])
    resolved = Recipe.load(recipe, [*(overrides or []), f"publishing.dataset_repo_id={push_to}"])
    if resolved.publishing.dataset_license is None:
        raise InputError(
            "The dataset has no licence, and what is pushed needs one. Ask what the terms of the LLM that writes it "
            "allow, then set it: --set publishing.dataset_license=cc-by-4.0 (or apache-2.0, cc-by-nc-4.0, ...)."
        )
    return resolved


def _push_dataset(folder: Path, push_to: str | None, *, private: bool) -> None:
    if push_to is None:
        return
    from st_llm_embed.publishing.push import push_folder

    address = push_folder(
        folder / "dataset", push_to, repo_type="dataset", private=private, create_pr=False, commit_message="Add rows"
    )
    typer.echo(f"{address}  the dataset on the Hub")


def _configure_logging() -> None:
    """Show the package's own progress and the bars of training and encoding; silence those of loading and saving."""
    import datasets
    from transformers.utils import logging as transformers_logging

    datasets.disable_progress_bars()
    transformers_logging.disable_progress_bar()
    _log_to_stderr()


def _log_to_stderr() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    package_logger = logging.getLogger("st_llm_embed")
    package_logger.handlers = [handler]
    package_logger.setLevel(logging.INFO)


def _print_projections(projections: list[Projection]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("step", "requests", "usable", "tokens", "USD", "hours", title="projected from the answers so far")
    for row in projections:
        table.add_row(
            row.step,
            f"{row.requests:,}",
            f"{row.usable:.0%}",
            f"{row.tokens:,.0f}",
            f"{row.usd:,.2f}",
            f"{row.hours:,.1f}",
        )
    Console().print(table)


def _print_plan(plan: Plan) -> None:
    from rich.console import Console
    from rich.table import Table

    from st_llm_embed.training.plan import GIB, USABLE, hours

    console = Console()
    rows = Table(
        "configuration", "rows", "hard negatives", "negatives per anchor", "tokens per row", title=plan.recipe
    )
    for part in plan.configurations:
        numbers = (part.rows, part.hard_negatives, part.negatives_per_anchor, round(part.tokens_per_row))
        rows.add_row(part.name, *(f"{number:,}" for number in numbers))
    console.print(rows)
    padding = 1 - plan.tokens_per_step / plan.padded_tokens_per_step
    operations, steps, memory = plan.flops_per_step, plan.steps, plan.memory
    table = Table("what", "estimate", title="the run")
    table.add_row("rows", f"{plan.rows:,}")
    accumulated = f" x {plan.gradient_accumulation} accumulated" if plan.gradient_accumulation > 1 else ""
    table.add_row("batch", f"{plan.batch_per_device:,} rows x {plan.devices} devices{accumulated}")
    table.add_row("steps", f"{steps:,}, of which {plan.warmup_steps:,} warm up")
    table.add_row("tokens", f"{plan.tokens_per_step:,.0f} a step, {plan.tokens_per_step * steps:,.0f} in all")
    table.add_row("tokens with padding", f"{plan.padded_tokens_per_step * steps:,.0f} ({padding:.1%} padding)")
    table.add_row("parameters", f"{plan.decoder.parameters:,}, {plan.decoder.trainable:,} trained")
    table.add_row("operations", f"{operations.total:.3g} a step, {operations.total * steps:.3g} in all")
    table.add_row("  computed a second time", f"{operations.again / operations.total:.0%} of them")
    table.add_row("hours, all devices together", f"{hours(operations.total * steps):,.2f} at 100 TFLOP/s sustained")
    for name in ("weights", "gradients", "optimizer", "embeddings", "activations", "scores"):
        table.add_row(f"memory: {name}", f"{getattr(memory, name) / GIB:,.2f} GiB")
    table.add_row("memory of one device", f"{memory.total / GIB:,.2f} GiB")
    console.print(table)
    for note in plan.notes:
        typer.echo(note)
    if plan.device_memory is not None:
        typer.echo(
            f"The recipe as it is {'fits' if plan.fits else 'does not fit'} {plan.device_memory / GIB:,.0f} GiB, of "
            f"which {USABLE:.0%} are counted on. The largest mini-batch that fits:\n"
            f"--set loss.mini_batch_num_tokens={plan.largest_mini_batch}"
        )


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


def _print_statistics(statistics: dict[str, Any], folder: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(
        "task type", "rows", "rejected", title=f"{statistics['rows']:,} rows, ${statistics['cost']['usd']:,.2f}"
    )
    for task_type in statistics["rows_by_task_type"] | statistics["rejected_by_task_type"]:
        rows = statistics["rows_by_task_type"].get(task_type, 0)
        rejected = statistics["rejected_by_task_type"].get(task_type, 0)
        table.add_row(task_type, f"{rows:,}", f"{rejected:,}")
    Console().print(table)
    if statistics["rejected"]:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in statistics["rejected_by_reason"].items())
        typer.echo(f"rejected: {reasons}")
    typer.echo(f"{folder / 'dataset'}  the rows, the tasks, the rejected answers, statistics and plots")
    typer.echo(f"{folder / 'journal'}  every answer as it came")


def _whole_numbers(listed: str) -> list[int]:
    try:
        return sorted({int(number) for number in listed.split(",")})
    except ValueError:
        raise InputError(
            f"--lengths is {listed!r}; give whole numbers of tokens with commas between: --lengths 256,512,1024."
        ) from None


def _print_passkey(lines: list[PasskeyLine], lengths: list[int]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("tokens", *(f"{length:,}" for length in lengths), title="top-1 accuracy; 0.01 is chance")
    for line in lines:
        table.add_row(line.label, *(f"{line.accuracy[length]:.2f}" for length in lengths))
    Console().print(table)


def _print_outcome(report: dict[str, object], folder: Path, trainings: list[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    from st_llm_embed.evaluation import headline_rows

    table = Table("held-out rows", "before", "after", "change", title=f"{report['recipe']}: before and after training")
    for row in headline_rows(report):
        table.add_row(*row)
    Console().print(table)
    _print_contents(folder, "release", "evaluation/report.md", *trainings, "dataset", "journal")


def _print_contents(folder: Path, *names: str) -> None:
    """Say where what a command wrote lies."""
    for name in (*names, "recipe.yaml"):
        if (folder / name).exists():
            typer.echo(f"{folder / name}  {CONTENTS[re.sub('^training-[^/]+', 'training', name)]}")


if __name__ == "__main__":
    main()
