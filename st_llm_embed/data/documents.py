"""The user's own documents, and the chunks they are cut into."""

from __future__ import annotations

import hashlib
import html
import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from st_llm_embed.data.files import RECORD_FILES, file_ending, files_in, read_records, read_text, text_of
from st_llm_embed.errors import InputError, explained, shown

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PAGES = (".txt", ".text", ".md", ".markdown", ".rst", ".html", ".htm")
"""Endings of files that are one document each."""

CONVERTED = (".pdf", ".docx")
"""Endings of files that the extra `pdf` turns into Markdown."""

LARGEST_PAGE = 50_000_000
"""Bytes of a file that is one document. Larger ones are logs or dumps, and cutting one takes minutes."""

LONGEST_WORD = 50_000
"""Characters without a blank: beyond, a file is data, on which tokenizers take quadratic time."""

MIN_CHUNK_TOKENS = 16

FORMS = (
    f"Give a folder of {', '.join((*PAGES, *CONVERTED))} files, or of {', '.join(RECORD_FILES)} files of records with "
    "text and, where there are any, _id and title; such a file; or a Hub dataset."
)


@dataclass(frozen=True, slots=True)
class Document:
    """One of the user's texts."""

    id: str
    """Of a file its path below the folder; of a record its `_id` or `id`, or else its number."""
    title: str
    """May be empty."""
    text: str
    """Markdown, reStructuredText or plain text."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of a document, with the titles it is under."""

    document: str
    """Id of its document."""
    start: int
    """Where it begins in the document's text, in characters."""
    end: int
    text: str
    """What is embedded and shown to the LLM: the title path, a line break, the part of the text."""

    @property
    def id(self) -> str:
        """Name the chunk within its corpus: the document and where it begins there."""
        return f"{self.document}#{self.start}"

    @property
    def key(self) -> str:
        """Name the content alone: 16 hexadecimal digits, the same wherever it is."""
        return hashlib.blake2b(self.text.encode(), digest_size=8).hexdigest()


def read_documents(path: str) -> Iterator[Document]:
    """Yield the documents of a folder, a file or a Hub dataset, in the same order on every machine.

    Hidden files are skipped. Of a BEIR folder, corpus.jsonl is read. Documents without any text are omitted.

    Raises:
        InputError: nothing there can be read as documents, two have one id, or one is not a text.
    """
    seen: set[str] = set()
    for document in _documents(path):
        if document.id in seen:
            raise InputError(f"{path} has two documents with the id {shown(document.id)}. Ids have to differ.")
        seen.add(document.id)
        if word := next(_LONG_WORD.finditer(document.text), None):
            raise InputError(
                f"{path}: the document {shown(document.id)} is not a text: it holds {len(word[0]):,} characters with "
                f"no blank, {shown(word[0])}. Move it away, or cut it."
            )
        if document.text.strip():
            yield document
    if not seen:
        raise InputError(f"{path} holds no documents. {FORMS}")


class Chunker:
    """Cuts documents by headings and paragraphs into chunks of at most so many tokens, titles included.

    Cutting is done by semantic-text-splitter at the largest Markdown parts that fit. The same text gives the same
    chunks everywhere; nothing but blank space is between two chunks of a document.
    """

    def __init__(self, tokenizer: Tokenizer, chunk_tokens: int) -> None:
        """Prepare to count with a tokenizer.

        Args:
            tokenizer: the base model's; padding and truncation do not matter.
            chunk_tokens: most tokens of a chunk, special tokens not counted.

        Raises:
            InputError: chunk_tokens is below 16.
        """
        if chunk_tokens < MIN_CHUNK_TOKENS:
            raise InputError(f"chunk_tokens is {chunk_tokens}; it has to be at least {MIN_CHUNK_TOKENS}.")
        self._tokens = chunk_tokens
        self._splitters: dict[int, Any] = {}
        self._tokenizer = type(tokenizer).from_str(tokenizer.to_str())
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    def chunks(self, document: Document) -> Iterator[Chunk]:
        """Yield the chunks of a document in its order."""
        headings = list(_headings(document.text))
        paths = _Paths(document.title, headings)
        room = max((self._count(path) for path in paths.all()), default=0)
        # Few sizes, as each has a splitter of its own; a path that is too long for the largest is shortened.
        sizes = [0, self._tokens // 16, self._tokens // 8, self._tokens // 4]
        reserved = next((size for size in sizes if room <= size), sizes[-1])
        for start, text in self._splitter(self._tokens - reserved).chunk_indices(document.text):
            path = self._shortened(paths.at(start), reserved)
            yield Chunk(document.id, start, start + len(text), f"{path}\n{text}" if path else text)

    def _splitter(self, tokens: int) -> Any:
        from semantic_text_splitter import MarkdownSplitter

        if tokens not in self._splitters:
            self._splitters[tokens] = MarkdownSplitter.from_huggingface_tokenizer(self._tokenizer, tokens)
        return self._splitters[tokens]

    def _count(self, path: str) -> int:
        return len(self._tokenizer.encode(f"{path}\n", add_special_tokens=False)) if path else 0

    def _shortened(self, path: str, tokens: int) -> str:
        """Keep the end of a path, which says most of what the chunk is about."""
        while self._count(path) > tokens:
            path = path[max(1, len(path) // 8) :].lstrip("> ")
        return path


class _Paths:
    """Which titles a place of a document is under."""

    def __init__(self, title: str, headings: list[tuple[int, int, str]]) -> None:
        self._starts = [start for start, _, _ in headings]
        above: list[tuple[int, str]] = [(0, title)] if title else []
        self._paths = [_joined(above)]
        """The path of what is before the first heading, then of what each heading is over."""
        self._over: list[str] = []
        """The path above each heading, itself omitted."""
        for _, level, heading in headings:
            above = [one for one in above if one[0] < level]
            self._over.append(_joined(above))
            if heading not in {name for _, name in above}:
                above = [*above, (level, heading)]
            self._paths.append(_joined(above))

    def at(self, start: int) -> str:
        """Return the path at a place; a heading that is there itself is not on it."""
        number = bisect_right(self._starts, start)
        if number and self._starts[number - 1] == start:
            return self._over[number - 1]
        return self._paths[number]

    def all(self) -> set[str]:
        return {*self._paths, *self._over}


_LONG_WORD = re.compile(rf"\S{{{LONGEST_WORD},}}")
_EMBEDDED_FILE = re.compile(r"data:[\w/+.-]+;base64,[A-Za-z0-9+/=]+")


def _joined(above: list[tuple[int, str]]) -> str:
    return " > ".join(heading for _, heading in above)


_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_HASHES = re.compile(r" {0,3}(#{1,6})[ \t]+(.*?)(?:[ \t]+#+)?[ \t]*$")
_UNDERLINE = re.compile(r"([=\-~^\"'`*+#:.])\1{2,}[ \t]*$")


def _headings(text: str) -> Iterator[tuple[int, int, str]]:
    """Yield where each heading of Markdown or reStructuredText begins, its level from 1 on, and its words."""
    position, before, fence = 0, (0, ""), ""
    underlines: list[str] = []
    for line in text.splitlines(keepends=True):
        bare = line.rstrip("\r\n")
        mark = _FENCE.match(bare)
        if mark and (not fence or mark[1].startswith(fence)):
            fence = "" if fence else mark[1]
        elif not fence:
            underline = _UNDERLINE.match(bare)
            words = before[1].strip()
            if found := _HASHES.match(bare):
                yield position, len(found[1]), found[2]
            elif underline and words and not _HASHES.match(before[1]) and len(underline[0].strip()) >= len(words):
                if underline[1] not in underlines:
                    underlines.append(underline[1])
                yield before[0], underlines.index(underline[1]) + 1, words
        before, position = (position, bare), position + len(line)


def _documents(path: str) -> Iterator[Document]:
    local = Path(path)
    if local.is_dir() and (corpus := next(iter(sorted(local.glob("corpus.jsonl*"))), None)):
        yield from _records(str(corpus))
    elif local.is_dir():
        found = files_in(local, (*PAGES, *CONVERTED, *RECORD_FILES))
        for file in found:
            name = file.relative_to(local).as_posix()
            if file_ending(file) in RECORD_FILES:
                several = len(found) > 1
                yield from _records(str(file), f"{name}:" if several else "")
            else:
                yield _page(file, name)
    elif local.is_file() and file_ending(local) not in RECORD_FILES:
        yield _page(local, local.name)
    else:
        yield from _records(path)


def _page(path: Path, name: str) -> Document:
    """Read a file that is one document."""
    ending, size = file_ending(path), path.stat().st_size
    if size > LARGEST_PAGE:
        raise InputError(
            f"{path} has {size / 1e6:,.0f} MB, and a document has at most {LARGEST_PAGE / 1e6:,.0f} MB. Move it away, "
            "cut it, or give its parts as records of a .jsonl file."
        )
    read = READERS.get(ending)
    if read is None:
        raise InputError(f"{path} is not a document. {FORMS}")
    text = read(path)
    if "\0" in text:
        raise InputError(f"{path} is not a text: it holds zero bytes. Move it away, or save it as UTF-8 text.")
    text = _EMBEDDED_FILE.sub("data:", text)
    text, title = _front_matter(text) if ending in (".md", ".markdown") else (text, "")
    if ending in (".html", ".htm"):
        title = _html_title(path)
    first = next(_headings(text), None)
    return Document(name, title or (first[2] if first else path.stem.replace("_", " ").replace("-", " ")), text)


def _records(path: str, prefix: str = "") -> Iterator[Document]:
    for number, record in enumerate(read_records(path), start=1):
        where = f"{path}, record {number}"
        column = next((name for name in ("text", "contents", "content") if name in record), None)
        if column is None:
            raise InputError(f"{where} has no text, only {', '.join(record)}. {FORMS}")
        name = next((record[one] for one in ("_id", "id") if record.get(one) not in (None, "")), number)
        title = text_of(record.get("title"), where, "title")
        yield Document(f"{prefix}{name}", title, text_of(record[column], where, column))


def _front_matter(text: str) -> tuple[str, str]:
    """Cut YAML front matter off; return the rest and the title it names."""
    found = re.match(r"---\r?\n(.*?)\r?\n(?:---|\.\.\.)\r?\n", text, flags=re.DOTALL)
    if found is None:
        return text, ""
    title = re.search(r"^title:[ \t]*(.*?)[ \t]*$", found[1], flags=re.MULTILINE)
    return text[found.end() :], title[1].strip("\"'") if title else ""


def _html_title(path: Path) -> str:
    found = re.search(r"<title[^>]*>(.*?)</title>", read_text(path), flags=re.DOTALL | re.IGNORECASE)
    return " ".join(html.unescape(found[1]).split()) if found else ""


def _html_as_markdown(path: Path) -> str:
    from bs4 import BeautifulSoup
    from markdownify import MarkdownConverter

    page = BeautifulSoup(read_text(path), "html.parser")
    for part in page(["script", "style", "noscript", "template", "nav", "head"]):
        part.decompose()
    return MarkdownConverter(heading_style="atx").convert_soup(page)


def _converted(path: Path) -> str:
    try:
        from markitdown import MarkItDown  # ty: ignore[import-not-found]
    except ImportError as error:
        raise InputError(f"{path} needs the extra pdf: pip install 'st_llm_embed[pdf]'. Or move it away.") from error
    with explained(f"{path} cannot be read", "Save it again, convert it to text, or move it away."):
        return MarkItDown().convert(path).text_content


READERS: dict[str, Callable[[Path], str]] = {
    **dict.fromkeys((".txt", ".text", ".md", ".markdown", ".rst"), read_text),
    **dict.fromkeys((".html", ".htm"), _html_as_markdown),
    **dict.fromkeys(CONVERTED, _converted),
}


def all_chunks(documents: Iterable[Document], chunker: Chunker) -> Iterator[Chunk]:
    """Yield the chunks of documents, in their order."""
    for document in documents:
        yield from chunker.chunks(document)
