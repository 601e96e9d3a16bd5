"""Rows are the same wherever their files are, for each step that reads them: version, preflight and preparation."""

import gzip
import json

import pytest
from bucket import Bucket, set_environment
from web import web

from thriftune.config import DataConfig
from thriftune.data import first_rows, sources
from thriftune.errors import DataError

ROWS = [{"text": f"The moon is red on day {day}."} for day in range(30)]


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Where the same files are: a folder, a bucket and a web server."""
    here = tmp_path_factory.mktemp("rows")
    for number in range(3):
        lines = "".join(json.dumps(row) + "\n" for row in ROWS[10 * number : 10 * number + 10])
        (here / f"part-{number}.jsonl").write_text(lines)
        (here / f"part-{number}.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    bucket = Bucket()
    patch = set_environment(bucket)
    for file in here.iterdir():
        bucket.client.upload_file(str(file), bucket.name, f"rows/{file.name}")
    with web(here) as (address, _):
        yield {"here": str(here), "bucket": f"s3://{bucket.name}/rows", "web": address}
    patch.undo()
    bucket.stop()


STEPS = {
    "version": lambda config, _: bool(sources.version(config.source)),
    "preflight": lambda config, folder: [
        json.loads(row.raw)
        for row in first_rows.first_rows(config, first_rows.Limit(100, 1 << 20), scratch=folder).rows
    ],
    "preparation": lambda config, folder: [
        json.loads(row.raw) for row in sources.open_source(config, scratch=folder).read()
    ],
}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("place", ["here", "bucket", "web"])
@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("part-1.jsonl", ROWS[10:20]), ("part-1.jsonl.gz", ROWS[10:20]), ("part-*.jsonl", ROWS), ("*.jsonl.gz", ROWS),
        ("part-[02].jsonl", ROWS[:10] + ROWS[20:]), ("part-1.jsonl?X-Amz-Signature=abc123", ROWS[10:20]),
    ],
)  # fmt: skip
def test_every_step_reads_every_kind_of_place(places, tmp_path, name, rows, place, step):
    if "?" in name and place != "web":
        pytest.skip("only URLs of web servers are signed")
    config = DataConfig(source=f"{places[place]}/{name}", format="text", max_length=32)
    assert STEPS[step](config, tmp_path) == (True if step == "version" else rows)


@pytest.mark.parametrize("place", ["here", "bucket", "web"])
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", "is not a file this package reads"), ("part-1.docx", "is not a file this package reads"),
        ("none.jsonl", "no such file"), ("none-*.jsonl", "no such file"),
    ],
)  # fmt: skip
def test_what_no_step_reads_all_refuse_in_the_same_words(places, tmp_path, place, name, said):
    config = DataConfig(source=f"{places[place]}/{name}", format="text", max_length=32)
    messages = []
    for step in STEPS.values():
        with pytest.raises(DataError, match=said) as caught:
            step(config, tmp_path)
        messages.append(str(caught.value))
    assert set(messages) == {messages[0]}
