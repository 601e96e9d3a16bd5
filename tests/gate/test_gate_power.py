"""The tables of what the gate can see are on the page, and are made by the script that it names."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "evaluation.md"
NAMES = ("intervals", "false passes", "power", "power of loss")


@pytest.fixture
def gate_power():
    spec = importlib.util.spec_from_file_location("gate_power", ROOT / "scripts" / "gate_power.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cells(page, name):
    """The cells of a table of numbers, without its head."""
    text = page.partition(f"<!-- {name}: ")[2].partition("<!-- end of ")[0]
    return [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")][2:]


def test_the_page_has_every_table_and_no_equal_model_passes_more_often_than_it_says():
    page = PAGE.read_text(encoding="utf-8")
    tables = {name: cells(page, name) for name in NAMES}
    assert [len(tables[name]) for name in NAMES] == [16, 4, 3, 3]
    shares = [float(cell.strip("%")) for row in tables["false passes"] for cell in row[1:]]
    assert len(shares) == 12
    assert max(shares) < 3.5, "2.5, and the noise of a thousand simulations"
    for row in tables["intervals"]:
        above = float(re.match(r"[\d.]+", row[4])[0])
        assert above <= 3.5, row
    for name in ("power", "power of loss"):
        columns = [[float(cell.split(",")[0]) for cell in column] for column in zip(*tables[name], strict=True)][1:]
        assert all(column == sorted(column, reverse=True) for column in columns), "more items see more"


def test_the_script_writes_all_tables_and_nothing_else(gate_power, tmp_path, monkeypatch):
    page = tmp_path / "evaluation.md"
    page.write_text(PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(gate_power, "PAGE", page)
    monkeypatch.setattr(gate_power, "ITEMS", (30,))
    monkeypatch.setattr("sys.argv", ["gate_power.py", "--simulations", "2"])
    gate_power.main()

    def without(text):
        return re.sub(r"^\|.*\n", "", text, flags=re.M)

    made = page.read_text(encoding="utf-8")
    assert without(made) == without(PAGE.read_text(encoding="utf-8"))
    assert [len(cells(made, name)) for name in NAMES] == [16, 2, 1, 1]
