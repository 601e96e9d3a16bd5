"""Converting a batch of rows to tokens, in each worker process."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from thriftune.config import DataConfig
from thriftune.data import labelled, rendering, unread
from thriftune.data.examples import Conversation, Example, MarkedText, RowError, all_values
from thriftune.data.formats import Format, format_of
from thriftune.data.readers import decode
from thriftune.data.rejection import RejectedRow
from thriftune.data.sources import NumberedRow
from thriftune.data.tokenization import ForbiddenText, Tokenization, TokenRow, digest, fit
from thriftune.errors import DataError
from thriftune.limits import OVERRUNS, shortened
from thriftune.models.chat_template import closings, never_ends
from thriftune.models.stopping import before_stop, stop_tokens

if TYPE_CHECKING:
    import pyarrow as pa
    from transformers import PreTrainedTokenizerBase

SAMPLES = 4  # held-out questions kept for the answers before and after training


@dataclass(frozen=True)
class Batch:
    """Rows to convert, all of one source.

    Attributes:
        source: Index of the source in the configuration.
        rows: The rows.
        held_out: For each row, whether it is held out from training.
    """

    source: int
    rows: list[NumberedRow]
    held_out: list[bool]


@dataclass
class Converted:
    """The result of converting a batch.

    Attributes:
        table: One line for each piece of an example: see `schema`.
        rejected: Rows, or parts of rows, that cannot be used.
        counts: Numbers of truncated, dropped ... rows, by (is held out, what happened).
        samples: The first held-out questions of the batch, by the digest of their row, each with its file or dataset.
        unread: Number of rows with a key that is not read, by source and key.
    """

    table: "pa.RecordBatch"
    rejected: list[RejectedRow] = field(default_factory=list)
    counts: Counter[tuple[bool, str]] = field(default_factory=Counter)
    samples: dict[bytes, dict[str, Any]] = field(default_factory=dict)
    unread: Counter[tuple[int, str]] = field(default_factory=Counter)

    @property
    def rejected_rows(self) -> int:
        """Number of rows of which nothing can be used."""
        return sum(count for (_, what), count in self.counts.items() if what == "rejected")


def schema() -> "pa.Schema":
    """The schema of pieces of examples between conversion and arrangement.

    Columns: input_ids and labels (lists of int32), digest (16 bytes), held_out, is_document, opens (whether it is the
    first piece of its example).
    """
    import pyarrow as pa

    return pa.schema(
        [
            ("input_ids", pa.list_(pa.int32())),
            ("labels", pa.list_(pa.int32())),
            ("digest", pa.binary(16)),
            ("held_out", pa.bool_()),
            ("is_document", pa.bool_()),
            ("opens", pa.bool_()),
        ]
    )


class Converter:
    """Converts batches; made once in each worker."""

    def __init__(self, config: DataConfig, tokenizer: "PreTrainedTokenizerBase", labels: Sequence[str] = ()) -> None:
        """Prepare the format of every source.

        Args:
            config: The data section of a run.
            tokenizer: The tokenizer to use.
            labels: Names of the classes, for labelled rows.
        """
        self._config, self._labels = config, labels
        self._formats = formats(config, labels)
        self._tokenization = Tokenization(tokenizer, train_on_inputs=config.train_on_inputs)
        self._forbidden = ForbiddenText(tokenizer, allow_special_tokens=config.special_tokens == "keep")
        self._closings = closings(tokenizer)
        self._stops = stop_tokens(tokenizer)
        self._conversations = self._overruns = 0

    def convert(self, batch: Batch) -> Converted:
        """Read, check, tokenize and cut the rows of a batch. Every row ends up in the table or among the rejected rows.

        Args:
            batch: The rows.

        Raises:
            ModelSourceError: The chat template exceeds its limits for most of them.
        """
        result = Converted(table=None)
        texts: list[MarkedText] = []
        held_out: list[bool] = []
        places: list[str] = []
        for row, is_held_out in zip(batch.rows, batch.held_out, strict=True):
            result.counts[is_held_out, "rows"] += 1
            examples = list(self._examples(row, batch.source, result.unread))
            errors = [example for example in examples if isinstance(example, RowError)]
            bad = [RejectedRow(row.place, row.number, shortened(str(error)), error.cause) for error in errors]
            good = [example for example in examples if isinstance(example, MarkedText)]
            result.rejected += bad
            result.counts[is_held_out, "rejected"] += not good
            result.counts[is_held_out, "rejected_parts"] += len(bad) if good else 0
            texts += good
            held_out += [is_held_out] * len(good)
            places += [row.place] * len(good)
        pieces = _Pieces()
        rows = self._tokenization.tokenize(texts)
        for text, tokens, is_held_out, place in zip(texts, rows, held_out, places, strict=True):
            kept = self._cut(text, tokens, is_held_out, result.counts)
            for number, piece in kept:
                pieces.add(piece, digest(text, number), is_held_out, text.is_document, number == kept[0][0])
            if is_held_out and kept and len(result.samples) < SAMPLES:
                result.samples[digest(text, kept[0][0])] = {**self._sample(text, kept[0][1]), "source": place}
        result.table = pieces.table()
        return result

    def _examples(
        self, row: NumberedRow, source: int, found: Counter[tuple[int, str]]
    ) -> Iterator[MarkedText | RowError]:
        row_format = self._formats[source]
        try:
            values = decode(row.raw)
            found.update((source, key) for key in unread.keys_of(values, row_format))
            for reason in self._forbidden.reasons(all_values(values, row_format.all_columns)):
                raise RowError(reason)
            for example in row_format.read(values):
                yield self._ready(example, row_format)
        except RowError as error:
            yield error

    def _ready(self, example: Example | RowError, row_format: Format) -> MarkedText | RowError:
        if isinstance(example, Conversation):
            return self._rendered(example)
        if isinstance(example, MarkedText):
            found = self._forbidden.spelled_out(example.text)
            # Adjacent columns can together spell out what neither does alone; a template may intend that.
            if len(found) > len(self._forbidden.spelled_out(row_format.literal)):
                raise RowError(f"its columns together spell out the special token {found[0]!r}")
        return example

    def _rendered(self, conversation: Conversation) -> MarkedText:
        # Calls and tools may come as JSON text, whose escapes have hidden special tokens until now.
        parsed = {"tool_calls": [m.get("tool_calls") for m in conversation.messages], "tools": conversation.tools}
        for reason in self._forbidden.reasons(all_values(parsed, parsed)):
            raise RowError(reason)
        tokenizer = self._tokenization.tokenizer
        self._conversations += 1
        try:
            return rendering.render(conversation, tokenizer, self._closings)
        except rendering.OverrunError as error:
            self._overruns += 1
            # Each of them takes seconds: if most rows are like that, the template is at fault.
            if self._overruns >= OVERRUNS and 2 * self._overruns > self._conversations:
                rows = f"for {self._overruns} of the first {self._conversations} conversations"
                raise never_ends(tokenizer, f"{rows}, {error}") from error
            raise

    def _cut(
        self, text: MarkedText, row: TokenRow, held_out: bool, counts: Counter[tuple[bool, str]]
    ) -> list[tuple[int, TokenRow]]:
        """The pieces of a row that carry loss, each with its number."""
        policy = self._config.long_rows
        if text.is_document:
            policy = "split"
            if row.trained_tokens and (held_out or not self._config.packing):
                return [(0, row)]  # documents are joined before they are cut
        pieces = fit(row, self._config.max_length, policy)
        if text.label is not None and pieces not in ([row], []):
            pieces = [labelled.truncated(row, self._config.max_length, self._tokenization.closing)]
        useful = [(number, piece) for number, piece in enumerate(pieces) if piece.trained_tokens]
        if len(row.input_ids) > self._config.max_length:
            counts[held_out, "too_long"] += 1
            done = {"truncate": "truncated", "drop": "dropped", "split": "split"}[policy]
            counts[held_out, done if useful else "dropped"] += 1
            counts[held_out, "pieces_without_answer"] += len(pieces) - len(useful) if useful else 0
        elif not useful:
            counts[held_out, "dropped"] += 1
        return useful

    def _sample(self, text: MarkedText, row: TokenRow) -> dict[str, Any]:
        """A question for the model to answer before and after training: a row cut where its last answer starts."""
        if text.label is not None:
            return {"input_ids": row.input_ids, "question": text.question, "reference": self._labels[text.label]}
        tokens = row.input_ids[: self._config.max_length]
        # If all of a row except BOS is trained on, there is no question: let the model continue from the middle.
        start, end = len(tokens) // 2, len(tokens)
        if row.answers and row.answers[-1][0] > 1:
            start, end = row.answers[-1]
        answer = before_stop(tokens[start:end], self._stops)
        reference = self._tokenization.tokenizer.decode(answer, skip_special_tokens=True)
        return {"input_ids": tokens[:start], "question": text.question, "reference": reference}


def formats(config: DataConfig, labels: Sequence[str] = ()) -> list[Format]:
    """The format of each source, over its own column names.

    Args:
        config: The data section of a run.
        labels: Names of the classes, for labelled rows; without any, their labels are not looked at.
    """
    for section, source in zip(config.source_fields, config.all_sources, strict=True):
        if source.format is None:
            remedy = f"Say what the columns of {source.source} mean."
            raise DataError.single(f"{section}.format", "", "is missing.", remedy, code="config-invalid")
    return [
        format_of(
            s.format or "", columns=s.columns, template=s.template, trained_fields=s.trained_fields, labels=labels
        )
        for s in config.all_sources
    ]


class _Pieces:
    """Columns of the table, filled piece by piece."""

    def __init__(self) -> None:
        self._ids: list[int] = []
        self._labels: list[int] = []
        self._ends: list[int] = [0]
        self._rest: list[tuple[bytes, bool, bool, bool]] = []

    def add(self, row: TokenRow, key: bytes, held_out: bool, is_document: bool, opens: bool) -> None:
        self._ids += row.input_ids
        self._labels += row.labels
        self._ends.append(len(self._ids))
        self._rest.append((key, held_out, is_document, opens))

    def table(self) -> "pa.RecordBatch":
        import numpy as np
        import pyarrow as pa

        ends = pa.array(self._ends, pa.int32())
        lists = [
            pa.ListArray.from_arrays(ends, pa.array(np.array(values, dtype=np.int32)))
            for values in (self._ids, self._labels)
        ]
        columns: Sequence[tuple[Any, ...]] = list(zip(*self._rest, strict=True)) or [(), (), (), ()]
        rest = [pa.array(column, kind.type) for column, kind in zip(columns, list(schema())[2:], strict=True)]
        return pa.RecordBatch.from_arrays([*lists, *rest], schema=schema())
