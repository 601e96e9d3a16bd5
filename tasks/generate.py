"""Answer prompts with a model directory, and show the answers side by side."""

import logging
from collections.abc import Mapping, Sequence

from flytekit import task
from flytekit.types.directory import FlyteDirectory
from flytekit.types.file import FlyteFile

from tasks import pages, pod_check, settings
from tasks.declaring import generating_task
from tasks.transfer import download, upload_file, uri_of
from thriftune import hardware
from thriftune.config.rules import require_no_user
from thriftune.disk import writing_to
from thriftune.inference import generation, side_by_side
from thriftune.inference.answers import OutputFormat, by_adapter, in_rows, require_format, write_answers
from thriftune.inference.asking import names_of, require_settings
from thriftune.inference.prompts import Prompt, iterate_prompts
from thriftune.models.answering import Sampling
from thriftune.models.loading import Placement
from thriftune.models.quantization import FourBit

logger = logging.getLogger("thriftune.tasks.generate")


@task(**generating_task(), enable_deck=True, deck_fields=())
def generate_answers(
    model_dir: FlyteDirectory,
    prompts: list[str],
    prompts_file: FlyteFile | None,
    adapters: list[FlyteDirectory],
    adapter_names: list[str],
    quantize: bool,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    batch: int,
    output_format: OutputFormat,
) -> FlyteFile:
    """Answer prompts in batches.

    Args:
        model_dir: A base, fine-tuned or merged model.
        prompts: What to ask.
        prompts_file: More of it: a file of any kind that training data may have with a column `prompt`, a JSON list of
            texts, or a .txt file with one prompt per line. A column `adapter` names who answers.
        adapters: Adapters; each of them answers every prompt that names none. If there are none, the model itself does.
        adapter_names: Their names, in their order; none to number them.
        quantize: Hold the model in 4 bits.
        max_new_tokens: Longest answer, in tokens.
        temperature: 0 always takes the likeliest token.
        seed: Of the draws.
        batch: Prompts per forward pass.
        output_format: jsonl or parquet.

    Returns:
        A file with the columns prompt, adapter (its name, or adapter-1, adapter-2 ... in the order given, or base) and
        answer.
    """
    # Numbered where they have no names: a directory that pyflyte passes on no longer has the name it was given.
    named = dict(zip(names_of(len(adapters), adapter_names), adapters, strict=True))
    inputs = {"model_dir": [model_dir], "prompts_file": [prompts_file] if prompts_file else [], "adapters": adapters}
    require_no_user((field, uri_of(one)) for field, given in inputs.items() for one in given)
    sampling = Sampling(max_new_tokens, temperature, seed)
    require_settings(sampling, batch)
    require_format(output_format)
    pod_check.require_for_generating()
    asked = [*map(Prompt, prompts), *(iterate_prompts(download(prompts_file)) if prompts_file else [])]
    answers = generation.generate(
        download(model_dir),
        asked,
        adapters={name: download(adapter) for name, adapter in named.items()},
        placement=placement_here(quantize=quantize),
        sampling=sampling,
        batch=batch,
    )
    place = settings.result_path("generate", f"answers.{output_format}")
    with writing_to(place, "writing the answers"):
        place.parent.mkdir(parents=True, exist_ok=True)
        write_answers(answers, place)
    made, shown = upload_file(place), [prompt.text for prompt in asked]
    texts: Mapping[str, Sequence[str | None]] = by_adapter(answers)
    if any(prompt.adapter for prompt in asked):
        shown, texts, _ = in_rows(answers, len(asked))
    logger.info("\n%s", side_by_side.as_text(shown, texts, uri_of(made)))
    page = side_by_side.page_of(shown, texts, models_by_name(model_dir, named), sampling, uri_of(made))
    pages.show("answers", "generate", page)
    return made


def placement_here(*, quantize: bool) -> Placement:
    """How this machine holds a model that answers.

    Args:
        quantize: Whether in 4 bits.
    """
    device = hardware.detect_device()
    return Placement(device, hardware.choose_precision("auto", device), FourBit() if quantize else None)


def models_by_name(model_dir: FlyteDirectory, named: Mapping[str, FlyteDirectory]) -> dict[str, str]:
    """Where a model and its adapters are, for a page.

    Args:
        model_dir: The model.
        named: The adapters by name.
    """
    # Locally pyflyte copies a list of directories to temporary ones, whose paths say nothing.
    shown = {} if settings.is_local() else named
    return {name: uri_of(one) for name, one in {"model": model_dir, **shown}.items()}
