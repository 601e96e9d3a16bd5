"""The pages of all reports are one page: templates that extend it, are installed, and may use no name by mistake."""

import tomllib
from fnmatch import fnmatch
from pathlib import Path

import jinja2
import pytest

from thriftune import pages

ROOT = Path(__file__).resolve().parent.parent
TEMPLATES = sorted((ROOT / "thriftune").rglob("*.jinja"))
REPORTS = [file for file in TEMPLATES if file.name in ("report.html.jinja", "answers.html.jinja")]


def test_every_template_is_installed():
    """What pip installs is what pyproject.toml lists: a page template is not Python."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert len(TEMPLATES) > 4
    for file in TEMPLATES:
        package = ".".join(file.relative_to(ROOT).parent.parts)
        assert any(fnmatch(file.name, pattern) for pattern in listed[package]), file


def test_every_report_extends_the_one_page_and_repeats_nothing_of_it():
    assert len(REPORTS) > 5
    for file in REPORTS:
        text = file.read_text(encoding="utf-8")
        assert text.startswith('{% extends "page.html.jinja" %}\n'), file
        assert "<html" not in text
        assert "<style" not in text


def test_no_other_module_sets_jinja_up():
    users = [
        file for file in (ROOT / "thriftune").rglob("*.py") if "from jinja2 import Environment" in file.read_text()
    ]
    assert users == [ROOT / "thriftune" / "pages.py"]


def test_a_value_that_is_not_given_is_an_error():
    with pytest.raises(jinja2.UndefinedError):
        pages.render("preflight/report.html.jinja", {"number": str, "percent": str, "share": max})
