"""Answer prompts with a model directory, or a base model and adapters: in one pod, or a large file in parts.

pyflyte run workflows/generate.py generate --model_dir outputs/.../model --prompts '["What is a GPU?"]'
pyflyte run workflows/generate.py generate_in_parts --model_dir outputs/.../model --prompts_file prompts.jsonl
"""

from flytekit import dynamic, workflow
from flytekit.types.directory import FlyteDirectory
from flytekit.types.file import FlyteFile

from tasks import results
from tasks.declaring import GENERATE_CACHE, dynamic_task
from tasks.generate import generate_answers
from tasks.generate_parts import Asked, answer_part, join_answers, split_prompts
from tasks.mapping import mapped
from thriftune.inference.answers import OutputFormat


@workflow
def generate(
    model_dir: FlyteDirectory,
    prompts: list[str] = [],  # noqa: B006 - flytekit reads defaults from the signature, and copies them
    prompts_file: FlyteFile | None = None,
    adapters: list[FlyteDirectory] = [],  # noqa: B006
    adapter_names: list[str] = [],  # noqa: B006
    quantize: bool = False,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    seed: int = 0,
    batch: int = 8,
    output_format: OutputFormat = "jsonl",
) -> FlyteFile:
    """Answer prompts, with the model's own chat template where it has one.

    Args:
        model_dir: A base, fine-tuned or merged model directory.
        prompts: What to ask: a JSON list, or a .json or .yaml file with one.
        prompts_file: More of it: a file of any kind that training data may have with a column `prompt`, a JSON list of
            texts, or a .txt file with one prompt per line. A column `adapter` names the adapter that answers, or base.
        adapters: Adapter directories; each of them answers every prompt that names none. If there are none, the model
            itself does.
        adapter_names: A name for each adapter, in their order; adapter-1, adapter-2 ... if left out.
        quantize: Hold the model in 4 bits.
        max_new_tokens: Longest answer, in tokens.
        temperature: 0 always takes the likeliest token; higher draws from the distribution.
        seed: Of the draws.
        batch: Prompts per forward pass.
        output_format: jsonl or parquet.

    Returns:
        A file with the columns prompt, adapter (its name, or base) and answer: adapter by adapter, or in the order of
        the prompts where the file names who answers.
    """
    return generate_answers(
        model_dir=model_dir,
        prompts=prompts,
        prompts_file=prompts_file,
        adapters=adapters,
        adapter_names=adapter_names,
        quantize=quantize,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        batch=batch,
        output_format=output_format,
    )


@dynamic(**dynamic_task())
def answer_parts(
    model_dir: FlyteDirectory,
    parts: list[FlyteFile],
    keys: list[str],
    named: dict[str, FlyteDirectory],
    asked: Asked,
    parallel: int,
    output_format: OutputFormat,
) -> FlyteFile:
    """Answer each part in a pod of its own, except those that earlier runs answered, and join the answers."""
    steps = [
        results.step("answers", GENERATE_CACHE, key, f"part {number} of the answers")
        for number, key in enumerate(keys, 1)
    ]
    answering = mapped(answer_part, parallel, model_dir=model_dir, adapters=named, asked=asked)
    inputs = {"cache_key": [step.cache_key for step in steps], "record": [step.record for step in steps]}
    answered = answering(part=parts, **inputs)
    return join_answers(parts=answered, model_dir=model_dir, named=named, asked=asked, output_format=output_format)


@workflow
def generate_in_parts(
    model_dir: FlyteDirectory,
    prompts_file: FlyteFile,
    adapters: list[FlyteDirectory] = [],  # noqa: B006
    adapter_names: list[str] = [],  # noqa: B006
    quantize: bool = False,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    seed: int = 0,
    batch: int = 8,
    rows_per_part: int = 1000,
    parallel: int = 4,
    output_format: OutputFormat = "jsonl",
) -> FlyteFile:
    """Answer a large file of prompts in parts: what an earlier run answered is not answered again.

    Args:
        model_dir: A base, fine-tuned or merged model directory.
        prompts_file: As for `generate`.
        adapters: As for `generate`.
        adapter_names: A name for each adapter, in their order; adapter-1, adapter-2 ... if left out.
        quantize: Hold the model in 4 bits.
        max_new_tokens: Longest answer, in tokens.
        temperature: 0 always takes the likeliest token; higher draws from the distribution.
        seed: Of the draws, which each part begins anew.
        batch: Prompts per forward pass.
        rows_per_part: Questions of a part: prompts, times the adapters that each is for.
        parallel: Most parts that are answered at a time.
        output_format: jsonl or parquet.

    Returns:
        A file with the columns prompt, adapter (its name, or base) and answer, in the order of the prompts.
    """
    split = split_prompts(
        prompts_file=prompts_file,
        model_dir=model_dir,
        adapters=adapters,
        adapter_names=adapter_names,
        quantize=quantize,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        batch=batch,
        rows_per_part=rows_per_part,
        parallel=parallel,
        output_format=output_format,
    )
    answers: FlyteFile = answer_parts(
        model_dir=model_dir,
        parts=split.parts,
        keys=split.keys,
        named=split.named,
        asked=split.asked,
        parallel=parallel,
        output_format=output_format,
    )
    return answers
