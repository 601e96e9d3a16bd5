"""Pods that are forked find the image's libraries as new processes do."""

import json
from pathlib import Path

import pytest
from starting import Fresh

from cluster import image
from cluster.control_plane import warm_pods
from cluster.pods import MACHINE

# What a library keeps when it is imported: folders of the pod, and switches.
KEPT = """
import importlib, json, os, sys
from pathlib import PurePath

os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
for name in {modules}:
    importlib.import_module(name)
pod = os.path.dirname(os.getcwd())
found = {{
    f"{{module}}: {{name}}": str(value)
    for module, content in list(sys.modules.items())
    for name, value in vars(content).items()
    if isinstance(value, bool) or (isinstance(value, str | PurePath) and pod in str(value))
    if module not in ("__main__", "__mp_main__", "tempfile")
}}
print("found", json.dumps(found))
"""


@pytest.mark.faults  # every library is imported twice; needed where their versions change
def test_what_libraries_keep_is_what_they_keep_in_a_new_process(tmp_path: Path) -> None:
    programs, variables = image.build(tmp_path / "image"), {"FLYTE_AWS_ENDPOINT": "http://127.0.0.1:1"}
    script, pod = programs / "kept", tmp_path / "pod"
    script.write_text(f"#!{programs / 'python'}\n{KEPT.format(modules=image.OF_TRAINING)}")
    script.chmod(0o755)
    for part in ("home", "tmp", "work"):
        (pod / part).mkdir(parents=True)
    own = {"PATH": image.path(programs), "HOME": str(pod / "home"), "TMPDIR": str(pod / "tmp")}
    warm, found = warm_pods(programs, image.OF_TRAINING, variables, tmp_path / "warm"), []
    for starts in (warm, Fresh()):
        log = tmp_path / f"{len(found)}.log"
        process = starts.start([str(script)], {**own, **variables, **MACHINE}, pod / "work", log)
        assert process.wait() == 0, log.read_text()
        (line,) = [line for line in log.read_text().splitlines() if line.startswith("found ")]
        found.append(json.loads(line.removeprefix("found ")))
    warm.close()
    forked, fresh = found
    assert [name for name in fresh if name.startswith("huggingface_hub.constants")]
    assert forked == fresh
