"""Adapters and catalogues are the same wherever they are: on this disk, in a bucket, or on a web server."""

import shutil
from importlib import resources

import pytest
from bucket import Bucket, set_environment
from web import web

from thriftune.models import fetching as models
from thriftune.models.adapter_weights import RESUME_FROM, shapes_in
from thriftune.models.weight_files import Folder
from thriftune.planning import catalogue
from thriftune.preflight import adapters


@pytest.fixture
def places(tmp_path, random_adapter):
    """Where the same adapter and the same catalogue are."""
    here = tmp_path / "served"
    shutil.copytree(random_adapter(1), here / "adapter")
    shipped = resources.files("thriftune.planning").joinpath("catalogue.yaml")
    (here / "nodes.yaml").write_bytes(shipped.read_bytes())
    bucket = Bucket()
    patch = set_environment(bucket)
    for file in (path for path in here.rglob("*") if path.is_file()):
        bucket.client.upload_file(str(file), bucket.name, file.relative_to(here).as_posix())
    with web(here) as (address, _):
        yield [str(here), f"s3://{bucket.name}", address]
    patch.undo()
    bucket.stop()


def test_an_adapter_can_be_gone_on_from_wherever_it_is(places, tmp_path):
    """On a web server its files had no sizes, and its version never changed."""
    seen = []
    for number, place in enumerate(f"{place}/adapter" for place in places):
        (tmp_path / f"{number}").mkdir()
        brought = adapters._bring(place, tmp_path / f"{number}", RESUME_FROM)
        shapes = shapes_in(Folder(place), RESUME_FROM, place)
        assert models.version(place, field=RESUME_FROM) == models.version(place, field=RESUME_FROM)
        seen.append(((brought / "adapter_config.json").read_bytes(), shapes))
    assert seen[0][1]
    assert seen == [seen[0]] * 3


def test_the_version_of_a_folder_on_a_web_server_changes_with_its_files(places, tmp_path):
    before = models.version(f"{places[2]}/adapter")
    with (tmp_path / "served" / "adapter" / "adapter_model.safetensors").open("ab") as file:
        file.write(b" ")
    assert models.version(f"{places[2]}/adapter") != before


def test_a_catalogue_is_read_wherever_it_is(places):
    assert [catalogue.load(f"{place}/nodes.yaml") for place in places] == [catalogue.load()] * 3
