from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from st_llm_embed import InputError
from st_llm_embed.ablation.grid import Grid, run_name

GRID = {
    "name": "ranks",
    "description": "Which rank.",
    "recipe": "demo",
    "set": ["loss.temperature=0.05"],
    "axes": {
        "rank": {8: ["lora={r: 8}"], "16": ["lora={r: 16}"]},
        "base": {"pretrained": [], "fresh, wider": ["loss.temperature=0.1"]},
    },
    "seeds": [1, 2],
}


def test_every_combination_is_a_variant_and_the_first_settings_come_first() -> None:
    variants = Grid.model_validate(GRID).variants()
    assert [variant.label for variant in variants] == [
        "8, pretrained",
        "8, fresh, wider",
        "16, pretrained",
        "16, fresh, wider",
    ]
    assert variants[-1].overrides == ("loss.temperature=0.05", "lora={r: 16}", "loss.temperature=0.1")
    assert run_name(variants[1], 2) == "8-fresh-wider-seed2"


def test_a_setting_is_set_over_the_grids_own_and_the_seed_over_the_recipes() -> None:
    grid = Grid.model_validate(GRID)
    first, *_, last = grid.variants()
    assert grid.recipe_of(first, 2).loss.temperature == 0.05
    recipe = grid.recipe_of(last, 2)
    assert (recipe.loss.temperature, recipe.lora, recipe.seed) == (0.1, {"r": 16}, 2)


def test_a_saved_grid_is_read_back_equal(tmp_path: Path) -> None:
    grid = Grid.model_validate(GRID)
    grid.save(tmp_path / "grid.yaml")
    assert Grid.load(tmp_path / "grid.yaml") == grid


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"axis": {}}, ["axis", "Extra inputs", "name, description, recipe, set, axes, seeds"]),
        ({"axes": {}}, ["axes", "at least 1"]),
        ({"axes": {"rank": {}}}, ["axis rank has no setting"]),
        ({"axes": {"rank": {"a b": [], "a-b": []}}}, ["'a-b'", "give them other names"]),
        ({"axes": {"rank": {"8": ["lora"]}}}, ["axes.rank.8.0", "pattern"]),
        ({"axes": {"rank": {"a|b": []}}}, ["axes.rank"]),
        ({"axes": {"lora": {True: []}}}, ["axes.lora", "as switches; put quotes"]),
        ({"seeds": []}, ["seeds", "at least 1"]),
        ({"seeds": [1, 1]}, ["seeds", "twice"]),
        ({"seeds": [True]}, ["seeds"]),
        ({"name": "a/b"}, ["name"]),
    ],
)
def test_what_is_no_grid_is_told(changes: dict[str, object], told: list[str], tmp_path: Path) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump(GRID | changes), encoding="utf-8")
    with pytest.raises(InputError) as error:
        Grid.load(path)
    message = str(error.value)
    assert len(message.splitlines()) == 1
    assert all(part in message for part in (str(path), *told)), message


@pytest.mark.parametrize("content", [b"- a\n", b"a: [", b"\xff\xfe", b""])
def test_a_file_without_a_mapping_is_told(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "grid.yaml").write_bytes(content)
    with pytest.raises(InputError, match="grid") as error:
        Grid.load(tmp_path / "grid.yaml")
    assert len(str(error.value).splitlines()) == 1


def test_a_grid_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.yaml.* cannot be read"):
        Grid.load(tmp_path / "none.yaml")


def test_the_grid_of_the_document_is_one() -> None:
    document = Path(__file__).parents[2] / "docs" / "reproduction.md"
    [block] = re.findall(r"```yaml\n(.*?)```", document.read_text(encoding="utf-8"), flags=re.DOTALL)
    grid = Grid.model_validate(yaml.safe_load(block))
    assert [variant.label for variant in grid.variants()] == ["16, 0.02", "16, 0.05", "8, 0.02", "8, 0.05"]
