"""Students published to a local Hub, with the code of their cards run against what lies there."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from hub import Hub, Pusher
from sentence_transformers import SentenceTransformer

from st_llm_embed import InputError, export
from st_llm_embed.doctor import diagnose
from st_llm_embed.doctor.verify import verify
from st_llm_embed.encoding.embedder import Embedder
from st_llm_embed.publishing.saved_model import read_saved_model
from st_llm_embed.student_pipeline import run_distillation
from tests.distillation.conftest import BERT, MakeRecipe

TEXTS = ["a question about thing 3", "thing " * 100]

PUBLISHED = """
import json, sys
import numpy
from huggingface_hub import hf_hub_download
from sentence_transformers import SentenceTransformer
name, texts = json.loads(sys.argv[1])
model = SentenceTransformer(name, device="cpu")
print(json.dumps({
    "query": model.encode_query(texts).tolist(),
    "document": model.encode_document(texts).tolist(),
    "card": open(hf_hub_download(name, "README.md"), encoding="utf-8").read(),
    "recipe": open(hf_hub_download(name, "recipe.yaml"), encoding="utf-8").read(),
}))
"""


def publish(hub: Hub, release: Path, name: str) -> str:
    """Publish a release, check what a stranger gets by its name, and give the card."""
    pusher = Pusher(hub)
    assert pusher.publish(release, name) == [f"{hub.endpoint}/{name}"]
    pusher.close()
    found = hub.run(PUBLISHED, json.dumps([name, TEXTS]))
    stock = SentenceTransformer(str(release), device="cpu")
    np.testing.assert_array_equal(np.array(found["query"], np.float32), stock.encode_query(TEXTS))
    np.testing.assert_array_equal(np.array(found["document"], np.float32), stock.encode_document(TEXTS))
    assert f'SentenceTransformer("{name}")' in found["card"]
    assert "path/to/this/folder" not in found["card"]
    # Where teacher and texts lay on this machine is nobody's business.
    assert not re.search(r"/(tmp|root|home|Users)/", found["recipe"] + found["card"])
    return found["card"]


@pytest.mark.integration
def test_an_encoder_goes_to_the_hub_with_its_export(
    hub: Hub, make_recipe: MakeRecipe, texts_file: Path, tmp_path: Path
) -> None:
    student = {"kind": "encoder", "bert": BERT, "max_seq_length": 48, "dimensions": 8}
    run_distillation(make_recipe(student=student, texts=[str(texts_file)]), tmp_path / "out")
    release = tmp_path / "out" / "student-release"
    facts = read_saved_model(release)
    assert (facts.kind, facts.dimension, facts.max_seq_length, facts.pooling) == ("transformer", 8, 48, "mean")
    export(release, ["onnx", "openvino"], release)
    card = publish(hub, release, "lab/student")
    [block] = [one for one in re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL) if "onnxruntime" in one]
    printed = hub.run(block.replace("print(", "import json\nprint(json.dumps(queries.tolist())) #"))
    wanted = SentenceTransformer(str(release), device="cpu").encode_query(["how to fix a slow database query"])
    np.testing.assert_allclose(printed, wanted, atol=1e-5)


@pytest.mark.integration
def test_a_pair_and_its_query_tower_go_to_the_hub(hub: Hub, make_recipe: MakeRecipe, tmp_path: Path) -> None:
    run_distillation(make_recipe(student={"kind": "static-query"}), tmp_path / "out")
    pair, tower = (tmp_path / "out" / name for name in ("student-release", "student-query-release"))
    assert [(read_saved_model(one).kind, read_saved_model(one).dimension) for one in (pair, tower)] == [
        ("pair", 32),
        ("static", 32),
    ]
    card = publish(hub, pair, "lab/pair")
    # These would give queries to the model of documents, or know no pair.
    assert not re.search("langchain|llama_index|vllm|AutoModel", card)
    for one in ("query", "document"):
        vectors = Embedder(str(pair), one, revision=None, dimension=8, device="cpu").encode(TEXTS)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)
    with pytest.raises(InputError, match="Verify each by itself"):
        verify(pair, tower)
    with pytest.raises(InputError, match="a static model or an asymmetric pair"):
        diagnose(str(pair))
    pusher = Pusher(hub)
    assert f"publish {pair} --to lab/which" in pusher.publish(tmp_path / "out", "lab/which")
    pusher.close()
    card = publish(hub, tower, "lab/tower")
    assert "model.encode_document" not in card
