"""The catalogue of traps, shared by doctor and verify, and what doctor says about one repository.

A trap is a known way in which an embedding model returns other vectors than it should, without an error.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple

Severity = Literal["error", "warning"]


class Trap(NamedTuple):
    """One way to get wrong vectors."""

    message: str
    fix: str
    severity: Severity = "error"
    """error where vectors will be wrong, or a library stops, somewhere; warning where they may be."""


TRAPS: dict[str, Trap] = {
    # Special tokens.
    "missing EOS": Trap(
        "Texts do not end in the EOS token, where the embedding is read.",
        "Let the post-processor of tokenizer.json add it, and set add_eos_token for readers that go by flags.",
    ),
    "different ends": Trap(
        "Libraries end a text in different tokens.", "Let post-processor and eos_token name the same token."
    ),
    "EOS cut off": Trap(
        "Texts that are too long lose their EOS token.",
        "Let the post-processor add EOS; truncation leaves room for what it adds.",
    ),
    "doubled EOS": Trap("Texts end in two EOS tokens.", "Let the post-processor alone add it, once."),
    "missing BOS": Trap("Texts lack the BOS token at their beginning.", "Let the tokenizer add special tokens."),
    "doubled BOS": Trap("Texts begin with two BOS tokens.", "Let the post-processor alone add it, once."),
    "no special tokens": Trap("Texts have neither BOS nor EOS.", "Let the tokenizer add special tokens."),
    "special token in a prompt": Trap("The tokenizer adds its own special tokens.", "Remove it from the prompt."),
    "special tokens in texts": Trap(
        "A literal EOS token within a text is read as letters, or the other way round.",
        "Set whether special tokens are parsed as the model has it.",
    ),
    # Padding.
    "no attention mask": Trap(
        "The tokenizer returns no attention mask, and padding is read as text.",
        "Add attention_mask to model_input_names in tokenizer_config.json, or remove the key.",
    ),
    "no pad token": Trap(
        "There is no pad_token that the tokenizer knows, so texts of different lengths make no batch.",
        "Set pad_token, to eos_token where there is no other.",
    ),
    "left padding of absolute positions": Trap(
        "The model counts positions from the first column of a batch, and is padded on the left: the vector of a text "
        "depends on the texts beside it.",
        "Set padding_side to right.",
    ),
    "two padding sides": Trap(
        "tokenizer_config.json and tokenizer.json state different sides; a runtime that takes the last column for the "
        "last token is right with one of them only.",
        "Let both files name one side.",
        "warning",
    ),
    "padding": Trap(
        "A text in a batch with longer ones has another vector than alone.",
        "Pass the attention mask to the model, and read the last attended token.",
    ),
    "right padding": Trap(
        "In a batch that is padded on the right the last position is read, which is padding.",
        "Read the last attended token, or pad on the left.",
    ),
    "left padding": Trap(
        "In a batch that is padded on the left the padding is attended to.", "Pass the attention mask to the model."
    ),
    "left padding read as right": Trap(
        "In a batch that is padded on the left the token is read whose place is the text's length.",
        "Read the last position.",
    ),
    # Pooling and length of vectors.
    "no modules.json": Trap(
        "Without modules.json sentence-transformers takes mean pooling without normalisation, vLLM the last token, and "
        "TEI asks for --pooling.",
        "Save the model with sentence-transformers, or with LLMSentenceTransformer.from_base.",
    ),
    "pooling": Trap(
        "The pooling is not the one of the model.",
        "Write the booleans pooling_mode_*, all of them, with the one that the model was trained with true.",
    ),
    "mean pooling": Trap(
        "The embedding is the mean of all tokens instead of the last one's.", "Set pooling to the last token."
    ),
    "first-token pooling": Trap(
        "The embedding is that of the first token instead of the last one.", "Set pooling to the last token."
    ),
    "not normalised": Trap(
        "Vectors are not of length 1, so dot products are not cosines.",
        "Add sentence_transformers.models.Normalize as the last module, or normalise at the server.",
    ),
    "dimension": Trap(
        "The vectors are cut to their leading dimensions.", "Ask for all of them, or compare at that size."
    ),
    "matryoshka dimensions": Trap(
        "matryoshka_dimensions in config.json are not sizes of its vectors.",
        "List whole numbers from 1 to the size of a vector, or remove the key.",
    ),
    "unstated dimensions": Trap(
        "config.json does not list all sizes that the model was trained for: vLLM refuses `dimensions`, and vectors "
        "that are cut by hand have a length below 1.",
        "Set matryoshka_dimensions in config.json.",
        "warning",
    ),
    # Prompts.
    "prompt missing": Trap(
        "Queries are embedded without their prompt.",
        "Save it as the prompt 'query', with an empty 'document'; put it in front where nothing else does.",
    ),
    "prompt missing by the card": Trap(
        "No prompt is saved, and README.md has users write queries with an instruction.",
        "Save prompts: query with the instruction, document with an empty one.",
        "warning",
    ),
    "prompt doubled": Trap(
        "Queries get their prompt twice.", "Write it once; send the bare query to a server that adds it by itself."
    ),
    "prompt on documents": Trap(
        "Documents get the prompt of queries.",
        "Keep it to queries: no default prompt, in config_sentence_transformers.json or at the server.",
    ),
    "prompt": Trap(
        "The prompt of queries is written in another way.", "Spell it as it was in training, to the last space."
    ),
    # Texts and tokens.
    "lower case": Trap(
        "Some libraries lower every text, others do not.",
        "Set do_lower_case to false if the model was trained on texts as they are; else put Lowercase into the "
        "normalizer of tokenizer.json.",
    ),
    "normalizer": Trap(
        "llama.cpp does not know what the normalizer does: there a text with edge whitespace, accents or capitals has "
        "other tokens.",
        "Train with a tokenizer that takes texts as they are, and strip texts before they are encoded.",
        "warning",
    ),
    "whitespace": Trap(
        "Whitespace at the ends of texts is stripped, or another space is put in front.",
        "Send texts as they are; or strip them everywhere, in the index too.",
    ),
    "chat template": Trap(
        "sentence-transformers 6 renders each text by the chat template, and other libraries tokenize it as it is.",
        "Remove modality_config from sentence_bert_config.json, unless the model was trained on rendered texts.",
    ),
    "no tokenizer.json": Trap(
        "There is no tokenizer.json: each library builds the tokenizer from other files, and TEI refuses.",
        "Save the tokenizer with transformers 5, or AutoTokenizer(...).save_pretrained in transformers 4.",
    ),
    "too few embeddings": Trap(
        "The tokenizer has ids that the model has no embeddings for.", "Take the tokenizer of the model's own base."
    ),
    "no tokenizer.model": Trap(
        "Without tokenizer.model llama.cpp's converter gives all pieces one score and so cuts texts into other tokens, "
        "without an error; and no probe.json shows it.",
        "Copy tokenizer.model from the base, convert with `st-llm-embed export --to gguf`, or add probe.json.",
        "warning",
    ),
    "tokenizer.model": Trap(
        "llama.cpp and slow tokenizers read tokenizer.model, others tokenizer.json, and these differ.",
        "Copy tokenizer.model from the base that tokenizer.json is of, or remove it.",
    ),
    "tokenizer": Trap(
        "Texts are cut into other tokens, so the tokenizer is another one or was rebuilt wrongly.",
        "Use the tokenizer.json of the model.",
    ),
    "no max length": Trap(
        "No file says how long a text may be, so each server cuts where it likes.",
        "Write max_seq_length into sentence_bert_config.json and model_max_length into tokenizer_config.json.",
    ),
    "max length": Trap(
        "Texts are cut at another length.",
        "Let max_seq_length (with do_lower_case) in sentence_bert_config.json, model_max_length in "
        "tokenizer_config.json and truncation.max_length in tokenizer.json state the same.",
    ),
    "unstated length": Trap(
        "Not every file says where texts are cut.",
        "Write max_seq_length as model_max_length into tokenizer_config.json, too.",
        "warning",
    ),
    "cut on the left": Trap(
        "Long texts lose their beginning, the instruction included; other libraries cut the end.",
        "Set truncation_side to right, and truncation.direction in tokenizer.json to Right.",
    ),
    # Adapters.
    "adapter not applied": Trap(
        "The adapter has no effect, or a wrong one, and loading it raises no error.",
        "Save the adapter again from the trained model with save_pretrained, or publish the merged model.",
    ),
    "base not on the Hub": Trap(
        "The adapter's base is not named by a Hub id: elsewhere it is not found, or is another model of that name.",
        "Write the Hub id of the base, and its commit as revision.",
    ),
    "base not pinned": Trap(
        "The adapter is put on whatever its base's repository holds at that time.",
        "Write the commit of the base, 40 hexadecimal digits, as revision.",
        "warning",
    ),
    # Files and weights.
    "pickles": Trap(
        "The weights are pickles, which can run code when they are loaded; doctor does not load them.",
        "Save the model with safetensors: model.save_pretrained(folder).",
    ),
    "unreadable files": Trap(
        "A library cannot read the repository.", "Write the legacy layout, which all of them read (doctor --fix does)."
    ),
    "not loaded": Trap(
        "sentence-transformers stops with an error.",
        "Fix what the message names; doctor without weights (--no-live) may say why.",
    ),
    "rotary base": Trap(
        "transformers 4 and 5 read different rotary positions.",
        "Write rope_theta, and rope_scaling where there is one, beside rope_parameters with the same values.",
    ),
    "not finite": Trap(
        "There are weights or vectors that are NaN or infinite.",
        "Take an earlier checkpoint; train with a lower learning rate, in bfloat16 rather than float16.",
    ),
    "collapsed": Trap(
        "Different texts have the same vector.", "Take an earlier checkpoint, or train with a lower learning rate."
    ),
    "precision": Trap(
        "Texts of all kinds differ a little, as by rounding in half precision or by quantised weights.",
        "If that is meant, lower the least cosine; weights are merged in float32 and rounded once, at the end.",
    ),
    "weights": Trap(
        "No known fault explains these vectors, so the weights are others: another model or revision, an adapter that "
        "is not applied, or heavy quantisation.",
        "Take the weights that probe.json was made with, or make probe.json again.",
    ),
    "pooling or weights": Trap(
        "The tokens are the same and the vectors are not: another pooling, or other weights.",
        "Of a decoder with last-token pooling, verify says which when it is given the folder with the weights.",
    ),
    "ends, pooling or weights": Trap(
        "No text has the same vector: BOS or EOS is missing or doubled, the pooling is another one, or the weights are.",
        "Of a decoder with last-token pooling, verify says which when it is given the folder with the weights.",
    ),
}
"""What they do to vectors was measured; docs/publishing.md has the table."""


@dataclass(frozen=True)
class Finding:
    """A trap that a repository has."""

    trap: str
    """Its name in `TRAPS`."""
    file: str
    detail: str = ""
    """What was seen, a sentence."""
    readers: tuple[str, ...] = ()
    """Who is affected; empty means everybody."""

    @property
    def severity(self) -> Severity:
        """`error` or `warning`, of the trap."""
        return TRAPS[self.trap].severity

    @property
    def message(self) -> str:
        """What is wrong, and what was seen."""
        return f"{TRAPS[self.trap].message} {self.detail}".rstrip()

    @property
    def fix(self) -> str:
        """What to do."""
        return TRAPS[self.trap].fix

    def to_json(self) -> dict[str, Any]:
        """Return the finding as JSON."""
        names = ("trap", "severity", "file", "message", "fix", "readers")
        return {name: getattr(self, name) for name in names}


class NotCheckedError(Exception):
    """A check that cannot be made of this repository, with the reason."""


@dataclass(frozen=True)
class Check:
    """One check: what was looked at, and why not where it could not be."""

    what: str
    live: bool
    not_checked: str | None = None


@dataclass(frozen=True)
class Reading:
    """What a library understands when it reads the repository; None where it does not say or does not matter."""

    reader: str
    source: str
    """The upstream file that this simulates."""
    refuses: str | None = None
    """The error that the library stops with."""
    not_for: str | None = None
    """Why the library takes no model of this family as it is, whatever the repository holds."""
    pooling: str | None = None
    normalize: bool | None = None
    max_length: int | None = None
    ends_with: str | None = None
    """The special token after each text; empty for none."""
    lower_case: bool | None = None

    @property
    def reads(self) -> bool:
        """Whether the library gets as far as making vectors."""
        return self.refuses is None and self.not_for is None

    def shown(self) -> str:
        """Say in one line what the library understands."""
        parts = {
            "pooling": self.pooling,
            "normalised": None if self.normalize is None else ("yes" if self.normalize else "no"),
            "cuts at": self.max_length,
            "ends texts in": self.ends_with or ("nothing" if self.ends_with == "" else None),
        }
        return ", ".join(f"{name} {value}" for name, value in parts.items() if value is not None)


@dataclass
class Diagnosis:
    """All that doctor found out about one repository."""

    model: str
    readings: list[Reading] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON."""
        return {
            "model": self.model,
            "healthy": not self.findings,
            "findings": [finding.to_json() for finding in self.findings],
            "checks": [asdict(check) | {"done": check.not_checked is None} for check in self.checks],
            "readers": [asdict(reading) for reading in self.readings],
        }
