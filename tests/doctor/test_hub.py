"""Doctor on repositories of a local Hub, over HTTP, as a user with an empty cache meets them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from break_repository import edit, tokenizer_config
from hub import Hub
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from st_llm_embed import LLMSentenceTransformer

pytestmark = pytest.mark.integration

PROGRAM = """
import json, sys
from huggingface_hub import try_to_load_from_cache
from st_llm_embed import diagnose
diagnosis = diagnose(sys.argv[1], live={live})
weights = try_to_load_from_cache(sys.argv[1], "model.safetensors")
print(json.dumps(diagnosis.to_json() | {{"downloaded": weights is not None}}))
"""


UPLOAD = """
import json, sys
from huggingface_hub import create_repo, upload_folder
create_repo(sys.argv[2])
print(json.dumps(upload_folder(repo_id=sys.argv[2], folder_path=sys.argv[1]).oid))
"""


REFUSED = """
import json, os, sys
os.environ.update(json.loads(sys.argv[2]))
from pathlib import Path
from st_llm_embed import InputError, diagnose
from st_llm_embed.doctor.fix import repair
output = []
for attempt in (lambda: diagnose(sys.argv[1], live=True), lambda: repair(sys.argv[1], Path("fixed"))):
    try:
        attempt()
    except InputError as error:
        output.append(str(error))
print(json.dumps(output))
"""


def push(hub: Hub, folder: Path, name: str) -> str:
    """Upload a folder whatever is in it, and return the commit."""
    return hub.run(UPLOAD, folder, name)


def test_small_files_and_the_headers_of_weights_are_enough(
    hub: Hub, good: Callable[[str], Path], tmp_path: Path
) -> None:
    push(hub, good("mistral"), "lab/good")
    folder = shutil.copytree(good("mistral"), tmp_path / "bad")
    tokenizer_config(folder, tokenizer_class="LlamaTokenizer", add_eos_token=None)
    edit(folder / "config.json", num_hidden_layers=4)
    push(hub, folder, "lab/bad")
    hub.fail()
    healthy, ill = (hub.run(PROGRAM.format(live=False), name) for name in ("lab/good", "lab/bad"))
    assert healthy["findings"] == []
    assert [finding["trap"] for finding in ill["findings"]] == ["weights missing", "missing EOS"]
    assert not healthy["downloaded"]
    assert any("tokenizer.json" in one["path"] for one in hub.requests("GET"))


def test_an_adapter_is_compared_with_the_headers_of_its_base(
    hub: Hub, good: Callable[[str], Path], tmp_path: Path
) -> None:
    commit = push(hub, good("mistral"), "lab/base")
    model = LLMSentenceTransformer(str(good("mistral")), device="cpu")
    model.add_adapter(LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"]))
    for name, weight in model.named_parameters():
        if "lora_" in name:
            weight.data = torch.full_like(weight, 0.1)
    model.save_pretrained(str(tmp_path / "adapter"), create_model_card=False)
    names = {"base_model_name_or_path": "lab/base", "revision": commit}
    edit(tmp_path / "adapter" / "adapter_config.json", **names)
    push(hub, tmp_path / "adapter", "lab/adapter")
    output = hub.run(PROGRAM.format(live=True), "lab/adapter")
    assert output["findings"] == []
    done = {check["what"]: check["done"] for check in output["checks"]}
    assert done["the adapter's keys fit its base"]
    assert done["vectors differ from those without the adapter"]

    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({key.replace(".layers.", ".model.layers."): value for key, value in load_file(weights).items()}, weights)
    push(hub, tmp_path / "adapter", "lab/prefixed")
    assert hub.run(PROGRAM.format(live=False), "lab/prefixed")["findings"] == []
    save_file({key.replace("_proj.", "_projection."): value for key, value in load_file(weights).items()}, weights)
    push(hub, tmp_path / "adapter", "lab/renamed")
    [finding] = hub.run(PROGRAM.format(live=False), "lab/renamed")["findings"]
    assert finding["trap"] == "adapter not applied"
    assert "8 keys in the file fit no module of the base" in finding["message"]


def test_weights_that_cannot_be_downloaded_are_one_message(hub: Hub, good: Callable[[str], Path]) -> None:
    push(hub, good("mistral"), "lab/heavy")
    hub.fail({"method": "HEAD", "path": "/resolve/.*safetensors", "times": 9, "status": 403, "message": "no more"})
    output = hub.run(REFUSED, "lab/heavy", "{}")
    assert ["lab/heavy cannot be downloaded" in one for one in output] == [True, True]
    assert not (hub.folder / "fixed").exists()


@pytest.mark.parametrize(
    ("name", "environment", "message"),
    [
        ("lab/heavy", '{"HF_ENDPOINT": "ftp://127.0.0.1"}', "The connection to the Hub at ftp://127.0.0.1 failed"),
        ("lab/nothing", "{}", "The Hub shows no repository lab/nothing"),
    ],
)
def test_a_hub_that_does_not_answer_or_know_is_one_message(
    name: str, environment: str, message: str, hub: Hub
) -> None:
    assert [message in one for one in hub.run(REFUSED, name, environment)] == [True, True]
