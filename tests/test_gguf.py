"""GGUF files: parsed once, and converted to what they hold."""

import struct

import pytest
from conftest import run_dict
from safetensors.torch import load_file
from tiny_gguf import write_gguf

from thriftune.config import ModelConfig, RunConfig
from thriftune.errors import ModelSourceError
from thriftune.models import architecture, gguf_file
from thriftune.models import config_json as model_config
from thriftune.models import fetching as models
from thriftune.preflight import base_model


@pytest.fixture
def parsings(monkeypatch):
    """The files that were parsed, each time."""
    import gguf

    seen, parse = [], gguf.GGUFReader.__init__

    def noted(self, path, *arguments):
        seen.append(path)
        parse(self, path, *arguments)

    monkeypatch.setattr(gguf.GGUFReader, "__init__", noted)
    return seen


@pytest.fixture
def source(tmp_path, tiny_tokenizer_dir):
    return write_gguf(tmp_path / "tiny.gguf", tiny_tokenizer_dir)


def test_a_file_is_parsed_once_from_the_plan_to_the_model(source, parsings, tmp_path):
    """Plan, preflight and fetch parsed it seven times, three seconds each for a vocabulary of 49,152 tokens."""
    model = RunConfig.model_validate(run_dict("qlora", model={"source": str(source)})).model
    parameters = architecture.of(model).parameters
    found = base_model.check(model, None, tmp_path / "scratch")
    models.fetch(str(source), models.version(str(source)), tmp_path / "fetched")
    assert [finding for finding in found.findings if finding.severity == "error"] == []
    assert found.license == "mit"
    assert found.architecture.parameters == parameters
    assert len(parsings) == 1
    weights = load_file(tmp_path / "fetched" / "model.safetensors")
    assert sum(weight.numel() for weight in weights.values()) == parameters
    assert float(weights["model.embed_tokens.weight"].flatten()[3]) == pytest.approx(0.003, rel=1e-2)
    assert (tmp_path / "fetched" / "tokenizer.json").is_file()


def test_a_file_that_changed_is_parsed_anew(source, tiny_tokenizer_dir, parsings):
    assert gguf_file.license_of(source) == "mit"
    write_gguf(source, tiny_tokenizer_dir, "apache-2.0")
    assert gguf_file.license_of(source) == "apache-2.0"
    assert len(parsings) == 2


def test_who_asks_for_a_configuration_may_change_it(source):
    gguf_file.config_of(source)["hidden_size"] = 0
    assert architecture.of(ModelConfig(source=str(source))).hidden_size == 4


def test_transformers_parses_by_itself_again_afterwards(source):
    import gguf

    before = gguf.GGUFReader, gguf.get_tensor_name_map
    gguf_file.config_of(source)
    with pytest.raises(KeyError), gguf_file.known(source):
        assert before[0] is not gguf.GGUFReader
        raise KeyError
    assert (gguf.GGUFReader, gguf.get_tensor_name_map) == before


@pytest.mark.parametrize("share", [0.0, 0.001, 0.02, 0.3, 0.6, 0.9])
def test_a_file_that_was_cut_is_refused_wherever_it_ends(source, tmp_path, share):
    """Cut within its head it ended in a traceback of the library's."""
    source.write_bytes(source.read_bytes()[: int(share * source.stat().st_size)])
    for action in (
        lambda: architecture.of(ModelConfig(source=str(source))),
        lambda: models.fetch(str(source), "v", tmp_path / "m"),
    ):
        with pytest.raises(ModelSourceError, match="cannot be read as GGUF"):
            action()


HEADER = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"a" + struct.pack("<I", 9)


@pytest.mark.parametrize(
    ("lists", "reason"),
    [(struct.pack("<IQ", 0, 2**62), "it is truncated"), (struct.pack("<IQ", 9, 1) * 5000, "recursion")],
    ids=["longer than the file", "nested without end"],
)
def test_a_list_of_a_hostile_file_has_an_end(tmp_path, lists, reason):
    """A file of a hundred bytes was read for ever: past its end there was always another nothing."""
    file = tmp_path / "model.gguf"
    file.write_bytes(HEADER + lists)
    with pytest.raises(ModelSourceError, match=f"cannot be read as GGUF: .*{reason}"):
        model_config.read(ModelConfig(source=str(file)), None)
