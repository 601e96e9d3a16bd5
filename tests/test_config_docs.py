"""docs/configuration.md says what the classes say: it once is forgotten, and then documents keys that are gone."""

import importlib.util
import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from tasks.platform import Platform
from thriftune.config import DataConfig, EvaluationConfig, LoraConfig, RunConfig, Section, ZeroConfig
from thriftune.config.publishing import GateConfig, Improves, Keeps

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "configuration.md"


@pytest.fixture(scope="module")
def config_docs():
    spec = importlib.util.spec_from_file_location("config_docs", ROOT / "scripts" / "config_docs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_up_to_date(config_docs):
    expected = config_docs.document(RunConfig)
    assert PAGE.read_text(encoding="utf-8") == expected, "run: python scripts/config_docs.py > docs/configuration.md"


def test_the_page_of_the_settings_is_up_to_date(config_docs):
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    expected = config_docs.document_settings(Platform)
    assert page == expected, "run: python scripts/config_docs.py settings > docs/settings.md"
    assert len(re.findall(r"^\| `(?:THRIFTUNE|FLYTE)_\w+` \|", page, re.MULTILINE)) == len(Platform.model_fields)


def test_every_key_of_every_section_has_a_row():
    classes = (RunConfig, DataConfig, EvaluationConfig, LoraConfig, ZeroConfig)
    of_a_run = {section.__module__ for section in classes}
    sections = [s for s in Section.__subclasses__() if s.__module__ in of_a_run]
    keys = {key for section in sections for key in section.model_fields}
    text = PAGE.read_text(encoding="utf-8")
    assert len(keys) > 40
    assert [key for key in keys if f"| `{key}` |" not in text] == []


def test_a_section_in_a_section_has_a_table_and_so_has_a_list_in_it():
    """The page once named the gate of publishing, and had none of its keys."""
    text = PAGE.read_text(encoding="utf-8")
    for path, section in (
        ("`publish.gate`", GateConfig),
        ("`publish.gate.improves`, each entry", Improves),
        ("`publish.gate.keeps`, each entry", Keeps),
    ):
        table = text.partition(f"\n## {path}\n")[2].partition("\n## ")[0]
        assert [key for key in section.model_fields if f"| `{key}` |" not in table] == [], path
    assert "[publish.gate](#publishgate)" in text


def test_a_key_without_a_description_is_refused(config_docs):
    class Undocumented(BaseModel):
        mystery: int = 3

    with pytest.raises(ValueError, match="mystery"):
        config_docs.document(Undocumented)
