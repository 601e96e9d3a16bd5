"""Answer prompts with a model directory, or a base model and adapters.

pyflyte run workflows/generate.py generate --model_dir outputs/.../model --prompts '["What is a GPU?"]'
"""

from flytekit import workflow
from flytekit.types.directory import FlyteDirectory
from flytekit.types.file import FlyteFile

from tasks.generate import generate_answers
from thriftune.inference.generation import OutputFormat


@workflow
def generate(
    model_dir: FlyteDirectory,
    prompts: list[str] = [],  # noqa: B006 - flytekit reads defaults from the signature, and copies them
    prompts_file: FlyteFile | None = None,
    adapters: list[FlyteDirectory] = [],  # noqa: B006
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
            texts, or a .txt file with one prompt per line.
        adapters: Adapter directories; each of them answers every prompt. If there are none, the model itself does.
        quantize: Hold the model in 4 bits.
        max_new_tokens: Longest answer, in tokens.
        temperature: 0 always takes the likeliest token; higher draws from the distribution.
        seed: Of the draws.
        batch: Prompts per forward pass.
        output_format: jsonl or parquet.

    Returns:
        A file with the columns prompt, adapter (adapter-1, adapter-2 ... in the order given, or base) and answer.
    """
    return generate_answers(
        model_dir=model_dir,
        prompts=prompts,
        prompts_file=prompts_file,
        adapters=adapters,
        quantize=quantize,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        batch=batch,
        output_format=output_format,
    )
