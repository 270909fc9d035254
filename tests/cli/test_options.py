from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memsim.asr.corpora import DATA, load_corpus
from memsim.errors import InputError
from memsim.storage.outputs import write_json


def test_the_help_of_data_names_every_corpus():
    with pytest.raises(InputError, match=r"available: [^)]*") as caught:
        load_corpus("nothing")
    known = str(caught.value).split("available: ")[1].split(")")[0]
    assert known in DATA


def test_lists_of_numbers_are_on_one_line(tmp_path):
    facts = {"errors": [0, -1, 2.5e-7], "names": ["a", "b"], "empty": [], "nested": [[1], [2, 3]], "one": {"x": [4]}}
    write_json(tmp_path / "r.json", facts)
    text = (tmp_path / "r.json").read_text()
    assert json.loads(text) == facts
    for line in ('  "errors": [0, -1, 2.5e-07],', "    [2, 3]", '    "x": [4]'):
        assert line in text.splitlines()


values = st.recursive(
    st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text() | st.booleans() | st.none(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=3),
)


@settings(deadline=None)
@given(st.dictionaries(st.text() | st.just("[\n 1,\n 2]"), values | st.just("[\n 1,\n 2]")))
def test_what_is_written_is_what_is_read(tmp_path_factory, facts):
    path = tmp_path_factory.mktemp("json") / "r.json"
    write_json(path, facts)
    assert json.loads(path.read_text()) == facts


@pytest.mark.parametrize(
    "command",
    [
        ("map", "demo-float"),
        ("eval", "demo-float", "--data", "demo"),
        ("qat", "--data", "demo", "--dev", "demo", "-o", "o.safetensors", "--init", "demo-float"),
    ],
)
def test_the_weight_bits_have_one_source(memsim, command):
    refused = memsim(*command, "--bits", "3", "--set", "adc.bits=6", "--set", "weights.bits=5")
    message = "memsim: --bits 3 --set weights.bits=5: both name weights.bits; leave one out\n"
    assert refused == (2, "", message)
