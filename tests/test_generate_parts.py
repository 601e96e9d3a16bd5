"""A large file of prompts: split, answered part by part in order, resumed by part, and joined in bounded memory."""

import json
import tracemalloc

import pytest
from test_workflows import only, pyflyte_run

from thriftune.errors import ConfigError, DataError, ModelSourceError
from thriftune.inference import parts
from thriftune.inference.answers import Answer, in_rows, read_answers, write_answers
from thriftune.inference.asking import BASE
from thriftune.inference.parts import MOST_PARTS, answers_file, answers_in, key_parts, split
from thriftune.inference.prompts import Prompt, iterate_prompts
from thriftune.models.answering import Sampling

VERSIONS = {BASE: "b", "one": "1", "two": "2"}


def asked_in(found: list[parts.Part]) -> list[tuple[str, str]]:
    return [(prompt.text, prompt.adapter) for part in found for prompt in iterate_prompts(part.file)]


def test_parts_hold_every_question_in_order(tmp_path):
    prompts = [Prompt("a"), Prompt("b\nc", "two"), Prompt("d", BASE), Prompt("ü\u2028x")]
    found = split(prompts, ["one", "two"], 4, tmp_path)
    assert [part.questions for part in found] == [4, 2]
    assert asked_in(found) == [
        ("a", "one"), ("a", "two"), ("b\nc", "two"), ("d", BASE), ("ü\u2028x", "one"), ("ü\u2028x", "two"),
    ]  # fmt: skip
    assert [part.adapters for part in found] == [(BASE, "one", "two"), ("one", "two")]
    assert asked_in(split([Prompt("a")], [], 4, tmp_path)) == [("a", BASE)]


def test_what_a_part_is_known_by_is_what_its_answers_depend_on(tmp_path):
    def keys(names: list[str], sampling: Sampling, versions: dict[str, str] = VERSIONS, held: str = "T4") -> list[str]:
        found = split([Prompt("a", name) for name in names], ["one", "two"], 1, tmp_path)
        return ["".join(key_parts(part, versions, sampling, held)) for part in found]

    usual = keys(["one", "two"], Sampling(8))
    assert len(set(usual)) == 2
    assert keys(["one", "two", "one"], Sampling(8, seed=7)) == [*usual, usual[0]], "a seed changes no greedy answer"
    assert keys(["one", "two"], Sampling(8), {**VERSIONS, "two": "3"})[0] == usual[0]
    assert keys(["one", "two"], Sampling(8), {**VERSIONS, "two": "3"})[1] != usual[1]
    assert not {*usual} & {*keys(["one", "two"], Sampling(8), {**VERSIONS, BASE: "c"})}
    assert not {*usual} & {*keys(["one", "two"], Sampling(9))} | {*keys(["one", "two"], Sampling(8), held="CPU")} & {
        *usual
    }
    drawn = [keys(["one"], Sampling(8, 0.5, seed)) for seed in (1, 2)]
    assert drawn[0] != drawn[1]


def test_rows_that_make_no_parts_or_too_many_are_refused_with_a_number_that_works(tmp_path):
    with pytest.raises(ConfigError, match="rows_per_part = 0: is less than one question. Use at least 1."):
        split([Prompt("a")], [], 0, tmp_path)
    many = [Prompt("a")] * (2 * MOST_PARTS + 1)
    with pytest.raises(ConfigError, match=r"rows_per_part = 1: makes more than 1,000 parts of 2,001 .* at least 3\."):
        split(many, [], 1, tmp_path)
    assert len(split(many, [], 3, tmp_path)) <= MOST_PARTS


def test_an_adapter_that_there_is_not_is_refused_with_its_line(tmp_path):
    file = tmp_path / "p.jsonl"
    file.write_text('{"prompt": "a", "adapter": "one"}\n\n{"prompt": "b", "adapter": "three"}\n')
    message = r"p.jsonl, line 3 = three: names an adapter that there is not. The names are one, two, base."
    with pytest.raises(DataError, match=message):
        split(iterate_prompts(file), ["one", "two"], 1, tmp_path)


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_file_is_split_and_joined_without_holding_it(tmp_path, kind):
    """A file of 40 MB: splitting and joining hold a thousand rows at most."""
    rows = 20_000
    text = "x" * 2000
    for folder in ("parts", "0", "1"):
        (tmp_path / folder).mkdir()
    for half in ("0", "1"):
        write_answers((Answer(f"{half} {n}", "one", text) for n in range(rows // 2)), answers_file(tmp_path / half))
    write_answers([Answer("a", "one", "1")], tmp_path / f"first.{kind}")  # which imports what it needs
    tracemalloc.start()
    try:
        found = split((Prompt(f"{n} {text}") for n in range(rows)), [], 5000, tmp_path / "parts")
        answers = answers_in([tmp_path / "0", tmp_path / "1"])
        assert write_answers(answers, tmp_path / f"all.{kind}") == rows
        shown, _, count = in_rows(answers_in([tmp_path / "0", tmp_path / "1"]), 100)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (len(found), len(shown), count) == (4, 100, rows)
    assert peak < 12e6


def test_answers_to_prompts_that_name_who_answers_have_a_row_for_each_prompt():
    answers = [Answer("a", "one", "1"), Answer("a", "two", "2"), Answer("b", "two", "3"), Answer("b", "two", "4")]
    prompts, texts, count = in_rows(answers, 9)
    assert (prompts, texts, count) == (["a", "b", "b"], {"one": ["1", None, None], "two": ["2", "3", "4"]}, 3)


@pytest.fixture
def split_task(tmp_path, monkeypatch, tiny_model_dir):
    """The task that splits a file, in this process, with results and temporary files in folders of the test."""
    import tempfile

    from flytekit.types.directory import FlyteDirectory
    from flytekit.types.file import FlyteFile

    from tasks.generate_parts import SplitPrompts, split_prompts

    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("THRIFTUNE_OUTPUTS", str(tmp_path / "outputs"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))

    def run(text: str, model: str = str(tiny_model_dir), adapters: tuple[str, ...] = ()) -> SplitPrompts:
        (tmp_path / "p.jsonl").write_text(text)
        usual = {"quantize": False, "max_new_tokens": 4, "temperature": 0.0, "seed": 0, "batch": 1}
        return split_prompts.task_function(
            FlyteFile(str(tmp_path / "p.jsonl")), FlyteDirectory(model), [FlyteDirectory(one) for one in adapters], [],
            **usual, rows_per_part=1, parallel=1, output_format="jsonl",
        )  # fmt: skip

    return run


def test_parts_of_a_local_run_lie_beside_its_answers(split_task, tmp_path):
    """Each run left the whole file in the folder for temporary files; one that is refused leaves nothing."""
    found = split_task('{"prompt": "a"}\n{"prompt": "b"}\n')
    places = sorted((tmp_path / "outputs" / "generate").glob("*/parts/part-*.jsonl"))
    assert [str(place) for place in places] == [part.path for part in found.parts]
    for place in places:
        place.unlink()
    with pytest.raises(DataError, match=r"p\.jsonl, line 2"):
        split_task('{"prompt": "a"}\n{}\n')
    assert not list((tmp_path / "outputs").rglob("part-*"))
    assert not list((tmp_path / "temporary").iterdir())


def test_an_adapter_that_is_not_in_its_store_is_named_as_one(split_task):
    """The message said model_dir."""
    with pytest.raises(ModelSourceError, match="adapters adapter-1 = memory://nowhere/adapter: "):
        split_task('{"prompt": "a"}\n', adapters=("memory://nowhere/adapter",))


@pytest.mark.slow
def test_a_run_that_was_cut_off_goes_on_with_the_next_part(tmp_path, tiny_model_dir, random_adapter):
    """The real workflow: a second run answers what is missing or damaged, and gives what one call gives."""
    file = tmp_path / "many.jsonl"
    rows = [{"prompt": f"Day {n}?", "adapter": ("one", "two", None, BASE)[n % 4]} for n in range(6)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    usual = [
        "--model_dir", str(tiny_model_dir), "--prompts_file", str(file), "--max_new_tokens", "6",
        "--adapters", json.dumps([str(random_adapter(1)), str(random_adapter(2))]), "--adapter_names", '["one", "two"]',
    ]  # fmt: skip
    in_parts = ["workflows/generate.py", "generate_in_parts", *usual, "--rows_per_part", "3"]
    first = pyflyte_run(tmp_path, *in_parts)
    made = sorted((tmp_path / "outputs" / "cache").glob("answers-*"))
    assert len(made) == 3
    assert "7 questions in 3 parts" in first.stderr
    whole = list(read_answers(only(tmp_path, "outputs/generate/*/answers.jsonl")))
    expected = [("Day 0?", "one"), ("Day 1?", "two"), ("Day 2?", "one"), ("Day 2?", "two"), ("Day 3?", BASE)]
    assert [(one.prompt, one.adapter) for one in whole][:5] == expected
    with answers_file(made[0]).open("a") as damaged:
        damaged.write("x")
    untouched = answers_file(made[1]).stat().st_mtime_ns
    again = pyflyte_run(tmp_path, *in_parts)
    assert again.stderr.count("is answered already") == 2
    assert answers_file(made[1]).stat().st_mtime_ns == untouched
    second = max((tmp_path / "outputs" / "generate").glob("*/answers.jsonl"), key=lambda p: p.stat().st_mtime_ns)
    assert list(read_answers(second)) == whole
    pyflyte_run(tmp_path / "single", "workflows/generate.py", "generate", *usual)
    assert list(read_answers(only(tmp_path / "single", "outputs/generate/*/answers.jsonl"))) == whole
