"""What local runs reuse from outputs/cache: looked at, and made anew where it is not what was made."""

import logging

import pytest
from conftest import run_dict
from flytekit.types.directory import FlyteDirectory

from tasks import settings, transfer
from tasks.fetch_model import fetch_model
from tasks.prepare_dataset import prepare_dataset
from thriftune import damage
from thriftune.config import DataConfig, ModelConfig
from thriftune.data import sources
from thriftune.data.prepared import TRAIN, load_split
from thriftune.errors import UserError
from thriftune.models.tokenizer import fingerprint, load_tokenizer


def change_100_bytes(file):
    content = file.read_bytes()
    middle = len(content) // 2
    file.write_bytes(content[: middle - 50] + bytes(100) + content[middle + 50 :])


def cut(file):
    file.write_bytes(file.read_bytes()[:-10])


DAMAGES = {
    "100 changed bytes": (change_100_bytes, "{} does not hold what was saved"),
    "cut": (cut, "{} has "),
    "deleted": (lambda file: file.unlink(), "{} is missing"),
}


@pytest.fixture(params=DAMAGES)
def harm(request):
    """Something that happens to a file, and what is then said."""
    return DAMAGES[request.param]


@pytest.fixture
def outputs(tmp_path, monkeypatch):
    monkeypatch.setenv("THRIFTUNE_OUTPUTS", str(tmp_path / "outputs"))
    return tmp_path / "outputs"


@pytest.fixture
def fetch(tiny_model_dir, outputs):
    """Fetch the tiny model, and give its directory and its tokenizer's."""

    def run():
        fetched = fetch_model(model=ModelConfig(source=str(tiny_model_dir)), version="v", cache_key="k", record="")
        return tuple(outputs / "cache" / str(made.path) for made in fetched)

    return run


@pytest.fixture
def prepare(tiny_tokenizer_dir, chat_rows_file, outputs):
    """Prepare the chat rows, and give the directory."""
    data = DataConfig.model_validate(run_dict()["data"] | {"source": str(chat_rows_file)})

    def run():
        made = prepare_dataset(
            data=data,
            seed=0,
            data_version=sources.versions(data),
            tokenizer=FlyteDirectory(str(tiny_tokenizer_dir), remote_directory=False),
            tokenizer_version=fingerprint(load_tokenizer(tiny_tokenizer_dir)),
            trust_remote_code=False,
            cache_key="k",
            record="",
        )
        return outputs / str(made.path)

    return run


def test_a_model_is_reused_while_it_is_whole(fetch):
    model, tokenizer = fetch()
    made = (model / "manifest.json").stat().st_ino, (tokenizer / "manifest.json").stat().st_ino
    fetch()
    assert made == ((model / "manifest.json").stat().st_ino, (tokenizer / "manifest.json").stat().st_ino)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "manifest.json"])
def test_a_damaged_model_is_fetched_again_and_that_is_said(fetch, harm, name, tiny_model_dir, caplog):
    """It was used without a word, or every later run ended in an error of a library that named no file."""
    damaging, said = harm
    model, _ = fetch()
    damaging(model / name)
    with caplog.at_level(logging.WARNING):
        fetch()
    expected = said.format(name) if name != "manifest.json" else "manifest.json"
    assert f"{model} is damaged and will be made again: " in caplog.text
    assert expected in caplog.text
    assert damage.damages(model, content=True) == []
    assert (model / "model.safetensors").read_bytes() == (tiny_model_dir / "model.safetensors").read_bytes()


def test_a_damaged_tokenizer_is_made_again_from_the_model(fetch, harm, caplog):
    damaging, said = harm
    _, tokenizer = fetch()
    before = (tokenizer / "tokenizer.json").read_bytes()
    damaging(tokenizer / "tokenizer.json")
    fetch()
    assert (tokenizer / "tokenizer.json").read_bytes() == before
    assert said.format("tokenizer.json") in caplog.text


@pytest.mark.parametrize("name", ["train.parquet", "samples.json", "report.html"])
def test_a_damaged_dataset_is_prepared_again(prepare, harm, name, caplog):
    damaging, said = harm
    dataset = prepare()
    rows = load_split(dataset, TRAIN).to_list()
    before = (dataset / name).read_bytes()
    damaging(dataset / name)
    assert prepare() == dataset
    assert f"{dataset} is damaged and will be made again: {said.format(name)}" in caplog.text
    assert (dataset / name).read_bytes() == before
    assert load_split(dataset, TRAIN).to_list() == rows


def test_damaged_rows_are_not_trained_on(prepare, harm, caplog):
    """Rows that an earlier run had unpacked were mapped as they lay there, whatever they held by then."""
    damaging, said = harm
    dataset = prepare()
    rows = load_split(dataset, TRAIN).to_list()
    (mapped,) = dataset.with_name(f"{dataset.name}.mapped").glob("*/rows.arrow")
    damaging(mapped)
    assert load_split(dataset, TRAIN).to_list() == rows
    assert said.format("rows.arrow") in caplog.text


def test_rows_of_another_dataset_in_the_same_place_are_unpacked_anew(prepare):
    import pyarrow.parquet as pq

    dataset = prepare()
    rows = load_split(dataset, TRAIN).to_list()
    pq.write_table(pq.read_table(dataset / TRAIN).slice(0, 3), dataset / TRAIN)
    assert load_split(dataset, TRAIN).to_list() == rows[:3]


def test_what_one_task_hands_to_the_next_is_whole(fetch, harm):
    """A file that was cut after it was fetched ended in an error that did not name it."""
    damaging, said = harm
    model, *_ = fetch()
    damaging(model / "model.safetensors")
    handed = FlyteDirectory(str(model), remote_directory=False)
    if damaging is change_100_bytes:  # which is found by the next run, not by every task
        assert transfer.download(handed) == model
        return
    with pytest.raises(UserError, match=said.format("model.safetensors")):
        transfer.download(handed)


def test_on_a_cluster_it_says_how_to_leave_out_the_cache(fetch, monkeypatch):
    model, *_ = fetch()
    (model / "config.json").unlink()
    monkeypatch.setattr(settings, "is_local", lambda: False)
    with pytest.raises(UserError, match="config.json is missing.*--overwrite-cache"):
        transfer.download(FlyteDirectory(str(model), remote_directory=False))
