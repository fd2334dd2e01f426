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


def test_the_weights_of_openvino_are_not_a_pickle(tmp_path: Path) -> None:
    (tmp_path / "openvino").mkdir()
    for file in ("modules.json", "config.json", "openvino/openvino_model.xml", "openvino/openvino_model.bin"):
        (tmp_path / file).write_text("[]")
    assert check_model(tmp_path) is None
