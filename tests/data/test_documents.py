"""Documents of many formats, and the chunks they are cut into."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer

from st_llm_embed.data.documents import Chunker, Document, all_chunks, read_documents
from st_llm_embed.errors import InputError

MARKDOWN = """---
title: "Pumps"
---
# Pumps

What a pump is for.

## Repair

Open the valve first.

```sh
# no heading
```

### Seals

Seals are of rubber. ![a seal](data:image/png;base64,AAAA)
"""
RST = "Valves\n======\n\nA valve closes.\n\nOpening\n-------\n\nTurn it left.\n"
HTML = (
    "<html><head><title>Tanks &amp; more</title><style>p {}</style></head><body><nav>Home</nav>"
    "<h2>Water</h2><p>A tank holds <b>water</b>.</p><script>var a</script></body></html>"
)


@pytest.fixture(scope="module")
def tokenizer(tiny_base: Path) -> Tokenizer:
    return Tokenizer.from_file(str(tiny_base / "tokenizer.json"))


def write(folder: Path, **files: str | bytes) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        path = folder / name.replace("__", ".")
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def test_pages_and_records_of_a_folder(tmp_path: Path) -> None:
    folder = write(
        tmp_path / "in", a__md=MARKDOWN, b__rst=RST, c__html=HTML, plain_text__txt="\ufeffOne line.", empty__txt=""
    )
    write(folder / "more", _hidden="", notes__csv="_id,title,text\n007,Seven,0012\n")
    pq.write_table(pa.table({"id": ["x"], "contents": ["of parquet"]}), folder / "more" / "d.parquet")
    (folder / ".git").mkdir()
    write(folder / ".git", e__md="never read")
    found = {document.id: (document.title, document.text) for document in read_documents(str(folder))}
    assert found == {
        "a.md": ("Pumps", MARKDOWN.split("---\n")[2].replace("image/png;base64,AAAA", "")),
        "b.rst": ("Valves", RST),
        "c.html": ("Tanks & more", "## Water\n\nA tank holds **water**."),
        "plain_text.txt": ("plain text", "One line."),
        "more/notes.csv:007": ("Seven", "0012"),
        "more/d.parquet:x": ("", "of parquet"),
    }


def test_of_a_beir_folder_its_corpus_is_read(tmp_path: Path) -> None:
    folder = write(tmp_path / "in", queries__jsonl='{"_id": "q", "text": "who"}\n')
    write(folder, corpus__jsonl='{"_id": "d1", "title": "T", "text": "one"}\n{"_id": "d2", "text": "two"}\n')
    assert list(read_documents(str(folder))) == [Document("d1", "T", "one"), Document("d2", "", "two")]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "holds no documents"),
        ({"a__bin": b"\1"}, "holds no documents"),
        ({"a__txt": b"caf\xe9"}, r"a\.txt, line 1 is not UTF-8"),
        ({"a__md": b"a\0b"}, r"a\.md is not a text: it holds zero bytes"),
        ({"a__txt": b"word " * 20 + b"x" * 50_000}, "50,000 characters with no blank, 'xxx"),
        ({"a__jsonl": '{"_id": "1", "text": "a"}\n{"_id": 1, "text": "b"}\n'}, "two documents with the id '1'"),
        ({"a__jsonl": '{"body": "a"}\n'}, "record 1 has no text, only body"),
        ({"a__jsonl": '{"text": ["a"]}\n'}, "text is the list"),
        ({"a__pdf": b"%PDF-1.4 broken"}, "needs the extra pdf|cannot be read"),
    ],
)
def test_what_is_no_document_is_refused_in_one_paragraph(
    files: dict[str, str | bytes], said: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=said):
        list(read_documents(str(write(tmp_path / "in", **files))))


def test_a_file_too_large_to_be_a_page_is_refused_unread(tmp_path: Path) -> None:
    path = write(tmp_path / "in", a__txt="") / "a.txt"
    with path.open("r+b") as file:
        file.truncate(200_000_000)  # sparse
    with pytest.raises(InputError, match=r"has 200 MB, and a document has at most 50 MB"):
        list(read_documents(str(path.parent)))


def test_chunks_are_under_their_titles_and_within_the_budget(tokenizer: Tokenizer) -> None:
    text = MARKDOWN.split("---\n")[2].replace("rubber.", "rubber. " + "They wear out in a year of use. " * 30)
    chunks = list(Chunker(tokenizer, 160).chunks(Document("d", "Machines", text)))
    assert all(len(tokenizer.encode(chunk.text, add_special_tokens=False)) <= 160 for chunk in chunks)
    assert all(chunk.text.endswith(text[chunk.start : chunk.end]) for chunk in chunks)
    assert "".join("".join(text[chunk.start : chunk.end].split()) for chunk in chunks) == "".join(text.split())
    paths = [chunk.text.removesuffix(text[chunk.start : chunk.end]).strip() for chunk in chunks]
    assert paths[0] == "Machines"
    assert "Pumps > Repair > Seals" in paths[-1]
    assert not any("no heading" in path for path in paths)
    assert chunks[0].id == f"d#{chunks[0].start}"


def test_a_chunk_is_named_by_its_content_wherever_it_is(tokenizer: Tokenizer) -> None:
    chunker = Chunker(tokenizer, 32)
    part = "".join(f"Valve {number} closes the pipe.\n\n" for number in range(8))
    alone = [chunk.key for chunk in chunker.chunks(Document("a", "T", part))]
    moved = [chunk.key for chunk in chunker.chunks(Document("b", "T", f"{part}Something new was added here.\n"))]
    assert alone[:-1] == moved[: len(alone) - 1]
    assert len(set(alone)) == len(alone) > 1
    other = [chunk.key for chunk in chunker.chunks(Document("a", "Other", part))]
    assert not set(alone) & set(other)


@pytest.mark.parametrize("title", ["", "A title " * 40, "標題" * 90])
@pytest.mark.parametrize(
    "text", ["x" * 3000, "一個字" * 500, "\n\n# \n\n#\n", "| a | b |\n|---|---|\n" + "| 1 | 2 |\n" * 90]
)
def test_no_text_and_no_title_is_too_odd(text: str, title: str, tokenizer: Tokenizer) -> None:
    chunks = list(Chunker(tokenizer, 16).chunks(Document("d", title, text)))
    assert "".join("".join(text[chunk.start : chunk.end].split()) for chunk in chunks) == "".join(text.split())
    assert all(len(tokenizer.encode(chunk.text, add_special_tokens=False)) <= 16 for chunk in chunks)


def test_the_sizes_that_make_no_sense_are_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError, match="chunk_tokens is 15; it has to be at least 16"):
        Chunker(tokenizer, 15)
    assert list(all_chunks([], Chunker(tokenizer, 16))) == []
