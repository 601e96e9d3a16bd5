"""Answer prompts with a model directory, and show the answers side by side."""

import logging

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
from thriftune.inference.prompts import read_prompts
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
    quantize: bool,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    batch: int,
    output_format: generation.OutputFormat,
) -> FlyteFile:
    """Answer prompts in batches.

    Args:
        model_dir: A base, fine-tuned or merged model.
        prompts: What to ask.
        prompts_file: More of it: a file of any kind that training data may have with a column `prompt`, a JSON list of
            texts, or a .txt file with one prompt per line.
        adapters: Adapters; each of them answers every prompt. If there are none, the model itself does.
        quantize: Hold the model in 4 bits.
        max_new_tokens: Longest answer, in tokens.
        temperature: 0 always takes the likeliest token.
        seed: Of the draws.
        batch: Prompts per forward pass.
        output_format: jsonl or parquet.

    Returns:
        A file with the columns prompt, adapter (adapter-1, adapter-2 ... in the order given, or base) and answer.
    """
    inputs = {"model_dir": [model_dir], "prompts_file": [prompts_file] if prompts_file else [], "adapters": adapters}
    require_no_user((field, uri_of(one)) for field, given in inputs.items() for one in given)
    pod_check.require_for_generating()
    device = hardware.detect_device()
    placement = Placement(device, hardware.choose_precision("auto", device), FourBit() if quantize else None)
    sampling = Sampling(max_new_tokens, temperature, seed)
    asked = [*prompts, *(read_prompts(download(prompts_file)) if prompts_file else [])]
    # Numbered: a directory that pyflyte passes on no longer has the name it was given.
    named = {f"adapter-{number}": adapter for number, adapter in enumerate(adapters, 1)}
    answers = generation.generate(
        download(model_dir),
        asked,
        adapters={name: download(adapter) for name, adapter in named.items()},
        placement=placement,
        sampling=sampling,
        batch=batch,
    )
    place = settings.result_path("generate", f"answers.{output_format}")
    with writing_to(place, "writing the answers"):
        place.parent.mkdir(parents=True, exist_ok=True)
        generation.write_answers(answers, place)
    made, texts = upload_file(place), generation.by_adapter(answers)
    logger.info("\n%s", side_by_side.as_text(asked, texts, uri_of(made)))
    # Locally pyflyte copies a list of directories to temporary ones, whose paths say nothing.
    models = {name: uri_of(one) for name, one in {"model": model_dir, **({} if settings.is_local() else named)}.items()}
    pages.show("answers", "generate", side_by_side.page_of(asked, texts, models, sampling, uri_of(made)))
    return made
