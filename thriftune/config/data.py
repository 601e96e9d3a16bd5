"""The sections of a run file about the training rows, and the base of every section."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

DataFormat = Literal[
    "alpaca", "prompt_completion", "chat", "sharegpt", "text", "quotes", "grammar", "template", "labelled"
]  # fmt: skip
LongRows = Literal["truncate", "drop", "split"]


@dataclass(frozen=True)
class _IsPathOrUrl:
    """Marks a text in a run file that may be a path or URL."""


PATH_OR_URL = _IsPathOrUrl()


class Section(BaseModel):
    """Base of every section: an unknown key is an error, and nothing changes after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DataSource(Section):
    """Rows from one source, and what their columns mean."""

    source: Annotated[str, PATH_OR_URL] = Field(
        default="",
        description="Hub dataset id; or a path, glob, s3:// or gs:// URL of .jsonl, .json, .csv, .tsv, .txt (each also "
        ".gz or .zst) or .parquet files; or input:table, the table given to the workflow.",
    )
    format: DataFormat | None = Field(
        default=None,
        description="What the columns mean. alpaca: instruction, output; input, system, history (optional). "
        "prompt_completion: prompt, completion. chat: messages, a list of {role, content}; tools, system (optional). "
        "sharegpt: conversations, a list of {from, value}; tools, system (optional). text: text, documents for "
        "continued pre-training. quotes: quote, author. grammar: sentence, corrections (a text, or a list with one row "
        "made of each). template: the columns that `template` names. labelled: text, label (for task classification).",
    )
    subset: str | None = Field(default=None, description="Config name of a hub dataset.")
    split: str = Field(default="train", description="Split of a hub dataset to read rows from.")
    revision: str | None = Field(default=None, description="Commit, tag or branch of a hub dataset.")
    columns: dict[str, str] = Field(
        default={},
        description="For columns whose names differ from the format's: {instruction: question, output: response}.",
    )
    template: str | None = Field(
        default=None,
        min_length=1,
        description="Only for format template: a text with columns in braces, for example 'Q: {question} A: {answer}'.",
    )
    trained_fields: tuple[str, ...] = Field(
        default=(), description="Fields of `template` to train on; the last field when left out."
    )
    sample_by: Literal["line", "paragraph", "document"] = Field(
        default="paragraph",
        description="What a row of a .txt file is: a line, a block of lines up to an empty one, or the whole file.",
    )


class MixedSource(DataSource):
    """One of several sources."""

    weight: float | None = Field(
        default=None,
        gt=0,
        description="Share of the mixed rows, relative to the other weights; no row is used twice, so the scarcest "
        "source limits the total. Without weights, every row of every source is used.",
    )


class ReplaySource(DataSource):
    """Rows that are only trained on, beside those of the task, so that the model forgets less of what they show."""

    share: float = Field(
        gt=0,
        lt=1,
        description="Share of the training rows that come from this source: 0.2 is one in five. No row is used twice, "
        "so the source that is scarcer for it limits the rows of the other. Packed and cut rows are not counted: it is "
        "of the rows that are read.",
    )


class DataConfig(DataSource):
    """The rows to train on, and how they become tokens."""

    sources: tuple[MixedSource, ...] = Field(
        default=(),
        description="Several sources, in place of `source`: a list of {source, format, weight, ...}, each with the "
        "keys above that describe a source. Without weights, all of their rows are used.",
    )
    replay: ReplaySource | None = Field(
        default=None,
        description="General rows mixed into those of the task against forgetting: {source, format, share, ...}, with "
        "the keys above that describe a source. None of them is held out.",
    )
    max_length: int = Field(default=1024, ge=2, description="Longest row, in tokens.")
    long_rows: LongRows = Field(
        default="truncate",
        description="What happens to a longer row. truncate: cut at the end (dropped if no answer is left). drop: left "
        "out. split: continued in the next row. Documents of format text are always cut into blocks. All are counted.",
    )
    packing: bool = Field(
        default=False,
        description="Put several examples into one row of max_length, without attention between them; batches then "
        "count packed rows. Held-out rows are never packed.",
    )
    deduplicate: bool = Field(default=True, description="Use identical rows only once.")
    leakage_check: bool = Field(default=True, description="Leave out training rows identical to a held-out row.")
    max_rows: PositiveInt | None = Field(default=None, description="Use only this many rows, chosen by the seed.")
    validation_share: float = Field(
        default=0.05, gt=0, lt=1, description="Share of rows held out from training to measure loss on."
    )
    max_rejected: float = Field(
        default=0.01, ge=0, le=1, description="Share of rows that may be unusable; they are set aside and listed."
    )
    train_on_inputs: bool = Field(default=False, description="Train on prompt tokens too, not only on answers.")
    special_tokens: Literal["reject", "keep"] = Field(
        default="reject",
        description="For rows that spell out a special token of the model, such as </s>. reject: the row is unusable. "
        "keep: it becomes that token, for texts that already had a template applied.",
    )

    @property
    def all_sources(self) -> tuple[DataSource, ...]:
        """The sources of the rows, in order; that of replayed rows is the last."""
        return (*self.task_sources, self.replay) if self.replay else self.task_sources

    @property
    def task_sources(self) -> tuple[DataSource, ...]:
        """The sources without that of replayed rows: held-out rows come from these."""
        single = DataSource.model_validate(self.model_dump(include=set(DataSource.model_fields)))
        return self.sources or (single,)

    @property
    def source_fields(self) -> tuple[str, ...]:
        """The key of each of `all_sources` in the file."""
        of_task = [f"data.sources.{number}" for number in range(len(self.sources))] or ["data"]
        return (*of_task, "data.replay") if self.replay else tuple(of_task)

    @property
    def prompt_format(self) -> DataFormat:
        """The format of the questions that the model is asked: that of the first source."""
        return self.all_sources[0].format or "text"


def places(section: Section, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every path or URL that a section names.

    Args:
        section: A run, or a part of one.
        prefix: Start of its fields' names in the file.

    Yields:
        The field's name in the file, and the path or URL.
    """
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, Section):
            yield from places(value, f"{prefix}{name}.")
        elif isinstance(value, tuple):
            for number, item in enumerate(value):
                yield from places(item, f"{prefix}{name}.{number}.") if isinstance(item, Section) else ()
        elif PATH_OR_URL in field.metadata and value:
            yield f"{prefix}{name}", value
