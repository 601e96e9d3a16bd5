"""JSON lists item by item, wherever the parts that are read at once end."""

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thriftune.data import json_list
from thriftune.data.readers import read_file

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


def items(text, at_once):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_list, "_CHARACTERS", at_once)
        return list(json_list.items_of_list(io.StringIO(text)))


@given(content=st.lists(values, max_size=5), at_once=st.integers(1, 9), indent=st.sampled_from([None, 2]))
def test_the_items_are_those_of_the_list_however_it_is_read(content, at_once, indent):
    assert items(json.dumps(content, indent=indent), at_once) == content


@pytest.mark.parametrize("text", ["[", "[1", "[1,", "[1 2]", "[1,]", "[,1]", "[1] 2", '["a', "[{]", "[1]]"])
@pytest.mark.parametrize("at_once", [1, 3, 100])
def test_what_is_no_list_is_an_error(text, at_once):
    with pytest.raises(ValueError, match="list|item|comma"):
        items(text, at_once)


def test_what_python_writes_is_read_as_it_is(tmp_path):
    """ijson put a question mark in the place of half a surrogate pair, and refused NaN and long numbers."""
    rows = [{"text": "done \ud83d"}, {"text": "a", "score": float("nan")}, {"text": "b", "id": 2**70}]
    file = tmp_path / "rows.json"
    file.write_text(json.dumps(rows))
    read = [row for _, row in read_file(file)]
    assert read[0] == {"text": "done \ud83d"}
    assert read[2] == {"text": "b", "id": 2**70}
    assert len(read) == 3
