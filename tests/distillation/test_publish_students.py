"""Students published to a local Hub, with the code of their cards run against what is there."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from hub import Hub, Pusher
from huggingface_hub import ModelCard
from sentence_transformers import SentenceTransformer

from st_llm_embed.doctor.repository import Repository
from st_llm_embed.export import export_model
from st_llm_embed.pipeline import run_distillation
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


@pytest.mark.integration
def test_an_encoder_goes_to_the_hub_with_its_export(
    hub: Hub, make_recipe: MakeRecipe, texts_file: Path, tmp_path: Path
) -> None:
    student = {"kind": "encoder", "bert": BERT, "max_seq_length": 48, "dimensions": 8}
    run_distillation(make_recipe(student=student, texts=[str(texts_file)]), tmp_path / "out")
    release = tmp_path / "out" / "student-release"
    facts = Repository(str(release))
    assert (facts.kind, facts.dimension, facts.max_seq_length, facts.pooling) == ("transformer", 8, 48, "mean")
    export_model(release, ["onnx"], release)
    pusher = Pusher(hub)
    assert pusher.publish(tmp_path / "out", "lab/student") == [f"{hub.endpoint}/lab/student"]
    pusher.close()
    found = hub.run(PUBLISHED, json.dumps(["lab/student", TEXTS]))
    stock = SentenceTransformer(str(release), device="cpu")
    np.testing.assert_array_equal(np.array(found["query"], np.float32), stock.encode_query(TEXTS))
    np.testing.assert_array_equal(np.array(found["document"], np.float32), stock.encode_document(TEXTS))
    card = found["card"]
    assert 'SentenceTransformer("lab/student")' in card
    assert "path/to/this/folder" not in card
    # Where teacher and texts lay on this machine is nobody's business.
    assert not re.search(r"/(tmp|root|home|Users)/", found["recipe"] + card)
    query = ModelCard(card).data.widget[0]["source_sentence"]
    [block] = [one for one in re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL) if "onnxruntime" in one]
    printed = hub.run(block.replace("print(", "import json\nprint(json.dumps(queries.tolist())) #"))
    np.testing.assert_allclose(printed, stock.encode_query([query]), atol=1e-5)
