"""The container image's stand-in: this environment's libraries without this project.

A file that is missing in the upload would go unnoticed if pods could import the checkout. `pip install -e` makes it
importable through a .pth file in site-packages, and Python reads such files only there: a virtual environment whose own
site-packages name that folder in a .pth file of theirs has every library, and not the project. Nothing is installed;
it costs a tenth of a second.
"""

import os
import sys
import sysconfig
import venv
from pathlib import Path

PROJECT = "thriftune"
# Interpreters and activation scripts belong to an environment itself.
_OWN = ("python", "pip", "activate", "Activate")


def build(directory: Path) -> Path:
    """Make the environment.

    Args:
        directory: Where; it may not exist.

    Returns:
        Its bin directory.
    """
    libraries = Path(sysconfig.get_path("purelib"))
    assert not (libraries / PROJECT).exists(), f"install {PROJECT} with pip install -e: pods would see it"
    venv.EnvBuilder(symlinks=True, with_pip=False).create(directory)
    own = directory / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    (own / "libraries.pth").write_text(f"{libraries}\n")
    programs = directory / "bin"
    for script in Path(sys.executable).parent.iterdir():
        if not script.name.startswith(_OWN) and not (programs / script.name).exists():
            _copy(script, programs / script.name, programs / "python")
    return programs


def _copy(script: Path, copy: Path, python: Path) -> None:
    """A console script for another interpreter; what is no script (ninja) is linked."""
    content = script.read_bytes() if script.is_file() else b""
    first, _, rest = content.partition(b"\n")
    if first.startswith(b"#!") and b"python" in first:
        copy.write_bytes(b"#!" + os.fsencode(python) + b"\n" + rest)
        copy.chmod(0o755)
    else:
        copy.symlink_to(script)
