"""Paths and URLs of files, as they are written: nothing is opened."""

WEB = ("http://", "https://")


def is_remote(place: str) -> bool:
    """Whether a path is a URL."""
    return "://" in place


def path_of(place: str) -> str:
    """A path or URL without the query and fragment that a web URL may have; its ending tells the file type.

    Args:
        place: Path, glob or URL. In a URL of a store, ? stands for any character.
    """
    return place.partition("#")[0].partition("?")[0] if place.startswith(WEB) else place


def name_of(place: str) -> str:
    """The file name at the end of a path or URL."""
    return path_of(place).rstrip("/").rpartition("/")[2]


def bucket_of(url: str) -> str:
    """The bucket, container or server that a URL begins with, such as s3://bucket; a path is given back."""
    if not is_remote(url):
        return url
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.partition('/')[0]}"
