"""Prompts out of files: of every kind that training data may have, and nothing but texts."""

import gzip
import json
from pathlib import Path

import pytest

from thriftune.config.formats import ENDINGS
from thriftune.errors import DataError
from thriftune.inference.prompts import Prompt, iterate_prompts, read_prompts

LINE_SEPARATOR, BOM = "\u2028", "\ufeff"
PROMPTS = [f"One{LINE_SEPARATOR}and a half?", "Où,\there?", "None"]


def content_of(ending: str) -> bytes:
    """A file with PROMPTS, opened by a byte order mark."""
    if ending == ".txt":
        text = "\n\n".join(PROMPTS) + "\n"
    elif ending == ".json":
        text = json.dumps([{"prompt": prompt, "id": 1} for prompt in PROMPTS], ensure_ascii=False)
    elif ending == ".jsonl":
        text = "".join(json.dumps({"prompt": prompt}, ensure_ascii=False) + "\r\n\n" for prompt in PROMPTS)
    else:
        separator = "," if ending == ".csv" else "\t"
        text = f"id{separator}prompt\n" + "".join(f'1{separator}"{prompt}"\n' for prompt in PROMPTS)
    return (BOM + text).encode()


def write(file: Path) -> Path:
    """Write PROMPTS as the ending of the file says."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kind, compression = f".{file.name.lower().split('.')[1]}", file.suffix.lower()
    if kind == ".parquet":
        pq.write_table(pa.table({"id": [1, 2, 3], "prompt": PROMPTS}), file)
    elif compression == ".zst":
        with pa.CompressedOutputStream(str(file), "zstd") as stream:
            stream.write(content_of(kind))
    else:
        content = content_of(kind)
        file.write_bytes(gzip.compress(content) if compression == ".gz" else content)
    return file


@pytest.mark.parametrize("ending", [*ENDINGS, ".JSONL", ".TXT.GZ"])
def test_prompts_come_from_every_kind_of_file_that_rows_come_from(tmp_path, ending):
    """A reader of its own split prompts at U+2028, kept or choked on byte order marks, took .json and .gz for text."""
    assert read_prompts(write(tmp_path / f"p{ending}")) == PROMPTS


@pytest.mark.parametrize(
    ("name", "text"), [("p.json", '["One?", "Two\\nlines?"]'), ("p.jsonl", '"One?"\n"Two\\nlines?"\n')]
)
def test_json_may_be_texts_alone(tmp_path, name, text):
    """A .json file with a list was one prompt: its own text."""
    (tmp_path / name).write_text(text)
    assert read_prompts(tmp_path / name) == ["One?", "Two\nlines?"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"prompt": null}', "its prompt is null, and not text"),
        ('{"prompt": 5}', "its prompt is of type int, and not text"),
        ('{"prompt": ["Why?"]}', "its prompt is of type list, and not text"),
        ('{"prompt": " "}', "is empty"),
        ('{"prompt": "\\ud800"}', "is not UTF-8"),
        ('{"question": "x"}', "has no prompt"),
        ('["x"]', "is a JSON list, not an object"),
        ("3", "is a JSON int, not an object"),
        ("null", "is a JSON NoneType, not an object"),
        ("not json", "is not JSON"),
    ],
)
def test_what_is_no_text_is_refused_with_its_line(tmp_path, line, reason):
    """null was asked as the text "None"."""
    file = tmp_path / "p.jsonl"
    file.write_text(f'{{"prompt": "One?"}}\n\n{line}\n')
    with pytest.raises(DataError) as raised:
        read_prompts(file)
    (problem,) = raised.value.problems
    assert (problem.field, problem.value) == ("p.jsonl, line 3", line)
    assert problem.message.startswith(reason)
    assert 'Write {"prompt": "..."}' in problem.remedy


def test_a_row_of_another_kind_of_file_is_named_by_its_number(tmp_path):
    (tmp_path / "p.json").write_text('["One?", {"prompt": 2}]')
    (tmp_path / "p.csv").write_text("question\nOne?\n")
    (tmp_path / "p.txt").write_bytes(b"One?\n\xff\n")
    for name, place in (("p.json", "row 2"), ("p.csv", "row 1"), ("p.txt", "row 2")):
        with pytest.raises(DataError, match=f"{name}, {place} = "):
            read_prompts(tmp_path / name)


@pytest.mark.parametrize("name", ["p.jsonl", "p.txt", "p.json", "p.csv"])
def test_an_empty_file_is_refused(tmp_path, name):
    (tmp_path / name).write_text("\n")
    with pytest.raises(DataError, match="prompts_file = .*holds no prompts"):
        read_prompts(tmp_path / name)


@pytest.mark.parametrize("name", ["p.parquet", "p.jsonl.gz"])
def test_a_file_that_is_not_what_its_name_says_is_refused(tmp_path, name):
    (tmp_path / name).write_text('{"a": \n 1}')
    with pytest.raises(DataError, match="prompts_file = .*could not be read as "):
        read_prompts(tmp_path / name)


@pytest.mark.parametrize("name", ["p.md", "prompts", "p.yaml"])
def test_a_file_of_another_kind_is_refused(tmp_path, name):
    (tmp_path / name).write_text("One?")
    with pytest.raises(DataError, match=r"prompts_file = .*does not end in \.jsonl"):
        read_prompts(tmp_path / name)


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".parquet"])
def test_a_column_names_who_answers(tmp_path, ending):
    file = tmp_path / f"p{ending}"
    if ending == ".jsonl":
        file.write_text('{"prompt": "a", "adapter": "one"}\n{"prompt": "b", "adapter": null}\n{"prompt": "c"}\n')
    elif ending == ".csv":
        file.write_text("adapter,other,prompt\none,x,a\n,y,b\n,z,c\n")
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns = {"adapter": ["one", None, ""], "other": [1, 2, 3], "prompt": ["a", "b", "c"]}
        pq.write_table(pa.table(columns), file)
    found = [(prompt.text, prompt.adapter) for prompt in iterate_prompts(file)]
    assert found == [("a", "one"), ("b", ""), ("c", "")]


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".parquet"])
def test_a_column_that_nearly_names_who_answers_is_refused(tmp_path, ending):
    """In a file with the header `prompt, adapter` the second column was ignored, and every adapter answered."""
    file, name = tmp_path / f"p{ending}", {".jsonl": "adapters", ".csv": " adapter", ".parquet": "Adapter"}[ending]
    if ending == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table({"prompt": ["a"], name: ["one"]}), file)
    else:
        text = json.dumps({"prompt": "a", name: "one"}) if ending == ".jsonl" else f"prompt,{name}\na, one"
        file.write_text(f"{text}\n")
    with pytest.raises(DataError, match=f"p{ending}.* = '{name}': is a column that would be ignored.* Name it adapter"):
        list(iterate_prompts(file))


def test_a_name_that_is_no_unicode_is_refused(tmp_path):
    (tmp_path / "p.jsonl").write_text('{"prompt": "b", "adapter": "\\ud800"}\n')
    with pytest.raises(DataError, match="its adapter is text that is not UTF-8"):
        list(iterate_prompts(tmp_path / "p.jsonl"))


def test_a_name_that_is_no_text_is_refused_with_its_line(tmp_path):
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b", "adapter": 7}\n')
    prompts = iterate_prompts(tmp_path / "p.jsonl")
    assert next(prompts) == Prompt("a", "", "p.jsonl, line 1")
    with pytest.raises(DataError, match="p.jsonl, line 2 = .*its adapter is of type int, and not a name"):
        next(prompts)
