from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

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


@pytest.mark.parametrize(
    "data_files", [["sts/train.parquet", "sts/*.csv"], [{"split": "train", "path": ["sts/train.parquet", "other/*"]}]]
)
def test_a_data_file_that_is_not_in_the_folder_is_named(tmp_path: Path, data_files: Any) -> None:
    folder = dataset(tmp_path, license="mit", configs=[{"config_name": "sts", "data_files": data_files}])
    with pytest.raises(InputError, match=r"they are gone: .*(sts|other)/\*"):
        check_dataset(folder)


@pytest.mark.parametrize("licence", [[], ["mit", "unknown"], "<license>", "TODO", None])
def test_a_placeholder_is_not_a_licence(tmp_path: Path, licence: Any) -> None:
    folder = dataset(tmp_path, license=licence, configs=[{"config_name": "sts", "data_files": "sts/*"}])
    with pytest.raises(InputError, match="names no license"):
        check_dataset(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "weights.BIN", "sub/x.Pkl"])
def test_pickles_are_refused_by_any_of_their_names(name: str, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for file in ("modules.json", "config.json", name):
        (tmp_path / file).write_text("[]")
    with pytest.raises(InputError, match=f"holds {Path(name).name}: files that can run code"):
        check_model(tmp_path)


def test_the_weights_of_openvino_are_not_a_pickle(tmp_path: Path) -> None:
    (tmp_path / "openvino").mkdir()
    for file in ("modules.json", "config.json", "openvino/openvino_model.xml", "openvino/openvino_model.bin"):
        (tmp_path / file).write_text("[]")
    assert check_model(tmp_path) is None
