"""docs/data.md: its YAML can be run, and its tables name what there is; test_docs.py looks at the names in it."""

import re
from pathlib import Path
from typing import get_args

import pytest
import yaml

from thriftune.config import DataFormat, RunConfig
from thriftune.config.formats import ENDINGS
from thriftune.data.formats import FORMATS

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```yaml\n(.*?)```", PAGE, re.S)


def table(head: str) -> list[list[str]]:
    """The cells of the table whose first column is called `head`."""
    rows = re.search(rf"^\| {re.escape(head)} \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", PAGE, re.M)
    assert rows, f"no table with the head {head}"
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in rows.group(1).splitlines()]


@pytest.mark.parametrize("block", BLOCKS)
def test_its_yaml_is_a_data_section(block, run_file):
    content = yaml.safe_load(block)
    data = content.get("data", content)
    base = run_file()
    base["data"] = data if "data" in content else {"source": "rows.jsonl", **data}
    assert RunConfig.model_validate(base).data.all_sources


def test_it_has_yaml_to_test():
    assert len(BLOCKS) == 3


def test_the_formats_in_its_table_are_those_there_are():
    rows = table("`format`")
    assert {re.sub("`", "", row[0]) for row in rows} == set(get_args(DataFormat)) == {*FORMATS, "template"}
    for name, columns, *_ in rows:
        for column in FORMATS[name.strip("`")].all_columns if name != "`template`" else ():
            assert column in columns, f"{name}: {column}"


def test_the_endings_it_names_are_those_that_are_read():
    assert {f".{ending.split('.')[1]}" for ending in ENDINGS} <= set(re.findall(r"`(\.\w+)`", PAGE))
