"""The section of a run file about benchmarks: what a model is measured on, before and after training."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveInt

from thriftune.config.data import PATH_OR_URL, Section

# Names of ours; every other name is a task of lm-evaluation-harness, or a file.
GENERAL_MINI, HELD_OUT = "general-mini", "held_out"
ItemFormat = Literal["multiple_choice", "exact_answer"]


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


class BenchmarkTask(Section):
    """One benchmark. A name alone stands for a benchmark with every default."""

    name: str = Field(
        pattern=r"^[\w.,:-]*[\w,:-][\w.,:-]*$",
        description="general-mini (shipped with thriftune), held_out (the held-out rows of this run), a task of "
        "lm-evaluation-harness such as arc_easy, or a name of your own for `file`.",
    )
    file: Annotated[str | None, PATH_OR_URL] = Field(
        default=None,
        description="Items of your own: a .jsonl file, or a task of lm-evaluation-harness as a .yaml file.",
    )
    format: ItemFormat | None = Field(
        default=None,
        description="What the lines of a .jsonl file are. multiple_choice: id, question, choices (a list), answer (its "
        "index from 0), group (optional). exact_answer: id, question, answer (a text, or a list of them), group "
        "(optional).",
    )
    few_shot: NonNegativeInt = Field(default=0, description="Solved examples before each question.")
    limit: PositiveInt | None = Field(
        default=None,
        description="Use only so many items: those that come first, with groups in turn; of each task of a group of "
        "lm-evaluation-harness; of held_out, rows drawn once. All when left out.",
    )


class BenchmarksConfig(Section):
    """Benchmarks of the model before and after training, on the same items."""

    tasks: tuple[Annotated[BenchmarkTask, BeforeValidator(_named)], ...] = Field(
        min_length=1, description="What to measure: names, or {name, file, format, few_shot, limit}."
    )
    shards: PositiveInt = Field(
        default=1, description="Parts of each task that are measured in parallel, each in a pod with the model."
    )
    parallel: PositiveInt | None = Field(
        default=None, description="Most pods at a time; as many as there are shards when left out."
    )
    batch: PositiveInt = Field(default=8, description="Most rows per forward pass.")
    max_new_tokens: PositiveInt = Field(
        default=128, description="Longest answer, in tokens; a task of lm-evaluation-harness may have its own."
    )
    temperature: float = Field(
        default=0.0, ge=0, description="0 always takes the likeliest token; higher draws from the distribution."
    )
    repeats: PositiveInt | None = Field(
        default=None,
        description="How often the base is measured, to know how much of a difference is noise. When left out: twice "
        "where answers are drawn (temperature above 0) or on GPUs, whose sums depend on the batch, and else once.",
    )

    @property
    def has_held_out(self) -> bool:
        """Whether the held-out rows of the run are measured too."""
        return any(task.name == HELD_OUT and task.file is None for task in self.tasks)

    def times_measured(self, *, on_gpu: bool) -> int:
        """How often the base is measured.

        Args:
            on_gpu: Whether models run on a GPU.
        """
        return self.repeats or (2 if self.temperature > 0 or on_gpu else 1)
