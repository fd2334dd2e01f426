from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file

from st_llm_embed import InputError
from st_llm_embed.publishing.push import check_dataset, check_model


def dataset(folder: Path, **front_matter: Any) -> Path:
    (folder / "sts").mkdir()
    for split in ("train", "validation"):
        (folder / "sts" / f"{split}.parquet").write_bytes(b"PAR1")
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump(front_matter)}---\n# Rows\n", encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    "data_files", ["sts/*.parquet", [{"split": "train", "path": ["sts/train.parquet", "sts/val*"]}]]
)
def test_data_files_may_be_named_in_every_way_that_datasets_reads(tmp_path: Path, data_files: Any) -> None:
    folder = dataset(tmp_path, license="mit", configs=[{"config_name": "sts", "data_files": data_files}])
    assert check_dataset(folder).data.to_dict()["license"] == "mit"


WHOLE = {"license": "mit", "configs": [{"config_name": "sts", "data_files": "sts/*"}]}


@pytest.mark.parametrize(
    ("front_matter", "reason"),
    [
        ({}, r"is not a dataset: it has no README\.md whose front matter"),
        (WHOLE | {"configs": None}, "does not name its data files"),
        *(
            (
                WHOLE | {"configs": [{"config_name": "sts", "data_files": data_files}]},
                r"they are gone: .*(sts|other)/\*",
            )
            for data_files in (
                ["sts/train.parquet", "sts/*.csv"],
                [{"split": "train", "path": ["sts/train.parquet", "other/*"]}],
            )
        ),
        *(
            (WHOLE | {"license": licence}, "names no license")
            for licence in ([], ["mit", "unknown"], "<license>", "TODO", None)
        ),
    ],
)
def test_a_card_without_licence_or_data_files_is_refused(
    front_matter: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=reason):
        check_dataset(dataset(tmp_path, **front_matter))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "weights.BIN", "sub/x.Pkl"])
def test_pickles_are_refused_by_any_of_their_names(name: str, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for file in ("modules.json", "config.json", name):
        (tmp_path / file).write_text("[]")
    with pytest.raises(InputError, match=f"holds {Path(name).name}: files that can run code"):
        check_model(tmp_path)


def saved_model(folder: Path) -> Path:
    (folder / "modules.json").write_text("[]")
    (folder / "config.json").write_text("{}")
    save_file({"weight": np.zeros((2, 2), np.float32)}, folder / "model.safetensors")
    return folder


def test_the_weights_of_openvino_are_not_a_pickle(tmp_path: Path) -> None:
    (tmp_path / "openvino").mkdir()
    for file in ("openvino/openvino_model.xml", "openvino/openvino_model.bin"):
        (tmp_path / file).write_text("[]")
    assert check_model(saved_model(tmp_path)) is None


def test_weights_that_are_not_there_or_not_whole_are_named(tmp_path: Path) -> None:
    weights = saved_model(tmp_path) / "model.safetensors"
    whole = weights.read_bytes()
    for content in (b"", whole[:20], b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"):
        weights.write_bytes(content)
        with pytest.raises(InputError, match=r"model\.safetensors"):
            check_model(tmp_path)
    weights.unlink()
    with pytest.raises(InputError, match=r"no weights to publish: it lacks model\.safetensors"):
        check_model(tmp_path)
    shards = {"weight_map": {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(shards))
    (tmp_path / "model-1-of-2.safetensors").write_bytes(whole)
    with pytest.raises(InputError, match=r"it lacks model-2-of-2\.safetensors"):
        check_model(tmp_path)
