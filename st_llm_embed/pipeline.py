"""The stages in order, each run once: journal -> dataset -> training -> evaluation -> release.

Under torchrun every process checks the inputs and trains; the first one alone does the rest while the others wait.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from st_llm_embed.data.check import check_data_section
from st_llm_embed.data.dataset import task_type_of, write_dataset, write_source
from st_llm_embed.data.files import record_files
from st_llm_embed.data.rows import Row, read_rows, rows_file
from st_llm_embed.data.sources import read_source
from st_llm_embed.data.split import Split, has_negatives
from st_llm_embed.errors import InputError, Problems
from st_llm_embed.modules.layout import model_fingerprint
from st_llm_embed.processes import is_first_process, process_count, wait_for_all_processes
from st_llm_embed.recipe import BASE, SYNTHESIS, TRAINED, Mining, Recipe, Synthesis, TrainingStage
from st_llm_embed.recipe.upstream import LORA_CONFIG, check_arguments, check_training_section, half_precision_problem
from st_llm_embed.stage import TRAINING_STAGE, build_stage, file_hash, full_disk_explained, owned_folder
from st_llm_embed.synthesis.estimate import Projection, estimate
from st_llm_embed.synthesis.generate import check_synthesis, generate
from st_llm_embed.synthesis.output import write_synthetic_dataset
from st_llm_embed.synthesis.selection import Selection, Similarities
from st_llm_embed.training.sections import check_base, check_batches, is_without_gpu

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

logger = logging.getLogger(__name__)


def check_inputs(recipe: Recipe, before_models: Callable[[], None] = lambda: None) -> None:
    """Check everything a run needs that can be checked in seconds, before anything is written.

    What needs no large library is checked first, and all that is wrong there is reported; then, after a call of
    `before_models`, the rest.

    Raises:
        InputError: rows, base model or a section of the recipe cannot be used.
    """
    rows = check_sections(dict(recipe))
    before_models()
    from st_llm_embed.evaluation.held_out import check_best_score
    from st_llm_embed.training.check import check_training
    from st_llm_embed.training.train import configurations_of

    problems = Problems()
    with problems.collected():
        check_training(recipe)
    if recipe.evaluation.tasks:
        # Importing mteb takes seconds.
        from st_llm_embed.evaluation.mteb import scored_task

        for name in recipe.evaluation.tasks:
            with problems.collected():
                scored_task(name)
    problems.report()
    if rows is not None:
        trained_on = [name for name, split in rows if split == "train"]
        known = not recipe.data.sources and recipe.data.mining is None
        for stage in recipe.stages if known else ():
            with problems.collected():
                configurations_of(stage, trained_on)
        held_out = {task_type_of(name) for name, split in rows if split == "validation"}
        for training in recipe.trainings():
            with problems.collected():
                check_best_score(training, held_out)
    problems.report()


def check_sections(sections: Mapping[str, Any]) -> Counter[tuple[str, Split]] | None:
    """Check sections of a recipe, some or all, as far as no large library is needed.

    Args:
        sections: the values of fields of `Recipe`, by name.

    Returns:
        The rows by (configuration, split); None where they are not written yet.

    Raises:
        InputError: something cannot be used; all of it is named.
    """
    problems, rows = Problems(), None
    if "data" in sections:
        with problems.collected():
            rows = check_data_section(sections["data"])
        if sections["data"].rows == SYNTHESIS and sections.get("synthesis") is not None:
            with problems.collected():
                check_synthesis(sections["synthesis"])
    if "base" in sections:
        with problems.collected():
            check_base(sections["base"])
    if sections.get("lora") is not None:
        with problems.collected():
            check_arguments(LORA_CONFIG, sections["lora"], _named(sections, "lora"))
    if "training" in sections:
        for stage in sections.get("stages") or (None,):
            with problems.collected():
                _check_training(sections, stage, rows)
    if sections.get("distillation") is not None:
        with problems.collected():
            where = _named(sections, "distillation.training")
            check_training_section(sections["distillation"].training, where, batches=False)
    problems.report()
    return rows


def check_data(recipe: Recipe) -> Counter[tuple[str, Split]] | None:
    """Check the rows, or what is needed to have an LLM write them; as `check_sections`."""
    return check_sections({"data": recipe.data, "synthesis": recipe.synthesis})


def _named(sections: Mapping[str, Any], section: str) -> str:
    """Name a section in messages as the checks of a whole recipe do."""
    between = ", " if section.startswith("stage ") else ": "
    return f"Recipe {sections['name']}{between}{section}" if "name" in sections else section


def _check_training(
    sections: Mapping[str, Any], stage: TrainingStage | None, rows: Counter[tuple[str, Split]] | None
) -> None:
    """Check the training section, or that of a stage, and that it makes batches of the rows."""
    where = _named(sections, "training" if stage is None else f"stage {stage.name}: training")
    given = sections["training"] | (stage.training if stage is not None else {})
    own = {} if stage is None else stage.batches
    batches = own is not None and (bool(own) or sections.get("batches") is not None)
    training = check_training_section(given, where, batches=batches)
    if training.get("learning_rate", 1) <= 0:
        raise InputError(f"{where}.learning_rate is {training['learning_rate']:g}, and nothing is learnt. Give more.")
    if is_without_gpu() and (problem := half_precision_problem(training, where)):
        raise InputError(problem)
    data = sections.get("data")
    if rows is None or data is None or data.sources or data.mining is not None:
        return
    sizes = {name: count for (name, split), count in rows.items() if split == "train"}
    if stage is not None:
        sizes = {name: count for name, count in sizes.items() if name.startswith(stage.configurations or "")}
    used = stage is None or stage.hard_negatives
    negatives = {name: int(used and has_negatives(name)) for name in sizes}
    check_batches(training, sizes, negatives, where, batches=batches, processes=process_count())


def run_pipeline(recipe: Recipe, output_dir: Path) -> dict[str, Any]:
    """Run every stage of a recipe that has not run yet.

    Args:
        recipe: all choices.
        output_dir: gets recipe.yaml, manifests/, journal/, vectors/, dataset/, sources/, training/ (training-<name>/
            for each of several stages), evaluation/ and release/.

    Returns:
        The content of evaluation/report.json.

    Raises:
        InputError: something given cannot be used, the output folder holds what no run wrote, or the disk is full;
            finished stages are kept.
    """
    from st_llm_embed.evaluation.report import write_report
    from st_llm_embed.publishing.release import write_release

    check_inputs(recipe)
    with run_in(output_dir, recipe):
        data = build_data(recipe, output_dir)
        training_dir, trained = _train(recipe, output_dir, data)
        dataset_dir = output_dir / "dataset"
        evaluation_dir, release_dir = output_dir / "evaluation", output_dir / "release"
        evaluated = build_stage(
            evaluation_dir,
            {
                "training": trained,
                "evaluation": recipe.evaluation.model_dump(),
                "name": recipe.name,
                "description": recipe.description,
                "limitations": recipe.publishing.limitations,
            },
            lambda folder: write_report(recipe, dataset_dir, training_dir, folder),
        )
        # The whole recipe is in the release.
        build_stage(
            release_dir,
            {"evaluation": evaluated, "recipe": recipe.model_dump(mode="json")},
            lambda folder: write_release(recipe, data, training_dir, evaluation_dir, folder),
        )
        return json.loads((evaluation_dir / "report.json").read_text(encoding="utf-8"))


def check_student_inputs(recipe: Recipe, before_models: Callable[[], None] = lambda: None) -> None:
    """Check what a distillation needs as `check_inputs` does for a run."""
    check_data(recipe)
    before_models()
    from st_llm_embed.distillation import check_distillation, distillation_of

    problems = Problems()
    with problems.collected():
        check_distillation(recipe)
    with problems.collected():
        if distillation_of(recipe).teacher.name_or_path == TRAINED:
            check_inputs(recipe)
    problems.report()


def run_distillation(recipe: Recipe, output_dir: Path) -> dict[str, Any]:
    """Make the recipe's student: rows -> (teacher) -> student -> report -> release. Finished stages are kept.

    Args:
        recipe: all choices.
        output_dir: as for `run_pipeline`, which runs first if the teacher is the model that the recipe trains. Also
            gets teacher/ (its vectors), student/, student-report/ and student-release/.

    Returns:
        The content of student-report/report.json.

    Raises:
        InputError: as `run_pipeline`; or teacher, student or texts cannot be used.
    """
    from st_llm_embed.distillation import (
        check_distillation,
        distillation_of,
        teacher_instructions,
        train_student,
        write_student_report,
    )
    from st_llm_embed.publishing.release import write_student_release

    distillation = distillation_of(recipe)
    check_distillation(recipe)
    if distillation.teacher.name_or_path == TRAINED:
        run_pipeline(recipe, output_dir)
    else:
        check_data(recipe)
    with run_in(output_dir, recipe):
        data = build_data(recipe, output_dir)
        named = distillation.teacher
        path = str(output_dir / "release") if named.name_or_path == TRAINED else named.name_or_path
        teacher = path, model_fingerprint(path, named.revision)
        dataset_dir, student_dir, report_dir = (output_dir / name for name in ("dataset", "student", "student-report"))
        trained = build_stage(
            student_dir,
            {
                **{folder.name: rows_hash(folder) for folder in data if distillation.rows},
                "texts": [file_hash(Path(name)) for name in distillation.texts],
                "teacher": teacher[1],
                "distillation": distillation.model_dump(
                    mode="json", exclude={"texts": True, "teacher": {"batch_size"}}
                ),
                "seed": recipe.seed,
                "instructions": teacher_instructions(recipe),
            },
            lambda folder: train_student(recipe, data, teacher, output_dir / "teacher", folder),
            resumable=True,
        )
        reported = build_stage(
            report_dir,
            {"student": trained, "rows": rows_hash(dataset_dir), "name": recipe.name}
            | recipe.evaluation.model_dump(include={"batch_size"}),
            lambda folder: write_student_report(recipe, dataset_dir, path, student_dir, folder),
        )
        build_stage(
            output_dir / "student-release",
            {"report": reported, "recipe": recipe.model_dump(mode="json")},
            lambda folder: write_student_release(recipe, data, student_dir, report_dir, folder),
        )
        return json.loads((report_dir / "report.json").read_text(encoding="utf-8"))


def training_folders(recipe: Recipe) -> list[str]:
    """Return the names of the folders that a run of a recipe trains in, in their order."""
    return [TRAINING_STAGE + stage.name for stage in recipe.stages] or ["training"]


def run_build_data(recipe: Recipe, output_dir: Path) -> None:
    """Run the stages before training, as `run_pipeline`. Only what they need is checked, so that they run anywhere."""
    check_data(recipe)
    with run_in(output_dir, recipe):
        build_data(recipe, output_dir)


def run_training(recipe: Recipe, output_dir: Path) -> None:
    """Run the stages up to and including training, as `run_pipeline`."""
    check_inputs(recipe)
    with run_in(output_dir, recipe):
        _train(recipe, output_dir, build_data(recipe, output_dir))


def run_synthesis(recipe: Recipe, output_dir: Path, *, ask: bool = True) -> dict[str, Any]:
    """Have an LLM write the rows, and make the dataset of them.

    Args:
        recipe: `synthesis`, `data` and the licence matter.
        output_dir: as for `run_pipeline`, which continues from here.
        ask: False sends nothing and makes the dataset again of the answers there are.

    Returns:
        The content of dataset/statistics.json.

    Raises:
        InputError: as `run_pipeline`; or a limit is reached, or the LLM's server does not answer. Every answer that
            came is in journal/.
    """
    synthesis_of(recipe)
    if ask:
        check_data(recipe)
    with run_in(output_dir, recipe):
        selection = _generate(recipe, output_dir) if ask else None
        _build_dataset(recipe, output_dir, selection, again=not ask)
        return json.loads((output_dir / "dataset" / "statistics.json").read_text(encoding="utf-8"))


def run_estimate(recipe: Recipe, output_dir: Path, requests: int) -> list[Projection]:
    """Send a few of the planned requests and project what all of them will take; as `run_synthesis` otherwise."""
    synthesis = synthesis_of(recipe)
    check_data(recipe)
    with run_in(output_dir, recipe):
        return estimate(synthesis, output_dir / "journal", requests)


@contextmanager
def run_in(output_dir: Path, recipe: Recipe) -> Generator[None]:
    """Hold the output folder, with the resolved recipe in it."""
    with owned_folder(output_dir, training_folders(recipe)), full_disk_explained(output_dir):
        if is_first_process():
            recipe.save(output_dir / "recipe.yaml")
        yield


def build_data(recipe: Recipe, output_dir: Path) -> list[Path]:
    """Build the folders to train on, and return them."""
    selection = _generate(recipe, output_dir) if recipe.data.rows == SYNTHESIS and is_first_process() else None
    wait_for_all_processes()
    built = [_build_dataset(recipe, output_dir, selection)]
    if recipe.data.sources:
        built.append(_build_sources(recipe, output_dir))
    return built


def _train(recipe: Recipe, output_dir: Path, data: Sequence[Path]) -> tuple[Path, str]:
    """Train on the folders of `build_data`, each stage of the recipe on from the one before it.

    Returns:
        The folder of the last training, and its fingerprint.
    """
    from st_llm_embed.evaluation.held_out import held_out_evaluator
    from st_llm_embed.training.adapter import continue_from
    from st_llm_embed.training.train import configurations_of, train

    names = [path.parent.name for folder in data for path in folder.glob("*/train.parquet")]
    # All of them, so that a name in a later stage is wrong before an earlier one has trained.
    chosen = [configurations_of(stage, names) for stage in recipe.stages] or [None]
    stages, trainings, folders = recipe.stages or (None,), recipe.trainings(), training_folders(recipe)
    done: list[tuple[Path, str]] = []
    for stage, resolved, name, configurations in zip(stages, trainings, folders, chosen, strict=True):
        inputs: dict[str, Any] = {folder.name: rows_hash(folder, configurations) for folder in data}
        inputs |= {"base": _base_fingerprint(resolved)}
        inputs |= resolved.model_dump(include={"lora", "loss", "batches", "training", "seed"})
        start = resolved
        if stage is not None:
            inputs["hard_negatives"] = stage.hard_negatives
        if done:
            former, inputs["before"] = done[-1]
            start = continue_from(resolved, former)
        build = partial(
            train,
            start,
            data,
            evaluator=held_out_evaluator(resolved, output_dir / "dataset"),
            configurations=configurations,
            hard_negatives=stage is None or stage.hard_negatives,
        )
        done.append((output_dir / name, build_stage(output_dir / name, inputs, build, resumable=True)))
    return done[-1]


def synthesis_of(recipe: Recipe) -> Synthesis:
    """Return a recipe's section on synthesis; raise an InputError where its rows come from elsewhere."""
    if recipe.synthesis is None or recipe.data.rows != SYNTHESIS:
        raise InputError(
            f"Recipe {recipe.name} takes its rows from {recipe.data.rows}. To have an LLM write them, set data.rows "
            "to synthesis and give a section synthesis; the recipe demo has one."
        )
    return recipe.synthesis


def _generate(recipe: Recipe, output_dir: Path) -> Selection | None:
    """Have every request answered; return the rows if a judge graded them."""
    logger.info("journal: asking for what is not answered yet")
    synthesis = synthesis_of(recipe)
    return generate(synthesis, output_dir / "journal", _similarities(synthesis))


def _build_dataset(recipe: Recipe, output_dir: Path, selection: Selection | None, *, again: bool = False) -> Path:
    """Write dataset/ of the rows, or of what the journal's answers give."""
    folder, data, journal = output_dir / "dataset", recipe.data, output_dir / "journal"
    # Licence and name are on the card.
    inputs: dict[str, Any] = data.model_dump(mode="json", exclude={"rows", "sources", "mining"})
    inputs |= recipe.publishing.model_dump(include={"dataset_license", "dataset_repo_id"})
    if data.mining is not None:
        inputs["mining"] = {"settings": data.mining.model_dump(), "model": _mining_model(recipe, data.mining)}
    if data.rows == SYNTHESIS:
        inputs["journal"] = {path.name: file_hash(path) for path in sorted(journal.glob("*.jsonl"))}
        inputs |= synthesis_of(recipe).model_dump(mode="json", include={"plan", "filters"})
    else:
        inputs["rows"] = _files_hash(rows_file(data.rows))

    def build(folder: Path) -> None:
        from st_llm_embed.publishing.dataset_card import dataset_card

        if data.rows == SYNTHESIS:
            synthesis = synthesis_of(recipe)
            similarities = _similarities(synthesis)
            fraction = data.validation_fraction
            counts = write_synthetic_dataset(
                *(synthesis, journal, folder, fraction, similarities), hold_out=data.hold_out, selection=selection
            )
        else:
            rows = read_rows(rows_file(data.rows), data.instruction)
            counts = write_dataset(rows, folder, data.validation_fraction, data.hold_out)
        if data.mining is not None:
            counts = _mined(recipe, data.mining, output_dir, folder)
        (folder / "README.md").write_text(dataset_card(recipe, folder, counts), encoding="utf-8")

    build_stage(folder, inputs, build, again=again)
    return folder


def _build_sources(recipe: Recipe, output_dir: Path) -> Path:
    """Write sources/ of other people's sets, apart from the dataset, which may be published."""
    folder, sources = output_dir / "sources", recipe.data.sources

    def build(folder: Path) -> None:
        for name, source in sources.items():
            write_source(read_source(name, source), folder, name, with_negatives="negative" in source.columns)

    inputs = {
        name: source.model_dump(mode="json")
        | ({"content": _files_hash(Path(source.path))} if Path(source.path).exists() else {})
        for name, source in sources.items()
    }
    build_stage(folder, inputs, build)
    return folder


def _files_hash(path: Path) -> str | list[str]:
    """Hash a file, or each file of a folder of records."""
    return [file_hash(file) for file in record_files(path)] if path.is_dir() else file_hash(path)


def rows_hash(folder: Path, configurations: Collection[str] | None = None) -> str:
    """Hash the rows of a folder, or of some of its configurations: the same rows need no other training."""
    parts = sorted(
        path
        for split in ("train", "validation")
        for path in folder.glob(f"*/{split}.parquet")
        if configurations is None or path.parent.name in configurations
    )
    return hashlib.sha256("".join(file_hash(path) for path in parts).encode()).hexdigest()


def _similarities(synthesis: Synthesis) -> Similarities | None:
    """Return what computes the consistency filter's cosine similarities; its model is loaded when first needed."""
    name = synthesis.filters.consistency_model
    if name is None:
        return None
    from st_llm_embed.modules.stock import load_stock

    @cache
    def model() -> SentenceTransformer:
        return load_stock(
            name, "consistency model", "Give a Hub id or a folder as synthesis.filters.consistency_model."
        )

    def similarities(rows: Sequence[Row]) -> list[tuple[float, float]]:
        anchors = model().encode_query([row.anchor for row in rows], convert_to_tensor=True)
        found = [
            model().similarity_pairwise(anchors, model().encode_document(texts, convert_to_tensor=True)).tolist()
            for texts in ([row.positive for row in rows], [row.negative or "" for row in rows])
        ]
        return list(zip(*found, strict=True))

    return similarities


def _mined(recipe: Recipe, mining: Mining, output_dir: Path, folder: Path) -> Counter[tuple[str, Split]]:
    """Mine negatives for the rows in a folder; vectors/ keeps what was encoded."""
    from st_llm_embed.data.mining import mine_dataset, mining_model
    from st_llm_embed.data.vectors import VectorFolder, encoder_with_prompts
    from st_llm_embed.training.adapter import starting_model

    embedder = starting_model(recipe) if mining.model == BASE else mining_model(mining)
    model = json.dumps(_mining_model(recipe, mining), sort_keys=True)
    encoder = f"{model}\n{mining.query_prompt!r}\n{mining.document_prompt!r}"
    vectors = VectorFolder(output_dir / "vectors", encoder_with_prompts(embedder, mining), encoder)
    return mine_dataset(folder, mining, vectors, str(embedder.device))


def _mining_model(recipe: Recipe, mining: Mining) -> dict[str, Any]:
    """Identify the mining model as `_base_fingerprint` does the base."""
    if mining.model == BASE:
        return _base_fingerprint(recipe) | ({"seed": recipe.seed} if recipe.base.random_init else {})
    return {"model": model_fingerprint(mining.model, mining.revision)}


def _base_fingerprint(recipe: Recipe) -> dict[str, Any]:
    """Identify base and adapter: by the content of a local folder, by name and revision on the Hub."""
    base = recipe.base.model_dump(exclude={"revision"})
    base["name_or_path"] = model_fingerprint(recipe.base.name_or_path, recipe.base.revision)
    base["adapter"] = recipe.base.adapter and model_fingerprint(recipe.base.adapter)
    return base
