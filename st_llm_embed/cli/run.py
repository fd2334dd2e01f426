"""The commands that take a recipe from rows to a released model: run, build-data, train, and plan beforehand."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from st_llm_embed.cli.options import (
    DryRun,
    OutputDir,
    Overrides,
    RecipeArgument,
    check_and_print,
    configure_logging,
    load_recipe,
    print_contents,
)
from st_llm_embed.errors import InputError

if TYPE_CHECKING:
    from st_llm_embed.training.plan import Plan

app = typer.Typer()

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
    """Run every stage of a recipe: dataset, training, evaluation, release. Rerun the command to resume."""
    resolved, folder = load_recipe("run", recipe, overrides, output_dir)
    from st_llm_embed.pipeline import check_inputs, run_pipeline, training_folders
    from st_llm_embed.processes import is_first_process

    if dry_run:
        check_and_print(resolved, lambda one: check_inputs(one, configure_logging))
        return
    configure_logging()
    report = run_pipeline(resolved, folder)
    if not is_first_process():
        return
    from rich.console import Console
    from rich.table import Table

    from st_llm_embed.evaluation.report import headline_rows

    table = Table("held-out rows", "before", "after", "change", title=f"{report['recipe']}: before and after training")
    for row in headline_rows(report):
        table.add_row(*row)
    Console().print(table)
    _print_contents(folder, "release", "evaluation/report.md", *training_folders(resolved), "dataset", "journal")


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
    """Run a recipe up to training: rows of an LLM, mining, dataset, sources. `train` and `run` continue from there."""
    resolved, folder = load_recipe("build-data", recipe, overrides, output_dir, needs=("data", "synthesis"))
    from st_llm_embed.pipeline import check_data, run_build_data

    if dry_run:
        check_and_print(resolved, check_data)
        return
    configure_logging()
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
    """Run a recipe up to and including training, building data that is missing; `run` continues from there."""
    resolved, folder = load_recipe("train", recipe, overrides, output_dir)
    from st_llm_embed.pipeline import check_inputs, run_training, training_folders
    from st_llm_embed.processes import is_first_process

    if dry_run:
        check_and_print(resolved, lambda one: check_inputs(one, configure_logging))
        return
    configure_logging()
    run_training(resolved, folder)
    if is_first_process():
        *former, last = training_folders(resolved)
        _print_contents(folder, f"{last}/model", *former, last, "dataset", "sources", "journal")


@app.command()
def plan(
    recipe: RecipeArgument = None,
    output_dir: OutputDir = None,
    overrides: Overrides = None,
    *,
    devices: Annotated[int, typer.Option(min=1, help="GPUs that train together.")] = 1,
    sharded: Annotated[
        bool, typer.Option("--sharded", help="Weights, gradients and optimizer are spread over them: ZeRO-3, FSDP.")
    ] = False,
    device_memory: Annotated[
        float | None, typer.Option(metavar="GIB", help="Memory of one device; say whether the training fits.")
    ] = None,
    usd_per_hour: Annotated[
        float | None, typer.Option(metavar="USD", min=0, help="Price of an hour of one device; print what it costs.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Estimate what each training of a recipe takes: steps, tokens, FLOPs, peak memory, disk. Writes nothing."""
    resolved, folder = load_recipe("plan", recipe, overrides, output_dir)
    if device_memory is not None and not 0 < device_memory < float("inf"):
        raise InputError(f"--device-memory is {device_memory}; give the memory of one device in GiB, such as 80.")
    from st_llm_embed.training.plan import plan_trainings

    plans = plan_trainings(resolved, folder, devices=devices, sharded=sharded, device_memory=device_memory)
    if as_json:
        content = [planned.to_dict() for planned in plans]
        typer.echo(json.dumps(content if resolved.stages else content[0], indent=2))
        return
    for planned in plans:
        _print_plan(planned, usd_per_hour)


def _print_plan(plan: Plan, usd_per_hour: float | None) -> None:
    from rich.console import Console
    from rich.table import Table

    from st_llm_embed.training.plan import GIB, USABLE

    steps = plan.steps
    padding = 1 - plan.tokens_per_step / plan.padded_tokens_per_step
    accumulated = f" x {plan.gradient_accumulation} accumulated" if plan.gradient_accumulation > 1 else ""
    table = Table("what", "estimate", title=plan.recipe)
    for name, rows in plan.configurations.items():
        table.add_row(f"rows: {name}", f"{rows:,}")
    table.add_row("batch", f"{plan.batch_per_device:,} rows x {plan.devices} devices{accumulated}")
    table.add_row("steps", f"{steps:,}, of which {plan.warmup_steps:,} warm up")
    table.add_row("tokens", f"{plan.tokens_per_step:,.0f} a step, {plan.tokens_per_step * steps:,.0f} in all")
    table.add_row("tokens with padding", f"{plan.padded_tokens_per_step * steps:,.0f} ({padding:.1%} padding)")
    table.add_row("parameters", f"{plan.parameters:,}, {plan.trainable_parameters:,} trained")
    table.add_row("FLOPs", f"{plan.flops_per_step:.3g} a step, {plan.flops_per_step * steps:.3g} in all")
    table.add_row("hours, all devices together", f"{plan.hours:,.2f} at 100 TFLOP/s sustained")
    if usd_per_hour is not None:
        table.add_row("cost", f"{plan.hours * usd_per_hour:,.2f} USD at {usd_per_hour:g} for an hour of one device")
    for name, size in plan.memory.items():
        label = "peak memory of one device" if name == "total" else f"memory: {name}"
        table.add_row(label, f"{size / GIB:,.2f} GiB")
    table.add_row("disk: checkpoints, model, release", f"{plan.disk / GIB:,.2f} GiB")
    Console().print(table)
    for note in plan.notes:
        typer.echo(note)
    if plan.device_memory is None:
        return
    outcome = "fits" if plan.fits else "does not fit"
    typer.echo(f"The recipe {outcome} {plan.device_memory / GIB:,.0f} GiB, of which {USABLE:.0%} are counted on.")
    if not plan.fits:
        typer.echo(
            "To take less: lora, base.dtype in 16 bits, base.quantization nf4, training.activation_checkpointing, a "
            "smaller loss.mini_batch_num_tokens, or more devices with --sharded."
        )


def _print_contents(folder: Path, *names: str) -> None:
    kept = (*names, "recipe.yaml")
    print_contents(folder, {name: CONTENTS[re.sub("^training-[^/]+", "training", name)] for name in kept})
