"""YAML that a person, or a model's author, wrote: it ends, however it is written."""

import pytest
import yaml

from thriftune.bounded_yaml import BoundedLoader, TooMuchYamlError
from thriftune.errors import ConfigError
from thriftune.planning import catalogue
from thriftune.preflight import licenses

HOSTILE = {
    "contains itself": "a: &a [*a]",
    "nested more than 32 levels": "a: " + "[" * 10_000,
    "has a number of more than 100 characters, in line 1": "a: 1" + ":1" * 1000,
    "expands to more than 20,000": "a: &a [1, 2, 3, 4, 5, 6, 7, 8, 9]\n"
    + "".join(f"b{n}: &b{n} [{', '.join([f'*b{n - 1}' if n else '*a'] * 9)}]\n" for n in range(5)),
}


@pytest.mark.parametrize("reason", HOSTILE)
def test_it_is_refused_wherever_it_is_read(tmp_path, reason):
    """Brackets in the head of a model's README ended the preflight in a RecursionError."""
    with pytest.raises(TooMuchYamlError, match=reason):
        BoundedLoader(HOSTILE[reason]).get_single_data()
    file = tmp_path / "catalogue.yaml"
    file.write_text(HOSTILE[reason])
    with pytest.raises(ConfigError, match=f"catalogue = .*{reason}"):
        catalogue.load(str(file))
    (tmp_path / "README.md").write_text(f"---\nlicense: mit\n{HOSTILE[reason]}\n---\nA model.\n")
    assert licenses.of(tmp_path) == ""


def test_errors_name_the_file_and_the_line(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("a: [1\nb: 2\n")
    with file.open() as stream, pytest.raises(Exception, match=r"run\.yaml\", line 2"):
        BoundedLoader(stream).get_single_data()


@pytest.mark.parametrize("value", ["!!int ''", "!!float ''", "!!bool maybe"])
def test_a_value_that_is_not_what_its_tag_says_is_an_error_of_yaml(value):
    """It ended a plan in `IndexError: string index out of range`."""
    with pytest.raises(yaml.YAMLError, match="this is not a valid (int|float|bool)"):
        BoundedLoader(f"a: {value}").get_single_data()


def test_a_license_is_read_of_a_long_page(tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n" + "A model. " * 500_000)
    assert licenses.of(tmp_path) == "mit"
