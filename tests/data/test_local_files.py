"""The files that a path or a glob stands for."""

import pytest

from thriftune.data import sources
from thriftune.data.local_files import matching
from thriftune.errors import DataError


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "data").mkdir()
    for name in ("b.jsonl", "a.jsonl", "[odd].jsonl"):
        (tmp_path / "data" / name).write_text("{}\n")
    return tmp_path / "data"


def names(found):
    return [path.rpartition("/")[2] for path in found]


def test_files_are_in_order_and_links_to_files_are_followed(folder, tmp_path):
    (tmp_path / "elsewhere.jsonl").write_text("{}\n")
    (folder / "c.jsonl").symlink_to(tmp_path / "elsewhere.jsonl")
    (folder / "d.jsonl").symlink_to("nowhere")
    assert names(matching(f"{folder}/*.jsonl")) == ["[odd].jsonl", "a.jsonl", "b.jsonl", "c.jsonl"]
    assert names(matching(f"{folder}/[odd].jsonl")) == ["[odd].jsonl"]
    assert matching(f"{folder}/nothing*") == []


def test_a_link_to_another_folder_is_no_circle(folder, tmp_path):
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "c.jsonl").write_text("{}\n")
    (folder / "more").symlink_to("../more")
    assert names(matching(f"{folder}/**/*.jsonl")) == ["[odd].jsonl", "a.jsonl", "b.jsonl", "c.jsonl"]


@pytest.mark.parametrize("to", ["..", ".", "../data"])
def test_a_folder_that_leads_to_where_it_lies_is_refused(folder, to):
    """The rows behind it were read some forty times: as often as the system follows links."""
    (folder / "up").symlink_to(to)
    with pytest.raises(DataError, match=r"data\.source = .*up is a link that leads back to itself"):
        matching(f"{folder}/**/*.jsonl")
    assert names(matching(f"{folder}/*.jsonl")) == ["[odd].jsonl", "a.jsonl", "b.jsonl"]


@pytest.mark.parametrize("source", ["loop.jsonl", "*.jsonl"])
def test_a_file_that_is_a_circle_is_refused(folder, source):
    """It was no such file, beside its own name in the list of those that are there."""
    (folder / "loop.jsonl").symlink_to("loop.jsonl")
    with pytest.raises(DataError, match="is a link that leads back to itself"):
        sources.version(f"{folder}/{source}")
