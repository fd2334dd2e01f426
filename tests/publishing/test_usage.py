"""The code on a card, executed as it is against models on a local Hub."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from embedding_server import EmbeddingServer
from families import save_embedder
from hub import Hub, Pusher
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

from st_llm_embed import export_model
from st_llm_embed.export.readme import DOCUMENTS, QUERY

CLIENTS = Path(__file__).parents[2] / ".venv-clients" / "bin" / "python"
DOCUMENT = DOCUMENTS[0]

SAVE = """
import numpy as np
np.savez({path!r}, queries=np.asarray(queries), documents=np.asarray(documents))
"""


class Card:
    """The card of a published model, and the vectors that every way of using it has to give."""

    def __init__(self, hub: Hub, name: str, folder: Path, work: Path) -> None:
        self.hub, self.work = hub, work
        program = """
import json, sys
from huggingface_hub import hf_hub_download
print(json.dumps(open(hf_hub_download(sys.argv[1], "README.md"), encoding="utf-8").read()))
"""
        self.text: str = hub.run(program, name)
        model = SentenceTransformer(str(folder), device="cpu")
        self.model = model
        self.queries = model.encode_query([QUERY])
        self.documents = model.encode_document([DOCUMENT])

    def block(self, *words: str) -> str:
        """Return the one block of Python that has all words."""
        blocks = re.findall(r"```python\n(.*?)```", self.text, flags=re.DOTALL)
        [found] = [block for block in blocks if all(word in block for word in words)]
        return found

    def check(self, code: str, python: Path | str = sys.executable) -> None:
        """Run code as somebody who has used this Hub never before, and compare its vectors."""
        path = self.work / "vectors.npz"
        path.unlink(missing_ok=True)
        done = subprocess.run(
            [str(python), "-c", code + SAVE.format(path=str(path))],
            env=self.hub.environment() | {"CUDA_VISIBLE_DEVICES": ""},
            cwd=self.work,
            check=False,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        vectors = np.load(path)
        np.testing.assert_allclose(vectors["queries"], self.queries, atol=1e-5)
        np.testing.assert_allclose(vectors["documents"][:1], self.documents, atol=1e-5)


@pytest.fixture(scope="module", params=["mistral", "qwen3", "llama"])
def card(
    request: pytest.FixtureRequest, hub: Hub, only_pusher: Pusher, tmp_path_factory: pytest.TempPathFactory
) -> Card:
    work = tmp_path_factory.mktemp(request.param)
    folder, name = save_embedder(work, request.param), f"lab/tiny-{request.param}"
    assert only_pusher.publish(folder, name) == [f"{hub.endpoint}/{name}"]
    return Card(hub, name, folder, work)


@pytest.mark.integration
def test_sentence_transformers(card: Card) -> None:
    card.check(card.block("sentence_transformers"))


@pytest.mark.integration
def test_transformers_alone(card: Card) -> None:
    """Besides, a batch of texts of different lengths, too long ones among them."""
    texts = ["a", QUERY, "", DOCUMENT * 9]
    expected = card.work / "expected.npy"
    np.save(expected, card.model.encode(texts))
    card.check(
        card.block("AutoModel")
        + f"import numpy as np\nnp.testing.assert_allclose(embed({texts!r}), np.load({str(expected)!r}), atol=1e-5)\n"
    )


@pytest.mark.integration
def test_the_client_of_servers(card: Card) -> None:
    def embed(texts: list[str]) -> NDArray[np.float32]:
        # As vLLM, TEI and llama.cpp do: no prompt is put in front.
        return np.asarray(card.model.encode(texts, prompt=""))

    with EmbeddingServer(embed) as server:
        code = card.block("from openai")
        assert code.count("http://localhost:8000/v1") == 1
        card.check(code.replace("http://localhost:8000/v1", server.base_url))
        assert server.texts == [card.model.prompts["query"] + QUERY, DOCUMENT]


@pytest.mark.integration
def test_onnx_runtime(hub: Hub, pusher: Pusher, tmp_path: Path) -> None:
    folder = save_embedder(tmp_path, "mistral")
    export_model(folder, ["onnx"], folder)
    pusher.publish(folder, "lab/with-onnx")
    card = Card(hub, "lab/with-onnx", folder, tmp_path)
    card.check(card.block("onnxruntime"))


@pytest.mark.clients
@pytest.mark.integration
@pytest.mark.skipif(
    not CLIENTS.exists(), reason="make test-clients builds the environment of LangChain and LlamaIndex"
)
@pytest.mark.parametrize("library", ["langchain_huggingface", "llama_index"])
@pytest.mark.parametrize("card", ["mistral"], indirect=True)
def test_frameworks(card: Card, library: str) -> None:
    card.check(card.block(library), CLIENTS)


@pytest.mark.integration
def test_the_commands_of_servers_are_commands(card: Card) -> None:
    blocks = re.findall(r"```sh\n(.*?)```", card.text, flags=re.DOTALL)
    commands = [shlex.split(block) for block in blocks]
    assert [command[0] for command in commands] == ["vllm", "docker"]
    for block, command in zip(blocks, commands, strict=True):
        subprocess.run(["sh", "-n"], input=block, check=True, text=True)
        assert any(part.startswith("lab/tiny-") for part in command)
