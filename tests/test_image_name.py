"""An image that cannot run the tasks is refused when they are registered."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from flytekit.configuration.default_images import DefaultImages

import thriftune
from tasks.image import require_image
from thriftune.errors import ConfigError

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    "image",
    [
        "registry.example/thriftune:0.1.0",
        "registry.example:5000/team/thriftune:v0.1.0",
        "registry.example/thriftune:0.1",
        "registry.example/thriftune:0.1.0-cuda13",
        "registry.example/thriftune:0.1.0rc1",
        "registry.example/thriftune:main",
        "registry.example/thriftune:a3f5c21",
        "registry.example/thriftune",
        "registry.example/thriftune@sha256:" + "0" * 64,
        "thriftune:test",
        "registry.example/thriftune:2024.05.01",
        "registry.example/thriftune:0.1.0@sha256:" + "0" * 64,
    ],
)
def test_an_image_of_this_release_or_without_one_is_taken(image):
    assert require_image(image, "0.1.0") == image


@pytest.mark.parametrize(
    "tag", ["0.2.0", "v0.0.9", "0.2", "1.0.0-cuda13", "0.1.1", "0.2.0_gpu", "0.1.0.1", "0.2.0@sha256:ab"]
)
def test_an_image_of_another_release_is_refused(tag):
    with pytest.raises(ConfigError, match=r"code that is registered is 0\.1\.0"):
        require_image(f"registry.example/thriftune:{tag}", "0.1.0")


@pytest.mark.parametrize("image", [DefaultImages.default_image(), "cr.flyte.org/flyteorg/flytekit:py3.11-1.15.0"])
def test_flytekit_s_own_images_are_refused(image):
    with pytest.raises(ConfigError, match="FLYTE_IMAGE"):
        require_image(image)


def test_two_images_at_once_are_refused(tmp_path):
    """What was meant by the option is not what would run."""
    command = [Path(sys.executable).parent / "pyflyte", "--pkgs", "workflows", "package", "--source", ROOT]
    command += ["--image", "registry.example/one:test", "--output", tmp_path / "p.tgz"]
    environment = {**os.environ, "FLYTE_IMAGE": "registry.example/other:test"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode != 0
    assert "Leave one of the two out" in " ".join((done.stdout + done.stderr).replace("│", " ").split())


@pytest.mark.parametrize(
    ("image", "said"),
    [((), "no image was named"), (("--image", "registry.example/thriftune:9.9.9"), f"is {thriftune.__version__}")],
)
def test_registering_ends_with_the_error(tmp_path, image, said):
    command = [Path(sys.executable).parent / "pyflyte", "--pkgs", "workflows", "package", "--source", ROOT, *image]
    done = subprocess.run([*command, "--output", tmp_path / "p.tgz"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0
    assert said in " ".join((done.stdout + done.stderr).replace("│", " ").split())
