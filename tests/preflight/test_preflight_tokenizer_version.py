"""The preflight knows the tokenizer that will be fetched: rows are looked for in the cache by it, before that."""

import shutil

import pytest
from preflighting import Checking, fetched_tokenizer
from tiny_gguf import write_gguf

pytest_plugins = ("store_kinds",)


@pytest.fixture
def in_a_bucket(s3):
    """URL of the model in a bucket."""

    def put(source):
        for file in [source] if source.is_file() else sorted(source.iterdir()):
            s3.upload(file, f"models/{file.name}")
        return f"{s3.prefix}/models{f'/{source.name}' if source.is_file() else ''}"

    return put


@pytest.mark.parametrize(
    ("kind", "trust"),
    [("directory", False), ("directory", True), ("URL", False), ("GGUF file", False), ("URL of a GGUF file", False)],
)
def test_it_is_the_one_that_fetching_finds(kind, trust, tiny_model_dir, chat_rows_file, in_a_bucket, tmp_path):
    """The hub's is in test_preflight_hub.py."""
    source = shutil.copytree(tiny_model_dir, tmp_path / "model")
    if kind == "GGUF file":
        source = write_gguf(tmp_path / "tiny.gguf", tiny_model_dir)
    elif kind != "directory":
        source = in_a_bucket(source if kind == "URL" else write_gguf(tmp_path / "tiny.gguf", tiny_model_dir))
    check = Checking(tiny_model_dir, chat_rows_file)
    if trust:
        (source / "tokenization_own.py").write_text("own = 1\n")
    sections = {"model": {"source": str(source), "trust_remote_code": trust}, "data": {"format": "text"}}
    facts = check(**sections).facts
    assert len(facts.tokenizer_version) == 64
    assert facts.tokenizer_version == fetched_tokenizer(check.run(**sections), facts.model_version)


def test_two_models_with_one_tokenizer_have_one(tiny_model_dir, chat_rows_file, tmp_path):
    """Prepared rows are shared by them."""
    other = shutil.copytree(tiny_model_dir, tmp_path / "other")
    (other / "generation_config.json").write_text("{}")
    found = [Checking(model, chat_rows_file)().facts for model in (tiny_model_dir, other)]
    assert found[0].model_version != found[1].model_version
    assert found[0].tokenizer_version == found[1].tokenizer_version
