"""One release on the Hub: the merged model, its adapter and the rows it was trained on, each naming the others."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from st_llm_embed.doctor import diagnose
from st_llm_embed.doctor.probe import PROBE_FILE
from st_llm_embed.doctor.repository import NoDecoderError
from st_llm_embed.errors import InputError
from st_llm_embed.publishing.card_parts import INVARIANCE_FILE, Link, updated_card, updated_dataset_card
from st_llm_embed.publishing.cards import PICTURE, adapter_card, folder_card
from st_llm_embed.publishing.leak_check import published_files
from st_llm_embed.publishing.push import Destination, check_push, check_tag, destination, push_folder, tag_commit
from st_llm_embed.publishing.release import has_public_base, write_adapter_release
from st_llm_embed.recipe import Recipe

What = Literal["dataset", "adapter", "model"]

REPLACED = {
    "dataset": ("*.parquet",),
    "adapter": ("*.safetensors",),
    "model": (
        *("*.safetensors", "*.safetensors.index.json", "*.gguf", "onnx/*", "openvino/*"),
        *(PROBE_FILE, INVARIANCE_FILE, PICTURE),
    ),
}
"""Files of an earlier version that would be wrong beside this one."""


class Part(NamedTuple):
    """A folder that becomes a repository."""

    what: What
    folder: Path
    repo_id: str


class Published(NamedTuple):
    """What was published: the address of the repository or of the pull request, and the commit at its head."""

    what: What
    address: str
    commit: str


def publish(
    folder: Path, to: str, *, private: bool = False, create_pr: bool = False, tag: str | None = None
) -> list[Published]:
    """Publish a run, or a saved model, on the Hub.

    Of a run three repositories are made: the released model as `to`, the LoRA adapter as `to`-lora where its base is
    on the Hub, and the rows as `publishing.dataset_repo_id` or `to`-data where `publishing.dataset_license` is given.
    Everything is checked before the first byte is sent. What is on the Hub already is not sent again, and an
    unchanged repository gets no commit: after an interruption the same call finishes the rest.

    Args:
        folder: output folder of a run or a distillation, or a saved sentence-transformers model.
        to: name of the model on the Hub, `organisation-or-user/name`.
        private: make the repositories private; those that exist must already be so.
        create_pr: open a pull request in each repository instead of committing to its main branch.
        tag: name given to the commit in each repository, such as `v1`.

    Returns:
        What was published, the model last.

    Raises:
        InputError: something cannot be published, the name, the token or its rights are not enough, or the network
            failed. The message says what was sent.
    """
    if create_pr and tag is not None:
        raise InputError(
            f"--tag {tag} is given with --create-pr, which has no commit to tag yet. When the pull request is merged, "
            "publish again with --tag alone."
        )
    destination(to, "model", private=private)
    with tempfile.TemporaryDirectory() as scratch:
        recipe, parts = _parts(folder, to, Path(scratch))
        targets = [
            destination(part.repo_id, "dataset" if part.what == "dataset" else "model", private=private)
            for part in parts
        ]
        for part, target in zip(parts, targets, strict=True):
            check_push(part.folder, target)
            if part.what == "model":
                _check_health(part.folder)
        staged = []
        for part, target in zip(parts, targets, strict=True):
            links = [Link(other.what, other.repo_id) for other in parts if other is not part]
            staged.append(_staged(part, _card(part, recipe, links, to), Path(scratch) / f"{part.what}-staged"))
            if tag is not None:
                check_tag(staged[-1], target, tag, REPLACED[part.what])
        published: list[Published] = []
        for part, files, target in zip(parts, staged, targets, strict=True):
            try:
                published.append(_push(part.what, files, target, create_pr=create_pr, tag=tag))
            except InputError as error:
                done = ", ".join(one.address for one in published)
                raise InputError(f"{error} Published before it: {done}." if done else str(error)) from error
    return published


def _parts(folder: Path, to: str, scratch: Path) -> tuple[Recipe | None, list[Part]]:
    """Find what belongs to a release, in the order in which it is published: what cards link to comes first.

    The repository of the adapter is put together in `scratch`.
    """
    if (folder / "modules.json").is_file():
        return None, [Part("model", folder, to)]
    if not (folder / "recipe.yaml").is_file():
        raise InputError(
            f"{folder} is neither a run nor a saved model. Give the output folder of st-llm-embed run, or a folder "
            "that model.save_pretrained wrote."
        )
    recipe = Recipe.load(str(folder / "recipe.yaml"))
    if not (folder / "release" / "modules.json").is_file():
        student = folder / "student-release"
        if (student / "modules.json").is_file():
            return None, [Part("model", student, to)]
        raise InputError(
            f"{folder} has no release yet. Finish the run first: st-llm-embed run {recipe.name} --output-dir "
            f"{folder}, with the recipe and the settings that began it."
        )
    parts = []
    if recipe.publishing.dataset_license is not None:
        parts.append(Part("dataset", folder / "dataset", recipe.publishing.dataset_repo_id or f"{to}-data"))
    adapter = folder / (f"training-{recipe.stages[-1].name}" if recipe.stages else "training") / "adapter"
    if has_public_base(adapter):
        write_adapter_release(folder / "release", adapter, scratch / "adapter")
        parts.append(Part("adapter", scratch / "adapter", f"{to}-lora"))
    parts.append(Part("model", folder / "release", to))
    return recipe, parts


def _check_health(folder: Path) -> None:
    """Refuse a decoder that doctor finds an error in."""
    try:
        findings = diagnose(str(folder)).findings
    except NoDecoderError:
        return
    errors = [finding for finding in findings if finding.severity == "error"]
    if errors:
        shown = "; ".join(f"{one.trap}: {one.message} {one.fix}" for one in errors)
        raise InputError(
            f"doctor refuses {folder}: {shown} st-llm-embed doctor {folder} --fix OUT writes a repaired copy. "
            "Nothing was sent."
        )


def _card(part: Part, recipe: Recipe | None, links: Sequence[Link], merged: str) -> str:
    """Return the card under the published names."""
    path = part.folder / "README.md"
    if part.what == "adapter" and recipe is not None:
        return updated_card(adapter_card(recipe, part.folder, part.repo_id, merged), part.folder, part.repo_id, links)
    if not path.is_file():
        return folder_card(part.folder, part.repo_id)
    card = path.read_text(encoding="utf-8")
    if part.what == "dataset":
        return updated_dataset_card(card, part.repo_id, links)
    return updated_card(card, part.folder, part.repo_id, links)


def _staged(part: Part, card: str, folder: Path) -> Path:
    """Make a folder of links to a part's files with the card under the published names; those are not changed."""
    for path in published_files(part.folder):
        link = folder / path
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to((part.folder / path).resolve())
    (folder / "README.md").unlink(missing_ok=True)
    (folder / "README.md").write_text(card, encoding="utf-8")
    return folder


def _push(what: What, folder: Path, to: Destination, *, create_pr: bool, tag: str | None) -> Published:
    pushed = push_folder(
        folder,
        to.repo_id,
        repo_type=to.repo_type,
        private=to.private,
        create_pr=create_pr,
        commit_message=f"Publish the {what}",
        replaced=REPLACED[what],
    )
    if tag is not None:
        tag_commit(to, tag, pushed.commit)
    return Published(what, pushed.address, pushed.commit)
