"""The sections of a run file that say what rows to train on, and what every section has in common."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

DataFormat = Literal["alpaca", "prompt_completion", "chat", "sharegpt", "text", "quotes", "grammar", "template"]
LongRows = Literal["truncate", "drop", "split"]


@dataclass(frozen=True)
class _IsPlace:
    """Marks a text of a run file as one that may be a URL."""


PLACE = _IsPlace()


class Section(BaseModel):
    """Base of every section: a key that is not known is an error, and nothing changes after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DataSource(Section):
    """Rows from one place, and what their columns mean."""

    source: Annotated[str, PLACE] = Field(
        default="",
        description="Hub dataset id; or a path, glob, s3:// or gs:// URL of .jsonl, .json, .csv, .tsv, .txt (each also "
        ".gz or .zst) or .parquet files; or input:table, the table that a workflow was given.",
    )
    format: DataFormat | None = Field(
        default=None,
        description="What the columns mean. alpaca: instruction, output; input, system, history (optional). "
        "prompt_completion: prompt, completion. chat: messages, a list of {role, content}; tools, system (optional). "
        "sharegpt: conversations, a list of {from, value}; tools, system (optional). text: text, documents for "
        "continued pre-training. quotes: quote, author. grammar: sentence, corrections (a text, or a list with one row "
        "made of each). template: the columns that `template` names.",
    )
    subset: str | None = Field(default=None, description="Config name of a hub dataset.")
    split: str = Field(default="train", description="Split of a hub dataset to read rows from.")
    revision: str | None = Field(default=None, description="Commit, tag or branch of a hub dataset.")
    columns: dict[str, str] = Field(
        default={},
        description="Where the columns have other names than the format's: {instruction: question, output: response}.",
    )
    template: str | None = Field(
        default=None,
        min_length=1,
        description="Only for format template: a text with columns in braces, as 'Q: {question} A: {answer}'.",
    )
    trained_fields: tuple[str, ...] = Field(
        default=(), description="Fields of `template` to train on; the last one when left out."
    )
    sample_by: Literal["line", "paragraph", "document"] = Field(
        default="paragraph",
        description="What a row of a .txt file is: a line, lines up to an empty one, or the whole file.",
    )


class MixedSource(DataSource):
    """One of several sources."""

    weight: float | None = Field(
        default=None,
        gt=0,
        description="Share of the mixed rows, relative to the other weights; no row is used twice, so the scarcest "
        "source decides how many there are. Every row of every source is used where no weight is given.",
    )


class DataConfig(DataSource):
    """The rows to train on, and how they become tokens."""

    sources: tuple[MixedSource, ...] = Field(
        default=(),
        description="Several sources, in place of `source`: a list of {source, format, weight, ...}, each with the "
        "keys above that describe a source. They are all used whole where no weight is given.",
    )
    max_length: int = Field(default=1024, ge=2, description="Longest row, in tokens.")
    long_rows: LongRows = Field(
        default="truncate",
        description="What becomes of a longer row. truncate: cut at the end (dropped if no answer is left). drop: left "
        "out. split: goes on in the next row. Documents of format text are always cut into blocks. All are counted.",
    )
    packing: bool = Field(
        default=False,
        description="Put several examples into one row of max_length, without attention across them; batches then "
        "count packed rows. Held-out rows are never packed.",
    )
    deduplicate: bool = Field(default=True, description="Use rows that say exactly the same only once.")
    leakage_check: bool = Field(default=True, description="Keep rows out of training that are also held out.")
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
        description="Rows that spell out a special token of the model, as </s>. reject: unusable. keep: it becomes "
        "that token, for texts that a template was already applied to.",
    )

    @property
    def all_sources(self) -> tuple[DataSource, ...]:
        """The sources of the rows, one or several, in order."""
        single = DataSource.model_validate(self.model_dump(include=set(DataSource.model_fields)))
        return self.sources or (single,)

    @property
    def prompt_format(self) -> DataFormat:
        """The format that questions are put to the model in: that of the first source."""
        return self.all_sources[0].format or "text"


def places(section: Section, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Whatever a section names by a place: the field, as the file has it, and the place.

    Args:
        section: A run, or a part of one.
        prefix: What comes before its fields' names.
    """
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, Section):
            yield from places(value, f"{prefix}{name}.")
        elif isinstance(value, tuple):
            for number, item in enumerate(value):
                yield from places(item, f"{prefix}{name}.{number}.") if isinstance(item, Section) else ()
        elif PLACE in field.metadata and value:
            yield f"{prefix}{name}", value
