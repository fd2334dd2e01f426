"""The commands that encode many texts and search among them."""

from __future__ import annotations

from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from st_llm_embed.cli.options import configure_logging, one_of
from st_llm_embed.errors import InputError

if TYPE_CHECKING:
    from st_llm_embed.encoding.search import Hit
    from st_llm_embed.encoding.shards import Manifest
    from st_llm_embed.modules.lengths import Lengths

app = typer.Typer()


@app.command()
def encode(
    dataset: Annotated[
        str,
        typer.Argument(help="A .jsonl, .parquet or .csv file, a folder of these or .txt files, or a Hub dataset."),
    ],
    model: Annotated[str, typer.Option(help="Hub id or folder of any sentence-transformers model.")],
    to: Annotated[Path, typer.Option(help="Output folder for the shards; an unfinished run is resumed.")],
    *,
    column: Annotated[str, typer.Option(help="Column with the texts.")] = "text",
    id_column: Annotated[
        str | None, typer.Option("--id", help="Column with the texts' names.", show_default="the position, from 0 on")
    ] = None,
    role: Annotated[str, typer.Option(metavar="document|query", help="Whose prompt the texts get.")] = "document",
    dimension: Annotated[
        int | None, typer.Option(min=1, help="Keep the first numbers of each vector.", show_default="all")
    ] = None,
    dtype: Annotated[str, typer.Option(metavar="float32|float16", help="Type of the stored vectors.")] = "float32",
    keep_text: Annotated[bool, typer.Option("--text/--no-text", help="Store texts with their vectors.")] = True,
    shard_size: Annotated[int, typer.Option(min=1, help="Texts per shard.")] = 10_000,
    batch_size: Annotated[int, typer.Option(min=1, help="Texts per forward pass.")] = 32,
    processes: Annotated[int, typer.Option(min=1, help="Number of processes or of actors of Ray.")] = 1,
    device: Annotated[
        list[str] | None, typer.Option(help="cuda:0, cpu, ...; may be repeated: processes take them in turn.")
    ] = None,
    with_ray: Annotated[bool, typer.Option("--ray", help="Use Ray Data, on one machine or a cluster.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub model.")] = None,
    dataset_config: Annotated[str | None, typer.Option(help="Config of a Hub dataset.")] = None,
    dataset_split: Annotated[str, typer.Option(help="Split of a Hub dataset.")] = "train",
    chunk: Annotated[bool, typer.Option("--chunk", help="Cut documents, of many formats, into passages.")] = False,
    chunk_tokens: Annotated[
        int | None,
        typer.Option(help="Most tokens of a passage; implies --chunk.", show_default="what the model reads"),
    ] = None,
) -> None:
    """Encode texts into parquet shards. Run it again to resume; finished shards are not repeated."""
    configure_logging()
    from st_llm_embed.encoding import encode as encoding
    from st_llm_embed.encoding.shards import Texts, VectorType, read_lengths

    texts = Texts(dataset, column, id_column, dataset_config, dataset_split)
    chunk = chunk or chunk_tokens is not None
    if chunk and texts != Texts(dataset):
        raise InputError(
            "--chunk reads documents, whose records have text, _id and title. Omit --column, --id, --dataset-config "
            "and --dataset-split, or --chunk."
        )
    job = encoding.Job(
        texts=texts,
        model=model,
        folder=to,
        revision=revision,
        role=one_of(role, get_args(encoding.Role), "--role"),
        dimension=dimension,
        dtype=one_of(dtype, get_args(VectorType), "--dtype"),
        keep_text=keep_text,
        shard_size=shard_size,
        batch_size=batch_size,
    )
    made, written = encoding.encode(
        job,
        processes=processes,
        devices=device or (),
        with_ray=with_ray,
        chunk=chunk,
        chunk_tokens=chunk_tokens,
    )
    shards = f"{made.shards} shards; {written} encoded now, {made.shards - written} kept"
    typer.echo(f"{to}  {made.rows:,} vectors of {made.dimension} numbers in {shards}")
    typer.echo(f"{to}  {_read(read_lengths(to, made.shards), made)}")


@app.command()
def search(
    indexes: Annotated[list[Path], typer.Argument(metavar="INDEX...", help="Folders that encode wrote.")],
    query: Annotated[str, typer.Argument(help="What to look for.")],
    *,
    model: Annotated[
        list[str] | None,
        typer.Option(help="What encodes the query; once per INDEX.", show_default="the model that made the INDEX"),
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Number of texts to show.")] = 5,
) -> None:
    """Show the texts nearest to a query, by exact search; several folders, of teacher and student, side by side."""
    if model is not None and len(model) != len(indexes):
        raise InputError(f"--model is given {len(model)} times for {len(indexes)} folders. Give it once for each.")
    configure_logging()
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    from st_llm_embed.encoding.search import VectorIndex

    opened = [VectorIndex(folder) for folder in indexes]
    found, notes = [], []
    for index, name in zip(opened, model or [None] * len(indexes), strict=True):
        embedder = index.embedder(name)
        found.append(index.search(embedder.encode([query])[0], k))
        asked = embedder.lengths([query])
        notes += [f"{index.folder}: {_read(index.lengths, index.manifest)}"] if index.lengths.cut else []
        notes += [f"The query has {asked.tokens} tokens, of which {asked.read} are read."] if asked.cut else []
    # Folded, not cut: the ends of the folders' names tell them apart.
    table = Table("", *(Column(str(folder), overflow="fold") for folder in indexes), show_lines=True)
    for place, hits in enumerate(zip_longest(*found), start=1):
        table.add_row(str(place), *(Text(_shown(hit)) if hit else "" for hit in hits))
    Console().print(table)
    for note in notes:
        typer.echo(note)


def _read(lengths: Lengths, made: Manifest) -> str:
    """Say how much of the texts is read, and what to do where they are cut."""
    hint = ". Encode with --chunk to have passages that are read whole" if made.chunk_tokens is None else ""
    return f"{lengths}{hint if lengths.cut else ''}"


def _shown(hit: Hit) -> str:
    text = " ".join((hit.text or "").split())
    return f"{hit.score:.4f}  {hit.id}\n{text[:200]}{'...' if text[200:] else ''}".rstrip()
