"""The report: real numbers, a real Parquet file and a real tokenizer; the page is read as a browser would."""

import json
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from thriftune.data import report
from thriftune.data.arrangement import Rows, RowWriter
from thriftune.data.prepared import TRAIN
from thriftune.data.report import Segment
from thriftune.data.statistics import Bin, DataStats, SourceStats, SplitStats, stats_from_json
from thriftune.data.summary import summary
from thriftune.data.tokenization import IGNORED

HOSTILE = "</div><script>alert('row')</script><img src=https://example.com/x.png>"
NOTHING = SplitStats(
    rows=0, rejected=0, rejected_parts=0,
    too_long=0, truncated=0, split=0, pieces_without_answer=0, dropped=0, duplicates=0, leaked=0, examples=0,
    token_rows=0, tokens=0, trained_tokens=0, lengths=(Bin(1, 2, 0),), row_lengths=(Bin(1, 2, 0),),
    padding_to_longest=0.0,
    padding=0.0,
)  # fmt: skip
TRAINED = SplitStats(
    rows=12345, rejected=67, rejected_parts=0,
    too_long=890, truncated=123, split=700, pieces_without_answer=0, dropped=178, duplicates=234, leaked=5,
    examples=11861, token_rows=3456, tokens=3401234, trained_tokens=1234567,
    lengths=tuple(Bin(low, low + 63, 500 - low // 4) for low in range(1, 1024, 64)),
    row_lengths=(*(Bin(low, low + 63, 0) for low in range(1, 960, 64)), Bin(961, 1024, 3456)),
    padding_to_longest=0.5, padding=0.2,
)  # fmt: skip
STATS = DataStats(
    sources=(SourceStats("support-chats", "chat", 13000, 12000), SourceStats("manuals", "text", 1000, 995)),
    train=TRAINED,
    validation=replace(TRAINED, rows=650, leaked=0, padding=0.5),
    reasons={"has no answer": 7, "is not JSON": 60},
    packing=True,
    max_length=1024,
)


class Page(HTMLParser):
    """What a browser makes of a page: its elements, its visible text, and the text in <mark> of the rows."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.text, self.marked, self.unmarked = [], "", "", ""
        self._open = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag != "meta":
            self._open.append((tag, dict(attributes).get("class", "")))

    def handle_endtag(self, tag):
        assert self._open.pop()[0] == tag

    def handle_data(self, data):
        if self._open and self._open[-1][0] == "style":
            return
        self.text += data
        if ("div", "text") in self._open:
            if self._open[-1][0] == "mark":
                self.marked += data
            else:
                self.unmarked += data

    def count(self, tag):
        return sum(element == tag for element, _ in self.elements)


def tokens(tokenizer, *parts):
    """Ids and labels of (text, is trained) parts."""
    ids, labels = [], []
    for text, is_trained in parts:
        part = tokenizer.encode(text, add_special_tokens=False)
        ids += part
        labels += part if is_trained else [IGNORED] * len(part)
    return ids, labels


def write_rows(file, groups, *, positions=False):
    """Write row groups; each row is a list of examples of (ids, labels)."""
    with RowWriter(file, has_positions=positions) as writer:
        for rows in groups:
            flat = [example for row in rows for example in row]
            lengths = [sum(len(ids) for ids, _ in row) for row in rows]
            restarts = np.concatenate([np.arange(len(ids)) for ids, _ in flat]).astype(np.int32)
            writer.write(
                Rows(
                    np.concatenate([np.array(ids, np.int32) for ids, _ in flat]),
                    np.concatenate([np.array(labels, np.int32) for _, labels in flat]),
                    np.cumsum([0, *lengths]),
                    restarts if positions else None,
                )
            )


def written(directory, tokenizer, *rows, stats=STATS):
    """The page of a dataset with these rows."""
    directory.mkdir(exist_ok=True)
    write_rows(directory / TRAIN, [rows], positions=stats.packing)
    report.write(stats, directory, tokenizer)
    return Page((directory / report.HTML).read_text(encoding="utf-8"))


def test_markup_in_rows_and_names_is_text(tmp_path, llama_tokenizer):
    stats = replace(STATS, sources=(SourceStats(HOSTILE, "chat", 1, 1),), reasons={HOSTILE: 1})
    row = tokens(llama_tokenizer, (HOSTILE, False), (HOSTILE, True))
    page = written(tmp_path, llama_tokenizer, [row], stats=stats)
    assert page.text.count(HOSTILE) == 4
    assert page.count("script") == page.count("img") == 0


def test_page_loads_nothing(tmp_path, llama_tokenizer):
    page = written(tmp_path, llama_tokenizer, [tokens(llama_tokenizer, (HOSTILE, True))])
    loading = {"src", "href", "srcset", "data", "action", "poster", "background", "xlink:href"}
    assert page.elements
    assert not [(tag, found) for tag, attributes in page.elements if (found := loading & set(attributes))]
    assert not {tag for tag, _ in page.elements} & {"link", "script", "iframe", "object", "embed", "base", "form"}
    style = (tmp_path / report.HTML).read_text(encoding="utf-8").partition("<style>")[2].partition("</style>")[0]
    assert style
    assert "url(" not in style
    assert "@import" not in style


def test_exactly_the_trained_text_is_marked(tmp_path, llama_tokenizer):
    row = tokens(
        llama_tokenizer, ("<s>[INST] What is 2 < 3? [/INST]", False), (" It is true.</s>", True),
        ("[INST] And é 😀? [/INST]", False), (" Çela & 😀 va.</s>", True),
    )  # fmt: skip
    page = written(tmp_path, llama_tokenizer, [row])
    assert page.marked == " It is true.</s> Çela & 😀 va.</s>"
    assert page.unmarked == "<s>[INST] What is 2 < 3? [/INST][INST] And é 😀? [/INST]"


def test_a_trained_newline_can_be_seen(tmp_path, llama_tokenizer):
    page = written(tmp_path, llama_tokenizer, [tokens(llama_tokenizer, ("Yes</s>", False), ("\n", True))])
    assert page.marked == "↵\n"


def test_examples_of_a_packed_row_are_kept_apart(tmp_path, llama_tokenizer):
    examples = [tokens(llama_tokenizer, (f"<s>Question {i}", False), (f" answer {i}</s>", True)) for i in range(3)]
    page = written(tmp_path, llama_tokenizer, examples)
    assert page.marked == " answer 0</s> answer 1</s> answer 2</s>"
    assert [f"example {i} of 3" in page.text for i in (1, 2, 3)] == [False, True, True]
    assert sum(attributes.get("class") == "text" for _, attributes in page.elements) == 3


def test_same_rows_give_the_same_bytes(tmp_path, llama_tokenizer):
    row = tokens(llama_tokenizer, ("What is", False), (" this?", True))
    for name in ("one", "two"):
        written(tmp_path / name, llama_tokenizer, [row])
    for file in (report.HTML, report.JSON):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_json_gives_the_numbers_back(tmp_path, llama_tokenizer):
    written(tmp_path, llama_tokenizer, [tokens(llama_tokenizer, ("a", True))])
    assert stats_from_json(json.loads((tmp_path / report.JSON).read_text(encoding="utf-8"))) == STATS


def test_histogram_before_and_after_only_when_packed(tmp_path, llama_tokenizer):
    row = tokens(llama_tokenizer, ("What", False), (" this", True))
    packed = written(tmp_path / "packed", llama_tokenizer, [row])
    plain = written(tmp_path / "plain", llama_tokenizer, [row], stats=replace(STATS, packing=False))
    assert (packed.count("svg"), plain.count("svg")) == (2, 1)
    assert "961 to 1,024 tokens: 3,456 rows" in packed.text
    assert "Nothing is packed" in plain.text
    assert "Nothing is packed" not in packed.text


def test_page_names_the_numbers(tmp_path, llama_tokenizer):
    text = written(tmp_path, llama_tokenizer, [tokens(llama_tokenizer, ("a", True))]).text
    expected = ["12,345", "11,861", "3,456", "1,234,567", "36.3%", "2,166,667", "75.0%", "234", "1.9%", "60", "89.6%"]
    assert [number for number in expected if number not in text] == []


def test_nothing_of_nothing_is_zero():
    stats = DataStats((), NOTHING, NOTHING, {}, packing=True, max_length=2)
    page = Page(report.render(stats, []))
    assert "No row was rejected." in page.text
    assert "There are no rows." in page.text
    assert "nan" not in summary(stats)


def test_summary_is_one_screen_and_names_the_numbers(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich would put escapes into the log
    stats = replace(
        STATS,
        train=replace(TRAINED, tokens=123_456_789_012, trained_tokens=61_728_394_506),
        sources=tuple(SourceStats(f"{'long-name-' * 20}{i}", "chat", 1000, 900) for i in range(9)),
        reasons={f"{'reason [bold] ' * 20}{i}": 10 + i for i in range(9)},
    )
    lines = summary(stats).splitlines()
    assert len(lines) <= 26
    assert max(map(len, lines)) <= 110
    text = "\n".join(lines)
    assert "\x1b" not in text
    for number in ("12,345", "67", "0.5%", "700", "123,456,789,012", "61,728,394,506", "50.0%", "75.0%"):
        assert number in text
    assert "7 more sources: 6,300 of 7,000 rows used" in text
    assert "rejected 18: reason [bold]" in text


@given(st.lists(st.tuples(st.text("aé😀 \n<&", min_size=1), st.booleans()), min_size=1))
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_segments_together_are_the_text(llama_tokenizer, parts):
    ids, labels = tokens(llama_tokenizer, *parts)
    found = list(report.segments(ids, labels, set(), llama_tokenizer.decode))
    assert "".join(segment.text for segment in found) == "".join(text for text, _ in parts)
    for is_trained in (True, False):
        expected = "".join(text for text, trained in parts if trained == is_trained)
        assert "".join(segment.text for segment in found if segment.trained == is_trained) == expected


def test_spaces_between_segments_survive_a_tokenizer_that_strips_them():
    """Llama 2's tokenizer drops the space that a text starts with: each segment decoded alone lost one."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"▁what": 0, "▁is": 1, "▁this": 2}, unk_token="▁what"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    found = list(report.segments([0, 1, 2], [IGNORED, 1, IGNORED], set(), tokenizer.decode))
    assert [segment.text for segment in found] == ["what", " is", " this"]


def test_a_character_over_the_border_is_not_lost(llama_tokenizer):
    """A row that was split in the middle of an emoji: its first token is masked, the rest of the bytes are not."""
    ids = llama_tokenizer.encode("😀 fine", add_special_tokens=False)
    first, rest = report.segments(ids, [IGNORED, *ids[1:]], set(), llama_tokenizer.decode)
    assert (first.trained, rest.trained) == (False, True)
    assert "\N{REPLACEMENT CHARACTER}" in first.text
    assert "\N{REPLACEMENT CHARACTER}" in rest.text
    assert rest.text.endswith(" fine")


def test_long_text_loses_its_middle_and_the_rest_is_counted():
    examples = [[Segment("p" * 1000, False), Segment("a" * 30, True)], [Segment("q" * 200, False)]]
    shown, left_out = report.shortened(examples, limit=200, longest=100)
    assert shown == [
        [Segment("p" * 50, False), Segment("", False, left_out=900), Segment("p" * 50, False), Segment("a" * 30, True)],
        [Segment("q" * 50, False), Segment("", False, left_out=100), Segment("q" * 20, False)],
    ]
    assert left_out == 30


def test_samples_come_from_all_over_and_say_what_is_not_shown(tmp_path, llama_tokenizer):
    rows = [[tokens(llama_tokenizer, (f"row {i}", False), (" word" * 2000, True))] * 4 for i in range(1, 61)]
    write_rows(tmp_path / TRAIN, [rows], positions=True)
    samples = report.read_samples(tmp_path / TRAIN, llama_tokenizer)
    assert [sample.number for sample in samples] == [6, 16, 26, 36, 46, 56]
    assert all(sample.shown[0][0].text == f"row {sample.number}" for sample in samples)
    assert all(sum(len(part.text) for example in sample.shown for part in example) <= 1500 for sample in samples)
    page = Page(report.render(STATS, samples))
    assert "1 of the 4 examples, are not shown." in page.text


def test_reads_as_few_row_groups_as_it_takes(tmp_path, llama_tokenizer):
    row = [tokens(llama_tokenizer, ("What", False), (" this", True))]
    file = tmp_path / TRAIN
    write_rows(file, [[row] * 4] * 12)
    broken = pq.ParquetFile(file).metadata.row_group(2).column(0)
    with file.open("r+b") as stream:
        stream.seek(broken.dictionary_page_offset)
        stream.write(b"\xff" * broken.total_compressed_size)
    assert [sample.number for sample in report.read_samples(file, llama_tokenizer)] == [5, 13, 21, 29, 37, 45]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0.0%"), (1e-9, "<0.1%"), (0.0005, "0.1%"), (0.3333, "33.3%"), (0.99951, ">99.9%"), (1.0, "100.0%")],
)
def test_percent_rounds_to_neither_none_nor_all(value, text):
    assert report.percent(value) == text
