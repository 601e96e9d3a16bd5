"""Generated rows and files: whatever is in them, a row is trained on, refused by its number, or counted as dropped."""

import copy
import gzip
import json
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from thriftune.config import DataConfig
from thriftune.data.conversion import SAMPLES, Batch, Converter, formats
from thriftune.data.formats import FORMATS
from thriftune.data.misnamed import cause_in
from thriftune.data.readers import count_rows, read_file
from thriftune.data.sources import NumberedRow
from thriftune.data.tokenization import IGNORED
from thriftune.errors import DataError

PATH_OR_URL = "rows.jsonl"
# It writes everything that a conversation may have, so that rows with tools come through.
CHAT_TEMPLATE = (
    "{% if tools %}{{ '<s>tools\n' + (tools | tojson) + '</s>' }}{% endif %}"
    "{% for m in messages %}{{ '<s>' + m.role + '\n' + m.content }}"
    "{% for call in m.tool_calls %}{{ call.function.name + (call.function.arguments | tojson) }}{% endfor %}"
    "{{ '</s>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<s>assistant\n' }}{% endif %}"
)
CONFIGS = {
    **{name: {"format": name} for name in FORMATS},
    "template": {"format": "template", "template": "{a}\n{b} {{{a}}}", "trained_fields": ("b",)},
    "text in blocks": {"format": "text", "packing": True},
    "renamed": {"format": "alpaca", "columns": {"instruction": "prompt", "input": "a", "output": "completion"}},
    "chat with special tokens": {"format": "chat", "special_tokens": "keep"},
    "all trained": {"format": "prompt_completion", "train_on_inputs": True, "special_tokens": "keep"},
}
fuzzed = settings(deadline=None, suppress_health_check=list(HealthCheck))


# Values: mostly what belongs into a row, with all that must not pass strewn in.

STRANGE = ("\0", "\ud83d", "\udcff", "😀", "é", "</s>", "<s>", "<pad>", "{}", "{a}", "\u2028", "\ufeff", "\r\n", "\\")
words = st.text(st.characters(min_codepoint=32, max_codepoint=0x17F, exclude_characters="<"), min_size=1, max_size=30)
words = words.map(lambda text: text if text.strip() else "hi")
texts = st.one_of(
    st.text(max_size=12),
    st.sampled_from(["", " ", "\n\t\u3000", "yes. " * 30, '{"a": 1}', '{"a": "\\ud800"}', "[", "[" * 5000, "null"]),
    st.lists(st.one_of(st.sampled_from(STRANGE), words), min_size=1, max_size=4).map("".join),
)
scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), texts)
values = st.recursive(
    scalars, lambda some: st.one_of(st.lists(some, max_size=3), st.dictionaries(texts, some, max_size=3)), max_leaves=6
)


def mostly(good, bad=values, times=8):
    """One time out of so many, something that does not belong there."""
    return st.sampled_from([good] * (times - 1) + [bad]).flatmap(lambda drawn: drawn)


said = mostly(words, st.one_of(texts, values))
arguments = mostly(
    st.dictionaries(words, said, max_size=2), st.one_of(values, st.dictionaries(words, values).map(json.dumps))
)
function = mostly(st.fixed_dictionaries({"name": words}, optional={"arguments": arguments}), times=16)
call = mostly(st.fixed_dictionaries({"function": function}, optional={"id": words}), times=16)


def message(role, content=said, **keys):
    keys = {"role": st.just(role), "content": content, **keys}
    return mostly(st.fixed_dictionaries(keys), st.fixed_dictionaries(keys, optional={"name": values, "other": values}))


messages = st.one_of(
    st.tuples(message("user"), message("assistant")),
    st.tuples(*map(message, ("system", "user", "assistant", "user", "assistant"))),
    st.tuples(
        message("user", words),
        message("assistant", mostly(st.none()), tool_calls=mostly(st.lists(call, min_size=1, max_size=2), times=16)),
        message("tool", words),
        message("assistant", words),
    ),
    st.lists(mostly(st.sampled_from(["system", "user", "assistant", "tool"]).flatmap(message)), max_size=3),
).map(list)
turns = st.one_of(
    st.tuples(said, said).map(lambda pair: [{"from": "human", "value": pair[0]}, {"from": "gpt", "value": pair[1]}]),
    st.lists(mostly(st.fixed_dictionaries({"from": said, "value": said})), max_size=3),
)
tools = st.lists(st.dictionaries(words, said, max_size=2), max_size=2)
COLUMNS = {
    "corrections": mostly(st.lists(said, min_size=1, max_size=3)),
    "messages": mostly(messages),
    "conversations": mostly(turns),
    "tools": mostly(st.one_of(st.none(), st.none(), tools, tools.map(json.dumps))),
}


def rows_of(data):
    """Rows of a format: most have all of its columns, some lack one, some are anything."""
    (row_format,) = formats(data)
    columns = {name: COLUMNS.get(name, said) for name in row_format.all_columns}
    whole = st.fixed_dictionaries(columns, optional={"other": values})
    return mostly(
        whole, st.one_of(st.fixed_dictionaries({}, optional=columns), st.dictionaries(texts, values, max_size=2))
    )


@pytest.fixture(scope="module")
def tokenizer(llama_tokenizer):
    with_tools = copy.deepcopy(llama_tokenizer)
    with_tools.chat_template = CHAT_TEMPLATE
    return with_tools


def config_of(name, max_length, long_rows):
    return DataConfig(source=PATH_OR_URL, max_length=max_length, long_rows=long_rows, **CONFIGS[name])


configs = {
    name: st.builds(
        config_of, st.just(name), st.sampled_from([2, 3, 8, 40, 1000]), st.sampled_from(["truncate", "drop", "split"])
    )
    for name in CONFIGS
}


def content_of(converted):
    return converted.table.to_pylist(), converted.rejected, Counter({k: n for k, n in converted.counts.items() if n})


def require_nothing_lost(config, tokenizer, rows, held_out):
    """Each row by itself is accounted for, and all in one batch become what they become one by one."""
    converter = Converter(config, tokenizer)
    all_pieces, all_rejected, all_counts = [], [], Counter()
    for row, is_held_out in zip(rows, held_out, strict=True):
        converted = converter.convert(Batch(0, [row], [is_held_out]))
        pieces, rejected, counts = content_of(converted)
        assert all((r.source, r.row) == (row.place, row.number) and r.reason for r in rejected)
        assert all(r.reason.isprintable() or "template" in r.reason for r in rejected)
        assert counts[is_held_out, "rows"] == 1
        trained = sum(piece["opens"] for piece in pieces)
        usable = trained + counts[is_held_out, "dropped"]
        # A row with several examples can be bad in parts; it is a bad row when nothing of it is left.
        assert counts[is_held_out, "rejected"] == (usable == 0)
        assert counts[is_held_out, "rejected_parts"] == (len(rejected) if usable else 0)
        assert usable + len(rejected) == 1 or config.format == "grammar"
        for piece in pieces:
            require_trainable(piece, config, tokenizer)
            assert piece["held_out"] == is_held_out
        assert len(converted.samples) == min(trained, SAMPLES) * is_held_out or config.format == "grammar"
        assert all(0 < len(sample["input_ids"]) <= config.max_length for sample in converted.samples.values())
        all_pieces += pieces
        all_rejected += rejected
        all_counts += counts
    assert content_of(converter.convert(Batch(0, rows, held_out))) == (all_pieces, all_rejected, all_counts)


def require_trainable(piece, config, tokenizer):
    ids, labels = piece["input_ids"], piece["labels"]
    assert len(ids) == len(labels)
    is_whole = piece["is_document"] and (piece["held_out"] or not config.packing)  # cut when it is joined with others
    assert len(ids) <= config.max_length or is_whole
    assert labels[0] == IGNORED
    assert any(label != IGNORED for label in labels)
    assert all(label in (IGNORED, token) for token, label in zip(ids, labels, strict=True))
    assert all(0 <= token < len(tokenizer) for token in ids)
    if config.special_tokens == "reject" and config.format not in ("chat", "sharegpt"):
        assert not set(ids[1:-1]) & set(tokenizer.all_special_ids), "BOS and EOS stand at the ends alone"


@pytest.mark.parametrize("name", CONFIGS)
def test_no_row_is_lost(tokenizer, name):
    @settings(fuzzed, max_examples=150)
    @given(st.data())
    def check(data):
        config = data.draw(configs[name])
        rows = data.draw(st.lists(rows_of(config), min_size=1, max_size=4))
        held_out = data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows)))
        numbered = [NumberedRow(PATH_OR_URL, number, row) for number, row in enumerate(rows, 5)]
        require_nothing_lost(config, tokenizer, numbered, held_out)

    check()


# Files.


def lines_of(config):
    rows = rows_of(config)
    as_json = rows.map(lambda row: json.dumps(row).encode())
    raw_json = rows.map(lambda row: json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass"))
    return st.one_of(
        as_json,
        as_json,
        as_json.map(lambda line: line + b"\r"),
        raw_json,
        raw_json.map(lambda line: b" " + line + b" \t"),
        st.tuples(as_json, st.integers(1, 60)).map(lambda cut: cut[0][: cut[1]]),
        st.tuples(as_json, st.binary(min_size=1, max_size=2), st.integers(0, 30)).map(
            lambda spoiled: spoiled[0][: spoiled[2]] + spoiled[1] + spoiled[0][spoiled[2] :]
        ),
        st.binary(max_size=20),
        st.sampled_from(BAD_LINES),
    )


BAD_LINES = [
    b"", b" ", b"\t\r", b"\x0b\x0c", b"\xef\xbb\xbf", b"\xef\xbb\xbf{}", b"\xff\xfe{\x00}\x00", b"\xc2\xa0",
    b"null", b"1", b"NaN", b"[]", b'"text"', b'[{"text": "a"}]', b"{}", b"{'text': 'a'}",
    b'{"text": "a"} {"text": "b"}',
    b'{"text": "a", "text": "b"}', b'{"text": NaN, "prompt": Infinity}', b'{"text": 1' + b"0" * 5000 + b"}",
    b'{"text": -1e999}', b'{"text": ' * 3000, b'{"messages": ' + b"[" * 3000 + b"]" * 3000 + b"}",
    b'{"messages": ' + b"[" * 900 + b"]" * 900 + b"}", b'{"text": "\x01"}', b'{"text": "\\u0000"}',
    b'{"text": "\\ud800"}',
]  # fmt: skip


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz"])
def test_no_line_is_lost(tokenizer, tmp_path, ending):
    file = tmp_path / f"rows{ending}"

    @settings(fuzzed, max_examples=350)
    @given(st.data())
    def check(data):
        config = data.draw(st.sampled_from(sorted(CONFIGS)).flatmap(configs.get))
        content = b"\n".join(data.draw(st.lists(lines_of(config), max_size=5))) + data.draw(
            st.sampled_from([b"", b"\n"])
        )
        if data.draw(st.booleans()):
            content = b"\xef\xbb\xbf" + content
        file.write_bytes(gzip.compress(content, 1) if ending == ".jsonl.gz" else content)
        lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
        if cause_in(content, "JSON Lines", is_whole=True):
            with pytest.raises(DataError, match="could not be read as JSON Lines: "):
                list(read_file(file))
            return
        rows = [NumberedRow(PATH_OR_URL, number, raw) for number, raw in read_file(file)]
        assert [row.number for row in rows] == [number for number, line in enumerate(lines, 1) if line.strip()]
        assert count_rows(file) == len(rows)
        require_nothing_lost(config, tokenizer, rows, [False] * len(rows))

    check()
