"""Check the image of a task: a person must have named it, and it must have the libraries of this release."""

import re
from typing import Any

from flytekit.configuration import SerializationSettings
from flytekit.configuration.default_images import DefaultImages

import thriftune
from thriftune.errors import ConfigError

# A tag that names a release: 0.1.0, v0.1, 0.1.0-cuda13. Others (a commit, a branch, a digest) cannot be compared.
_RELEASE_TAG = re.compile(r":v?(\d{1,3}\.\d+(?:\.\d+)*)([-+._]?[A-Za-z][\w.-]*|[-_][\w.-]+)?(@sha256:\w+)?$")
_FLYTEKIT = re.compile(r"(^|/)flyteorg/flytekit(:|@|$)")
_FIELD = "image"


def require_image(image: str, version: str = thriftune.__version__) -> str:
    """Refuse an image that cannot run the tasks.

    Args:
        image: Full name, with tag or digest.
        version: The version of this release.

    Returns:
        The image.

    Raises:
        ConfigError: No image was named, so that flytekit's own is used; or its tag is that of another release.
    """
    if _FLYTEKIT.search(image):
        raise ConfigError.single(
            _FIELD,
            image,
            "is flytekit's own, which has none of the libraries that training needs: no image was named.",
            f"Build the Dockerfile, and name the image: --image <registry>/thriftune:{version}, or FLYTE_IMAGE.",
        )
    tag = _RELEASE_TAG.search(image)
    if tag and _release(tag[1]) != _release(version):
        raise ConfigError.single(
            _FIELD,
            image,
            f"is of release {tag[1]}, and the code that is registered is {version}.",
            f"Build and name an image of this release (its tag {version}), or check out the code of that one.",
        )
    return image


def _release(version: str) -> list[int]:
    numbers = [int(part) for part in re.findall(r"\d+", version)]
    return numbers + [0] * (3 - len(numbers))


class RequiresImage:
    """Mixin for a task class: checks the image when the task is registered, not when its pod cannot start."""

    def get_image(self, settings: SerializationSettings) -> str:
        """The image that Flyte gets.

        Args:
            settings: Settings of the registration.

        Raises:
            ConfigError: It cannot run the task.
        """
        above: Any = super()
        image = require_image(str(above.get_image(settings)))
        named = settings.image_config.default_image
        if named and named.full not in (image, DefaultImages.default_image()):
            message = f"is given by FLYTE_IMAGE, and {named.full} by --image."
            raise ConfigError.single(_FIELD, image, message, "Leave one of the two out.")
        return image
