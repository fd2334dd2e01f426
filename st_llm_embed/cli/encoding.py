"""The commands that encode many texts and search among them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from st_llm_embed.cli.options import configure_logging, one_of
from st_llm_embed.errors import InputError

if TYPE_CHECKING:
    from st_llm_embed.encoding.search import Hit

app = typer.Typer()

SHOWN_CHARACTERS = 200


@app.command()
def encode(
    dataset: Annotated[
        str,
        typer.Argument(
            help="A folder of .txt and .md files, a .jsonl, .parquet or .csv file, a folder of such files, or the id "
            "of a dataset on the Hub."
        ),
    ],
    model: Annotated[str, typer.Option(help="Hub id or folder of any sentence-transformers model.")],
    to: Annotated[Path, typer.Option(help="The folder of shards; an unfinished one is gone on with.")],
    *,
    column: Annotated[str, typer.Option(help="Column with the texts.")] = "text",
    id_column: Annotated[
        str | None, typer.Option("--id", help="Column with the texts' names.", show_default="the place, from 0 on")
    ] = None,
    role: Annotated[str, typer.Option(metavar="document|query", help="Whose prompt the texts get.")] = "document",
    dimension: Annotated[
        int | None, typer.Option(min=1, help="Keep the first numbers of each vector.", show_default="all")
    ] = None,
    dtype: Annotated[str, typer.Option(metavar="float32|float16", help="What vectors are stored as.")] = "float32",
    keep_text: Annotated[bool, typer.Option("--text/--no-text", help="Store texts with their vectors.")] = True,
    shard_size: Annotated[int, typer.Option(min=1, help="Texts per shard.")] = 10_000,
    batch_size: Annotated[int, typer.Option(min=1, help="Texts per forward pass.")] = 32,
    processes: Annotated[int, typer.Option(min=1, help="How many have a model each.")] = 1,
    device: Annotated[
        list[str] | None, typer.Option(help="cuda:0, cpu, ...; may be repeated: processes take them in turn.")
    ] = None,
    engine: Annotated[
        str, typer.Option(metavar="local|ray", help="Processes of this machine, or Ray Data.")
    ] = "local",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub model.")] = None,
    dataset_config: Annotated[str | None, typer.Option(help="Configuration of a Hub dataset.")] = None,
    dataset_split: Annotated[str, typer.Option(help="Split of a Hub dataset.")] = "train",
    dataset_revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub dataset.")] = None,
) -> None:
    """Encode texts into parquet shards. Run it again to go on after a stop; finished shards are not repeated."""
    configure_logging()
    from st_llm_embed.encoding.embedder import ROLES
    from st_llm_embed.encoding.encode import ENGINES
    from st_llm_embed.encoding.encode import encode as encode_texts
    from st_llm_embed.encoding.shards import VECTOR_TYPES
    from st_llm_embed.encoding.texts import Texts
    from st_llm_embed.encoding.worker import Job

    job = Job(
        texts=Texts(dataset, column, id_column, dataset_config, dataset_split, dataset_revision),
        model=model,
        revision=revision,
        role=one_of(role, ROLES, "--role"),
        dimension=dimension,
        dtype=one_of(dtype, VECTOR_TYPES, "--dtype"),
        keep_text=keep_text,
        shard_size=shard_size,
        batch_size=batch_size,
        folder=to,
    )
    done = encode_texts(job, engine=one_of(engine, ENGINES, "--engine"), processes=processes, devices=device)
    typer.echo(
        f"{to}  {done.manifest.rows:,} vectors of {done.manifest.dimension} numbers in {done.manifest.shards} shards; "
        f"{done.written} encoded now, {done.kept} kept"
    )


@app.command()
def search(
    indexes: Annotated[list[Path], typer.Argument(metavar="INDEX...", help="Folders that encode wrote.")],
    query: Annotated[str, typer.Argument(help="What to look for.")],
    *,
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="What encodes the query, such as the query tower of a pair; once per INDEX, in their order.",
            show_default="the model that made the INDEX",
        ),
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="How many texts to show.")] = 5,
) -> None:
    """Show the texts nearest to a query, by exact search; several folders, of teacher and student, side by side."""
    if model is not None and len(model) != len(indexes):
        raise InputError(f"--model is given {len(model)} times for {len(indexes)} folders. Give it once for each.")
    configure_logging()
    from st_llm_embed.encoding.search import VectorIndex, query_embedder

    opened = [VectorIndex(folder) for folder in indexes]
    found = []
    for index, name in zip(opened, model or [None] * len(opened), strict=True):
        found.append(index.search(query_embedder(index, name).encode([query])[0], k))
    _print_hits([str(folder) for folder in indexes], found)


def _print_hits(titles: list[str], found: list[list[Hit]]) -> None:
    from itertools import zip_longest

    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    # Folded, not cut: the ends of the folders' names tell them apart.
    table = Table("", *(Column(title, overflow="fold") for title in titles), show_lines=True)
    for place, hits in enumerate(zip_longest(*found), start=1):
        table.add_row(str(place), *(Text(_shown(hit)) if hit else "" for hit in hits))
    Console().print(table)


def _shown(hit: Hit) -> str:
    text = " ".join((hit.text or "").split())
    text = f"{text[:SHOWN_CHARACTERS]}..." if len(text) > SHOWN_CHARACTERS else text
    return f"{hit.score:.4f}  {hit.id}" + (f"\n{text}" if text else "")
