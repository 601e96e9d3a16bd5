"""A large file of prompts, answered in parts: split on a CPU, each part in a pod of its own, and joined."""

import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from flytekit import task
from flytekit.types.directory import FlyteDirectory
from flytekit.types.file import FlyteFile

from tasks import pages, pod_check, results, settings
from tasks.declaring import GENERATE_CACHE, cache, cpu_task, generating_task
from tasks.generate import models_by_name, placement_here
from tasks.settings import PLATFORM
from tasks.transfer import download, transient_errors_retried, upload, upload_file, uri_of
from thriftune import artifacts, damage, digests
from thriftune.config.rules import require_no_user
from thriftune.disk import writing_to
from thriftune.errors import ConfigError, UserError
from thriftune.inference import generation, side_by_side
from thriftune.inference.answers import OutputFormat, in_rows, require_format, write_answers
from thriftune.inference.asking import BASE, names_of, require_settings
from thriftune.inference.parts import Part, answers_file, answers_in, key_parts, split
from thriftune.inference.prompts import iterate_prompts
from thriftune.models import fetching
from thriftune.models.answering import Sampling
from thriftune.urls import is_remote

logger = logging.getLogger("thriftune.tasks.generate_parts")

_KIND = "answers"


@dataclass(frozen=True)
class Asked:
    """How every part is answered.

    Attributes:
        sampling: How tokens are sampled.
        quantize: Whether the model is held in 4 bits.
        batch: Prompts per forward pass.
    """

    sampling: Sampling
    quantize: bool
    batch: int


class SplitPrompts(NamedTuple):
    """The parts of a file of prompts, what the answers to each are known by, adapters by name, and how to answer."""

    parts: list[FlyteFile]
    keys: list[str]
    named: dict[str, FlyteDirectory]
    asked: Asked


@task(**cpu_task())
def split_prompts(
    prompts_file: FlyteFile,
    model_dir: FlyteDirectory,
    adapters: list[FlyteDirectory],
    adapter_names: list[str],
    quantize: bool,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    batch: int,
    rows_per_part: int,
    parallel: int,
    output_format: OutputFormat,
) -> SplitPrompts:
    """Check a file of prompts row by row, and write it to parts. All that is wrong is said before a GPU is asked for.

    Args:
        prompts_file: The file.
        model_dir: The model.
        adapters: The adapters.
        adapter_names: Their names; none to number them.
        quantize: Hold the model in 4 bits.
        max_new_tokens: Longest answer, in tokens.
        temperature: 0 always takes the likeliest token.
        seed: Of the draws.
        batch: Prompts per forward pass.
        rows_per_part: Questions of a part.
        parallel: Most parts at a time.
        output_format: What the answers will be written as, which is only checked here.

    Returns:
        The parts.
    """
    named = dict(zip(names_of(len(adapters), adapter_names), adapters, strict=True))
    inputs = {"model_dir": [model_dir], "prompts_file": [prompts_file], "adapters": adapters}
    require_no_user((field, uri_of(one)) for field, given in inputs.items() for one in given)
    if parallel < 1:
        raise ConfigError.single("parallel", parallel, "is less than one.", "Use at least 1.")
    asked = Asked(Sampling(max_new_tokens, temperature, seed), quantize, batch)
    require_settings(asked.sampling, batch)
    require_format(output_format)
    parts = _parts_of(download(prompts_file), list(named), rows_per_part)
    with transient_errors_retried():
        versions = {name: _version(uri_of(one), f"adapters {name}") for name, one in named.items()}
        versions[BASE] = _version(uri_of(model_dir), "model_dir")
    keys = [artifacts.key_of(*key_parts(part, versions, asked.sampling, _held(asked))) for part in parts]
    logger.info("%d questions in %d parts", sum(part.questions for part in parts), len(parts))
    return SplitPrompts([upload_file(part.file) for part in parts], keys, named, asked)


def _parts_of(file: Path, adapters: Sequence[str], rows: int) -> list[Part]:
    """Write the prompts in a file to parts. In a local run they lie beside the answers, as the other tasks read them.

    Args:
        file: The prompts.
        adapters: Names of the adapters.
        rows: Questions of a part.
    """
    folder = settings.result_path("generate", "parts")
    try:
        with writing_to(folder, "splitting the prompts"):
            folder.mkdir(parents=True, exist_ok=True)
            return split(iterate_prompts(file), adapters, rows, folder)
    except UserError:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _version(place: str, field: str) -> str:
    """What a model or an adapter is known by: its content; in a store, its place and the names and stamps of files."""
    if is_remote(place):
        return artifacts.key_of(place, fetching.version(place, field=field))
    # Not the times of its files: pyflyte copies directories of a local run anew each time.
    folder = Path(place)
    names = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    found = digests.checksums(folder, names)
    return artifacts.key_of(*(f"{name} {digest}" for name, digest in zip(names, found, strict=True)))


def _held(asked: Asked) -> str:
    """How the model is held, and on what, as a text; how many prompts at a time counts where answers are drawn."""
    placement = placement_here(quantize=asked.quantize) if settings.is_local() else None
    on = [placement.device.name, placement.precision] if placement else [PLATFORM.generate_instance]
    return json.dumps([*on, asked.quantize, asked.batch if asked.sampling.temperature > 0 else 0])


@task(**generating_task(), cache=cache(GENERATE_CACHE, "record", "part", "model_dir", "adapters", "asked"))
def answer_part(
    cache_key: str, record: str, part: FlyteFile, model_dir: FlyteDirectory, adapters: dict[str, FlyteDirectory],
    asked: Asked,
) -> FlyteDirectory:  # fmt: skip
    """Answer the questions of a part.

    Args:
        cache_key: What Flyte's cache knows the result by, and the local one.
        record: URL to write the place of the result to; empty in a local run.
        part: The questions, each with who answers it.
        model_dir: The model.
        adapters: The adapters by name.
        asked: How to answer.

    Returns:
        A directory with the answers.
    """
    pod_check.require_for_generating()
    place = settings.cache_path(_KIND, artifacts.key_of(cache_key))
    if damage.is_reusable(place):
        logger.info("%s is answered already", uri_of(part))
    else:
        prompts = list(iterate_prompts(download(part)))
        wanted = {prompt.adapter for prompt in prompts}
        answers = generation.generate(
            download(model_dir),
            prompts,
            adapters={name: download(one) for name, one in adapters.items() if name in wanted},
            placement=placement_here(quantize=asked.quantize),
            sampling=asked.sampling,
            batch=asked.batch,
        )
        with artifacts.writing(place, "writing answers") as directory:
            write_answers(answers, answers_file(directory))
            artifacts.write_manifest(directory, _KIND, {"questions": len(prompts)})
    made = upload(place)
    results.remember(record, made)
    return made


@task(**cpu_task(), enable_deck=True, deck_fields=())
def join_answers(
    parts: list[FlyteDirectory],
    model_dir: FlyteDirectory,
    named: dict[str, FlyteDirectory],
    asked: Asked,
    output_format: OutputFormat,
) -> FlyteFile:
    """Join the answers to parts, in the order of the prompts, and show the first of them.

    Args:
        parts: The answers to each part.
        model_dir: The model, for the page.
        named: The adapters by name, for the page.
        asked: How they were answered.
        output_format: jsonl or parquet.

    Returns:
        A file with all answers.
    """
    brought = [download(part) for part in parts]
    place = settings.result_path("generate", f"answers.{output_format}")
    with writing_to(place, "writing the answers"):
        place.parent.mkdir(parents=True, exist_ok=True)
        write_answers(answers_in(brought), place)
    made = upload_file(place)
    shown, texts, count = in_rows(answers_in(brought), side_by_side.MOST_PROMPTS)
    logger.info("\n%s", side_by_side.as_text(shown, texts, uri_of(made), count))
    page = side_by_side.page_of(shown, texts, models_by_name(model_dir, named), asked.sampling, uri_of(made), count)
    pages.show("answers", "generate", page)
    return made
