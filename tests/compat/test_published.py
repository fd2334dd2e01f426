"""Published models, loaded by name with the old libraries, and with transformers alone as their cards say."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from families import save_embedder
from hub import Hub, Pusher
from sentence_transformers import SentenceTransformer

from st_llm_embed.export.readme import DOCUMENTS, QUERY
from st_llm_embed.publishing.cards import folder_card

PYTHON = Path(__file__).parents[2] / ".venv-compat" / "bin" / "python"

pytestmark = [
    pytest.mark.compat,
    pytest.mark.skipif(not PYTHON.exists(), reason="make test-compat builds the environment of the old versions"),
]

SAVE = """
import numpy as np
np.savez({path!r}, queries=np.asarray(queries), documents=np.asarray(documents))
"""


@pytest.mark.parametrize("family", ["mistral", "qwen3", "llama"])
def test_a_published_model_loads_by_name(family: str, hub: Hub, tmp_path: Path) -> None:
    folder = save_embedder(tmp_path, family)
    name = f"lab/old-{family}"
    pusher = Pusher(hub)
    pusher.publish(folder, name)
    pusher.close()
    model = SentenceTransformer(str(folder), device="cpu")
    queries = model.encode_query([QUERY])
    documents = model.encode_document([DOCUMENTS[0]])
    blocks = re.findall(r"```python\n(.*?)```", folder_card(folder, name), flags=re.DOTALL)
    for library in ("from sentence_transformers", "import AutoModel"):
        [code] = [block for block in blocks if library in block]
        path = tmp_path / "vectors.npz"
        path.unlink(missing_ok=True)
        program = code + SAVE.format(path=str(path))
        done = subprocess.run(
            [str(PYTHON), "-W", "ignore", "-c", program],
            env=hub.environment(),
            cwd=tmp_path,
            check=False,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        vectors = np.load(path)
        np.testing.assert_allclose(vectors["queries"], queries, atol=1e-5)
        np.testing.assert_allclose(vectors["documents"][:1], documents, atol=1e-5)
