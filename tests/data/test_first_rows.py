"""The first rows of a source are those that data preparation reads first, and no more than may be."""

import itertools

import pytest
from conftest import write_jsonl

from thriftune.config import DataSource
from thriftune.data.first_rows import Limit, first_rows
from thriftune.data.sources import open_source
from thriftune.errors import DataError

ROWS = [{"text": f"Row {number}."} for number in range(50)]
MUCH = 1 << 20


@pytest.fixture
def source(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", ROWS[:30])
    write_jsonl(tmp_path / "b.jsonl", ROWS[30:])
    return DataSource(source=f"{tmp_path}/*.jsonl", format="text")


@pytest.mark.parametrize("most", [1, 30, 31, 50, 60])
def test_they_are_those_that_are_read_first(source, tmp_path, most):
    opened = open_source(source, scratch=tmp_path / "scratch")
    found = first_rows(source, Limit(most, MUCH), scratch=tmp_path / "scratch")
    assert found.rows == list(itertools.islice(opened.read(), most))
    assert (found.total, found.is_whole) == (50, most >= 50)
    assert found.columns == opened.columns


def test_no_more_bytes_are_read_than_may_be(source, tmp_path):
    found = first_rows(source, Limit(50, 1), scratch=tmp_path)
    assert (len(found.rows), found.is_whole) == (1, False)


def test_a_source_without_rows_is_refused(tmp_path):
    (tmp_path / "rows.jsonl").write_text("\n")
    with pytest.raises(DataError) as caught:
        first_rows(DataSource(source=f"{tmp_path}/rows.jsonl", format="text"), Limit(1, 1), scratch=tmp_path)
    assert [problem.code for problem in caught.value.problems] == ["data-empty"]
