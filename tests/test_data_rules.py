"""What the data section must say together: every rule with its field and remedy, beside what else is wrong."""

import pytest

from thriftune.config import DataSource, RunConfig
from thriftune.data.formats import FORMATS
from thriftune.errors import ConfigError

TWO = ({"source": "a.jsonl", "format": "chat"}, {"source": "b.jsonl", "format": "text"})


@pytest.fixture
def problems_of(run_file):
    """The problems of a run with this data section, by field; none is reported twice."""

    def problems(data, **sections):
        content = {**run_file(**sections), "data": data}
        with pytest.raises(ConfigError) as caught:
            RunConfig.model_validate(content)
        fields = [problem.field for problem in caught.value.problems]
        assert len(fields) == len(set(fields)), "a field is reported twice"
        return {problem.field: str(problem) for problem in caught.value.problems}

    return problems


@pytest.fixture
def data_of(run_file):
    """The data section of a valid run."""
    return lambda data: RunConfig.model_validate({**run_file(), "data": data}).data


def single(**keys):
    return {"source": "rows.jsonl", "format": "text", **keys}


def several(first=None, second=None, **keys):
    return {"sources": [TWO[0] | (first or {}), TWO[1] | (second or {})], **keys}


def replayed(**keys):
    return {"source": "general.jsonl", "format": "chat", "share": 0.2, **keys}


def template(**keys):
    return single(format="template", **{"template": "Q: {question} A: {answer}", **keys})


@pytest.mark.parametrize(
    ("data", "field", "texts"),
    [
        (single(source=""), "data.source", ["is missing. Add it: Hub dataset id"]),
        ({"format": "text"}, "data.source", ["is missing. Add it: Hub dataset id"]),
        ({"source": "a.jsonl"}, "data.format", ["is missing. Add it: What the columns mean."]),
        ({"source": "a.jsonl", "template": "{a}"}, "data.format", ["is missing."]),
        (several({"format": None}), "data.sources.0.format", ["is missing. Add it: What the columns mean."]),
        (several(second={"source": ""}), "data.sources.1.source", ["is missing. Add it: Hub dataset id"]),
        (several(source="c.jsonl"), "data.source", ["c.jsonl", "is given next to data.sources", "remove data.sources"]),
        (several(split="test"), "data.split", ["test", "is given next to data.sources", "into the entries"]),
        (several(columns={"text": "body"}), "data.columns", ["body", "is given next to data.sources"]),
        (several({"weight": 2}), "data.sources.1.weight", ["is missing", "Give every source a weight, or none."]),
        (several(second={"weight": 2}), "data.sources.0.weight", ["is missing"]),
        (
            single(columns={"body": "text"}),
            "data.columns.body",
            ["not a column of format text", "Its columns are text"],
        ),
        (
            several({"columns": {"tolls": "x"}}),
            "data.sources.0.columns.tolls",
            ["= x", "not a column of format chat", "messages, tools"],
        ),
        (single(template="{a}"), "data.template", ["{a}", "but the format is text", "format: template"]),
        (single(trained_fields=["a"]), "data.trained_fields", ["but the format is text", "Remove it"]),
        (several(second={"template": "{a}"}), "data.sources.1.template", ["but the format is text"]),
        (template(template=None), "data.template", ["is missing", "Question: {question}"]),
        (template(template="no field"), "data.template", ["no field", "it names no column", "{name}"]),
        (template(template="{a"), "data.template", ["{a", "a literal brace as {{ or }}"]),
        (template(template="{a} }"), "data.template", ["a literal brace as {{ or }}"]),
        (template(template="{}"), "data.template", ["the field {} is not a column name"]),
        (template(template="{a!r}"), "data.template", ["is not a column name"]),
        (template(template="{a:>9}"), "data.template", ["is not a column name"]),
        (template(template="{a.b}"), "data.template", ["the field {a.b} is not a column name"]),
        (single(replay=replayed(share=0)), "data.replay.share", ["greater than 0"]),
        (single(replay=replayed(share=1)), "data.replay.share", ["less than 1"]),
        (single(replay={"source": "b.jsonl", "format": "chat"}), "data.replay.share", ["is missing"]),
        (single(replay=replayed(source="")), "data.replay.source", ["is missing"]),
        (single(replay=replayed(format=None)), "data.replay.format", ["is missing"]),
        (single(replay=replayed(template="{a}")), "data.replay.template", ["but the format is chat"]),
        (single(replay=replayed(weight=1)), "data.replay.weight", ["weight"]),
        (
            single(replay=replayed(source="rows.jsonl")),
            "data.replay.source",
            ["rows.jsonl", "is also data.source", "remove data.replay"],
        ),
        (several(replay=replayed(source="b.jsonl")), "data.replay.source", ["is also data.sources.1.source"]),
        (single(replay=replayed(format="labelled")), "data.replay.format", ["labelled", "task causal_lm does not use"]),
        (template(trained_fields=["reply"]), "data.trained_fields", ["reply", "Its fields are question, answer."]),
        (template(columns={"reply": "r"}), "data.columns.reply", ["= r", "Its fields are question, answer."]),
    ],
)
def test_what_does_not_fit_together_is_refused_with_field_and_remedy(problems_of, data, field, texts):
    problems = problems_of(data)
    assert list(problems) == [field]
    for text in texts:
        assert text in problems[field]


@pytest.mark.parametrize(
    "data",
    [
        several(),
        several({"weight": 2}, {"weight": 0.5}),
        several({"columns": {"messages": "turns", "tools": "functions"}}, {"columns": {"text": "body"}}),
        several({"format": "template", "template": "{a}{b c}", "trained_fields": ["a"], "columns": {"b c": "d"}}),
        several(packing=True, max_rows=9),
        several(split="train", columns={}),  # said as it is anyway
        single(replay=replayed()),
        single(source="owner/rows", replay=replayed(source="owner/rows", split="other")),
        several({"weight": 2}, {"weight": 1}, replay=replayed()),
        template(),
        template(template="{{literal}} {a-b} {a-b}", trained_fields=["a-b"]),
        {"source": "input:table", "format": "quotes"},
        single(packing=True),
        *(
            single(format=name, columns={c: f"my {c}" for c in row_format.all_columns})
            for name, row_format in FORMATS.items()
            if not row_format.is_labelled  # which another task has
        ),
    ],
)
def test_what_fits_together_is_taken(data_of, data):
    made = data_of(data)
    assert len(made.task_sources) == len(data.get("sources", [data]))
    assert len(made.all_sources) == len(made.source_fields) == len(made.task_sources) + ("replay" in data)


def test_a_single_source_and_an_entry_of_several_say_the_same(data_of):
    keys = {"source": "owner/a", "format": "chat", "columns": {"messages": "turns"}, "revision": "v1"}
    (alone,) = data_of(keys).all_sources
    (entry,) = data_of({"sources": [keys]}).all_sources
    assert alone.model_dump() == {name: getattr(entry, name) for name in DataSource.model_fields}


@pytest.mark.parametrize(("first", "wanted"), [("quotes", "quotes"), ("template", "template")])
def test_questions_are_put_in_the_format_of_the_first_source(data_of, first, wanted):
    source = {"source": "a.jsonl", "format": first, **({"template": "{a}"} if first == "template" else {})}
    assert data_of({"sources": [source, TWO[1]]}).prompt_format == wanted


def test_packing_and_grouping_by_length_exclude_each_other(problems_of):
    problems = problems_of(single(packing=True), training={"group_by_length": True})
    assert list(problems) == ["training.group_by_length"]
    assert "Use data.packing or training.group_by_length, not both." in problems["training.group_by_length"]


def test_everything_that_is_wrong_with_several_sources_is_reported_at_once(problems_of):
    data = several({"weight": 1, "columns": {"x": "y"}}, {"format": "template", "trained_fields": ["a"]}, split="test")
    assert set(problems_of(data, training={"global_batch": 5})) == {
        "data.split", "data.sources.1.weight", "data.sources.0.columns.x", "data.sources.1.template",
        "training.global_batch",
    }  # fmt: skip


def test_a_missing_source_and_format_are_reported_beside_what_is_wrong_elsewhere(problems_of):
    """They have to be looked for by a rule, which runs only when pydantic takes the rest of the file."""
    problems = problems_of({"max_length": "long"}, name="No Good", training={"global_batch": 7, "micro_batch": 2})
    assert set(problems) == {"name", "data.max_length", "data.source", "data.format", "training.global_batch"}
    assert set(problems_of({}, evaluation={"batch": 0})) == {"evaluation.batch", "data.source", "data.format"}


def test_a_misspelt_key_is_reported_once_and_not_also_as_missing(problems_of):
    problems = problems_of({"sorce": "rows.jsonl", "fromat": "text"})
    assert set(problems) == {"data.sorce", "data.fromat"}
    assert "Did you mean 'source'?" in problems["data.sorce"]


@pytest.mark.parametrize(
    ("data", "field", "texts"),
    [
        ({"sources": [{"sorce": "a.jsonl", "format": "chat"}]}, "data.sources.0.sorce", ["Did you mean 'source'?"]),
        (several(second={"weight": 0}), "data.sources.1.weight", ["= 0", "greater than 0", "Share of the mixed rows"]),
        (several({"format": "csv"}), "data.sources.0.format", ["'csv'", "'alpaca'"]),
        ({"sources": ["a.jsonl"]}, "data.sources.0", ["'a.jsonl'", "is no mapping of keys"]),
        ({"sources": {"source": "a.jsonl"}}, "data.sources", ["a.jsonl", "a list of {source, format"]),
        ({"sources": 3}, "data.sources", ["3", "a list of {source, format"]),
    ],
)
def test_a_wrong_entry_of_several_is_named_and_brings_no_problem_nobody_has(problems_of, data, field, texts):
    """It was named without its key; and with the list gone, source and format of data were reported as missing."""
    problems = problems_of(data, training={"global_batch": 5})
    assert set(problems) == {field, "training.global_batch"}
    for text in texts:
        assert text in problems[field]


def test_what_is_wrong_in_two_entries_is_reported_in_both(problems_of):
    data = several({"weight": -1, "formt": "chat"}, {"sample_by": "word"})
    assert set(problems_of(data)) == {
        "data.sources.0.weight", "data.sources.0.formt", "data.sources.1.sample_by",
    }  # fmt: skip


def test_a_classifier_replays_nothing(problems_of):
    labels = {"task": "classification", "classification": {"labels": ["a", "b"]}}
    problems = problems_of(single(format="labelled", replay=replayed()), **labels)
    assert list(problems) == ["data.replay"]
    assert "a classifier learns no token" in problems["data.replay"]
