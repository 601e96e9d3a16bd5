"""Directories that a person names: copied, and not followed out of."""

import os
import shutil

import pytest

from thriftune import artifacts, disk
from thriftune.config import ModelConfig
from thriftune.disk import DiskFullError
from thriftune.errors import AdapterError, ModelSourceError, UserError
from thriftune.hardware import DEVICES
from thriftune.inference.generation import generate
from thriftune.models import fetching as models
from thriftune.models.answering import Sampling
from thriftune.models.loading import Placement
from thriftune.preflight import base_model


@pytest.fixture
def own_model(tiny_model_dir, tmp_path):
    return shutil.copytree(tiny_model_dir, tmp_path / "own")


def refusal(action):
    with pytest.raises(UserError) as caught:
        action()
    return str(caught.value)


def fetch(source, destination):
    models.fetch(str(source), models.version(str(source)), destination)
    return destination


def test_the_copy_of_a_model_is_its_own(own_model, tmp_path):
    """It was a hard link: who wrote to one of the two wrote to the other."""
    fetched = fetch(own_model, tmp_path / "fetched")
    before = (own_model / "model.safetensors").read_bytes()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        assert (fetched / name).stat().st_ino != (own_model / name).stat().st_ino
        assert (fetched / name).stat().st_nlink == (own_model / name).stat().st_nlink == 1
    with (own_model / "model.safetensors").open("r+b") as file:
        file.write(b"x" * 100)
    assert (fetched / "model.safetensors").read_bytes() == before


def test_a_model_of_links_into_the_blobs_of_the_hub_s_cache_is_taken(own_model, tmp_path):
    """A snapshot is what people name who have downloaded a model with huggingface_hub."""
    repository = tmp_path / "hub" / "models--owner--name"
    snapshot = repository / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    own_model.rename(repository / "blobs")
    for file in (repository / "blobs").iterdir():
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")
    found = base_model.check(ModelConfig(source=str(snapshot)), None, tmp_path / "scratch")
    assert [finding for finding in found.findings if finding.severity != "note"] == []
    fetched = fetch(snapshot, tmp_path / "fetched")
    assert not [file for file in fetched.iterdir() if file.is_symlink()]
    assert (fetched / "model.safetensors").read_bytes() == (repository / "blobs" / "model.safetensors").read_bytes()
    (snapshot / "secret.json").symlink_to("/etc/hostname")
    assert "secret.json is a link out of the directory, to /etc/hostname" in refusal(
        lambda: fetch(snapshot, tmp_path / "again")
    )


def test_links_within_a_directory_and_to_it_are_followed(own_model, tmp_path):
    (own_model / "tokenizer.json").rename(own_model / "the-tokenizer")
    (own_model / "tokenizer.json").symlink_to("the-tokenizer")
    (tmp_path / "link").symlink_to(own_model)
    fetched = fetch(tmp_path / "link", tmp_path / "fetched")
    assert not (fetched / "tokenizer.json").is_symlink()


def test_what_is_not_taken_may_be_a_link_to_anywhere(own_model, tmp_path):
    (own_model / "pytorch_model.bin").symlink_to("/etc/hostname")
    (own_model / "runs").symlink_to("/tmp")
    assert not (fetch(own_model, tmp_path / "fetched") / "pytorch_model.bin").exists()


def pipe(file):
    os.mkfifo(file)


STRANGE = {
    "out of the directory": (lambda file: file.symlink_to("/etc/hostname"), "is a link out of the directory"),
    "out of it with dots": (lambda file: file.symlink_to("../outside"), "is a link out of the directory"),
    "to itself": (lambda file: file.symlink_to(file.name), "is a link that leads back to itself"),
    "to nothing": (lambda file: file.symlink_to("nowhere"), "is a link to a missing file"),
    "a pipe": (pipe, "is not a file, but a pipe"),
}  # fmt: skip


@pytest.mark.parametrize("kind", STRANGE)
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "additional_chat_templates/tools.jinja"])
def test_a_model_is_refused_whose_files_lie_elsewhere(own_model, tmp_path, kind, name):
    """Files of others were copied and uploaded, circles were a traceback, and what was not there was left out."""
    make, said = STRANGE[kind]
    (tmp_path / "outside").write_text("{}")
    (own_model / name).parent.mkdir(exist_ok=True)
    (own_model / name).unlink(missing_ok=True)
    make(own_model / name)
    if kind == "out of it with dots" and "/" in name:
        (own_model / name).unlink()
        (own_model / name).symlink_to("../../outside")
    for action in (lambda: models.version(str(own_model)), lambda: models.fetch(str(own_model), "v", tmp_path / "m")):
        text = refusal(action)
        assert f"model.source = {own_model}: {name} {said}" in text
        assert text.count("\n") == 1
    assert not list(tmp_path.glob("m*"))


def test_a_directory_that_is_a_circle_is_refused(tmp_path):
    (tmp_path / "self").symlink_to("self")
    for source in (tmp_path / "self", tmp_path / "self" / "below", tmp_path / "x.gguf"):
        (tmp_path / "x.gguf").unlink(missing_ok=True)
        (tmp_path / "x.gguf").symlink_to("x.gguf")
        assert "is a link that leads back to itself" in refusal(lambda source=source: models.version(str(source)))


def test_generating_refuses_a_model_and_an_adapter_of_links(own_model, random_adapter):
    placement, sampling = Placement(DEVICES["CPU"], "fp32"), Sampling(max_new_tokens=1)

    def ask(adapters):
        generate(own_model, ["hello"], adapters=adapters, placement=placement, sampling=sampling, batch=1)

    adapter = random_adapter(1)
    (adapter / "adapter_model.safetensors").unlink()
    (adapter / "adapter_model.safetensors").symlink_to("/etc/hostname")
    with pytest.raises(AdapterError, match="is a link out of the directory"):
        ask({"one": adapter})
    (own_model / "config.json").unlink()
    (own_model / "config.json").symlink_to("config.json")
    with pytest.raises(ModelSourceError, match=r"model_dir = .*config\.json is a link that leads back to itself"):
        ask({})


def test_a_result_of_an_earlier_run_is_not_taken_as_a_model_when_it_is_damaged(own_model, tmp_path):
    artifacts.write_manifest(own_model, "model", {})
    fetch(own_model, tmp_path / "fetched")
    with (own_model / "model.safetensors").open("r+b") as file:
        file.seek(-100, 2)
        file.write(b"x" * 100)
    said = f"model.source = {own_model}: model.safetensors does not hold what was saved"
    assert said in refusal(lambda: fetch(own_model, tmp_path / "fetched"))


def test_a_disk_without_room_is_said_before_anything_is_copied(own_model, tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "free_bytes", lambda _: 100_000)
    with pytest.raises(
        DiskFullError, match=r"100000 bytes free, .* while fetching the base model\. .*THRIFTUNE_OUTPUTS"
    ):
        fetch(own_model, tmp_path / "fetched")
    assert not list(tmp_path.glob("fetched*"))
