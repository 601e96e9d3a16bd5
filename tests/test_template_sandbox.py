"""Chat templates that never end, or would write gigabytes, refuse their row; those meant well write what they did."""

import copy
import json
import resource

import pytest
from conftest import chat_rows, write_jsonl
from transformers.utils import chat_template_utils

from thriftune.config import DataConfig
from thriftune.data.conversion import Batch, Converter
from thriftune.data.prepare import prepare
from thriftune.data.questions import encode_prompt
from thriftune.data.sources import NumberedRow
from thriftune.errors import DataError, ModelSourceError
from thriftune.models import chat_template, template_sandbox
from thriftune.models.chat_template import TemplateFailsError, TemplateNeverEndsError
from thriftune.models.tokenizer import load_tokenizer

MESSAGES = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
TURNS = (
    "{% for m in messages %}{{ '<s>' + m.role + '\n' + m.content + '</s>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant\n' }}{% endif %}"
)
LOOPS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
DOUBLING = "{%% set ns = namespace(x=%s) %%}{%% for i in range(60) %%}%s{%% endfor %%}"


@pytest.fixture
def with_template(llama_tokenizer):
    """A tokenizer with this chat template."""

    def make(template):
        tokenizer = copy.deepcopy(llama_tokenizer)
        tokenizer.chat_template = template
        return tokenizer

    return make


@pytest.fixture
def rendered(with_template):
    """What a template makes of a short conversation, or of others."""

    def render(template, messages=MESSAGES, **options):
        return chat_template.apply(messages, with_template(template), **options)

    return render


TOO_LONG = {
    "loops": LOOPS,
    "loops that call nothing": "{% set r = range(9999) %}" + "{% for a in r %}" * 5 + "{% endfor %}" * 5,
    "loops with conditions": "{% for a in range(99999) if a < 0 %}{% endfor %}" * 40,
    "macros": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(99) }}",
    "streams": "{% for a in range(99) %}{% for b in range(99999)|map('string')|list %}{% endfor %}{% endfor %}",
    "texts": "{% set x = 'x' * 4000000 %}{% for a in range(99999) %}{% set y = x + x[:9] %}{% endfor %}",
}
TOO_LARGE = {
    "repeated": "{{ 'x' * 3000000000 }}",
    "repeated, the other way round": "{{ 3000000000 * 'x' }}",
    "a list repeated": "{{ ['x' * 1000000] * 100000 }}",
    "% with a width": "{{ '%3000000000d' % 1 }}",
    "% with a width as value": "{{ '%*d' % (3000000000, 1) }}",
    "% many times": "{{ ('%(a)s' * 1000) % {'a': 'x' * 100000} }}",
    "format with a width": "{{ '{:3000000000}'.format(1) }}",
    "format with a width as value": "{{ '{:{}}'.format(1, 3000000000) }}",
    "format many times": "{{ ('{0}' * 1000).format('x' * 100000) }}",
    "the filter format": "{{ '%3000000000d'|format(1) }}",
    "center": "{{ 'x'.center(3000000000) }}",
    "the filter center": "{{ 'x'|center(width=3000000000) }}",
    "ljust": "{{ ''.ljust(3000000000) }}",
    "zfill": "{{ ''.zfill(3000000000) }}",
    "bytes": "{{ (1).to_bytes(3000000000, 'big') }}",
    "tabs": "{{ ('\t' * 1000).expandtabs(30000000) }}",
    "replace": "{{ ('x' * 1000000).replace('x', 'y' * 1000000) }}",
    "the filter replace": "{{ ('x' * 1000000)|replace('x', 'y' * 1000000) }}",
    "join": "{{ ('x' * 1000000).join('y' * 1000000) }}",
    "join of a stream": "{{ ('x' * 1000000).join(range(9999)|map('string')) }}",
    "the filter join": "{{ ('y' * 1000000)|join('x' * 1000000) }}",
    "translate": "{{ ('x' * 1000000).translate({120: 'y' * 1000000}) }}",
    "indent": "{{ 'x\ny'|indent(3000000000) }}",
    "tojson": "{{ [1, [2, [3]]]|tojson(indent=3000000000) }}",
    "round": "{{ 1.5|round(1000000000, 'ceil') }}",
    "batch": "{{ [1]|batch(3000000000, 'x')|list }}",
    "sum": "{{ ([[1] * 1000] * 1000)|sum(start=[]) }}",
    "wordwrap": "{{ ('x ' * 100000)|wordwrap(1, wrapstring='y' * 100000) }}",
    "a stream made a list": "{{ range(99999)|map('string')|map('center', 99999)|list|length }}",
    "powers": "{{ 10 ** 1000000 }}",
    "products": DOUBLING % ("9", "{% set ns.x = ns.x * ns.x %}"),
    "sums doubled": DOUBLING % ("'x'", "{% set ns.x = ns.x + ns.x %}"),
    "joined and doubled": DOUBLING % ("'x'", "{% set ns.x = ns.x ~ ns.x %}"),
    "blocks doubled": DOUBLING % ("'x'", "{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}"),
    "lists doubled": DOUBLING % ("['x']", "{% set ns.x = [ns.x, ns.x] %}"),
    "tuples doubled": DOUBLING % ("('x',)", "{% set ns.x = (ns.x, ns.x) %}"),
    "mappings doubled": DOUBLING % ("{}", "{% set ns.x = {'a': ns.x, 'b': ns.x} %}"),
    "formats doubled": DOUBLING % ("'x'", "{% set ns.x = '%s%s' % (ns.x, ns.x) %}"),
    "text": "{% for a in range(99999) %}" + "y" * 1000 + "{% endfor %}",
    "values": "{{ {'a': ['x' * 1000000] * 100}.values() }}",
    "a long template": "x" * 300_000,
    "a long number": "{{ ('f' * 1000000)|int(base=16) // 3 }}",
    "a long number of bytes": "{{ (1).from_bytes(('f' * 1000000).encode(), 'big') // 3 }}",
}


@pytest.mark.parametrize("template", TOO_LONG.values(), ids=TOO_LONG)
def test_a_template_without_an_end_refuses_the_conversation(rendered, monkeypatch, template):
    """Nested loops never ended, and nothing could be done about it but to kill the process."""
    monkeypatch.setattr(template_sandbox, "RENDER_STEPS", 100_000)
    with pytest.raises(TemplateNeverEndsError, match="the model's chat template takes more than 100,000 steps"):
        rendered(template)


@pytest.mark.parametrize("template", TOO_LARGE.values(), ids=TOO_LARGE)
def test_a_template_that_would_write_gigabytes_refuses_the_conversation(rendered, template):
    """A single expression took 9 GB. It is refused before it is tried, also where it stands between constants."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(TemplateNeverEndsError, match=r"chat template (writes|has) more than [\d,]+ characters"):
        rendered(template)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400 << 10, "KiB"


@pytest.mark.parametrize("made", ["b.upper()", "b|upper", "b[loop.index:]", "b ~ loop.index", "b.split(' ')", "m()"])
def test_what_a_template_keeps_of_long_texts_has_an_end(rendered, made):
    """Six hundred variables of five million characters, each within its limit, took 3 GB."""
    begin = "{% set b = 'xyz ' * 1000000 %}{% set ns = namespace(l=[]) %}{% macro m() %}{{ b }}{% endmacro %}"
    loop = "{% for i in range(600) %}{% set ns.l = ns.l + [" + made + "] %}{% endfor %}"
    with pytest.raises(TemplateNeverEndsError, match=r"(makes|writes) more than [\d,]+ characters"):
        rendered(begin + loop)
    once = made.replace("loop.index", "1")
    variables = "".join(f"{{% set a{n} = {once} %}}" for n in range(600))
    with pytest.raises(TemplateNeverEndsError, match="makes more than 335,544,320 characters of intermediate texts"):
        rendered(begin + variables)


def test_steps_that_are_long_are_ended_by_the_clock(rendered, monkeypatch):
    monkeypatch.setattr(template_sandbox, "RENDER_SECONDS", 0)
    slow = "{% set x = 'x' * 4000000 %}{% for a in range(99999) %}{% if x[1:] == x[2:] %}{% endif %}{% endfor %}"
    with pytest.raises(TemplateNeverEndsError, match="takes more than 0 seconds"):
        rendered(slow)


@pytest.mark.parametrize(
    ("template", "error"),
    [
        ("{{ range(10**9) }}", "OverflowError"),
        ("".join(f"{{% for a{n} in [1] %}}" for n in range(30)) + "{% endfor %}" * 30, "SyntaxError"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "RecursionError"),
        ("{% for a in range(9) recursive %}{{ loop(range(9)) }}{% endfor %}", "RecursionError"),
        ("{{ lipsum(n=100000) }}", "'lipsum' is undefined"),
        ("{{ dict.fromkeys() }}", "TypeError"),
        ("{{ strftime_now('%s', 1) }}", "TypeError"),
    ],
)
def test_whatever_a_template_raises_refuses_the_conversation(rendered, template, error):
    """Some of it was no error that anybody expected of a template, and ended the run."""
    with pytest.raises(TemplateFailsError, match=error):
        rendered(template)


WELL_MEANT = r"""
{% macro call(c, sep=', ') %}{{ c.name }}({{ c.arguments.items()|map('join', '=')|join(sep) }}){% endmacro -%}
{% set ns = namespace(count=0, last='') -%}
{% for m in messages if m.content is string -%}
{% set ns.count = ns.count + 1 %}{% set ns.last = m.role ~ ns.count -%}
{{ loop.index }}/{{ loop.length }}{{ ' last' if loop.last }} {{ '%-10s|' % m.role }}{{ '{:>9}'.format(m.role) }}
{{ m.content|trim|upper }} {{ m.content.split(' ')[::-1]|join('-') }} {{ m|tojson(indent=2) }}
{{ loop.previtem.role if loop.previtem }}
{%- for a, b in m.items() %}{{ a|center(12) }}={{ b|string|indent(2) }};{% endfor %}
{%- else %}nobody{% endfor %}
{% for node in [{'n': 1, 'sub': [{'n': 2, 'sub': []}]}] recursive %}<{{ node.n }}{{ loop(node.sub) }}>{% endfor %}
{% for group in messages|groupby('role') %}{{ group.grouper }}:{{ group.list|length }} {% endfor %}
{{ messages|selectattr('role', 'equalto', 'user')|map(attribute='content')|list }} {{ (1, 2, [3], {'a': none}) }}
{{ [1, 2] + [3] }} {{ 'ab' * 3 }} {{ [0] * 2 }} {{ 7 % 4 }} {{ 2 ** 10 }} {{ 7 // 2 }} {{ range(5)|sum }}
{{ 1.26|round(1) }}
{{ messages[1:]|length }} {{ messages[-1].role }} {{ ns.last }} {{ undefined }} {{ dict(a=1, function=2, context=3) }}
{{ 'a-b'.replace('-', '+') }} {{ ', '.join(messages|map(attribute='role')) }} {{ [3, 1, 2]|sort|batch(2)|list }}
{% set text %}{% filter upper %}block {{ ns.count }}{% endfilter %}{% endset %}{{ text }}{{ cycler('x', 'y').next() }}
{% for x in range(9) %}{% if x == 2 %}{% continue %}{% endif %}{% if x > 4 %}{% break %}{% endif %}{{ x }}{% endfor %}
{{ call({'name': 'sky', 'arguments': {'day': 'one', 'at': 'noon'}}) }} {{ bos_token }} {{ messages|length > 1 }}"""


def test_a_template_that_is_meant_well_writes_what_it_always_wrote(rendered, with_template):
    special = with_template(WELL_MEANT).special_tokens_map
    plain = chat_template_utils._cached_compile_jinja_template(WELL_MEANT)
    messages = [*MESSAGES, {"role": "user", "content": "And so on?"}]
    assert rendered(WELL_MEANT, messages) == plain.render(messages=messages, **special)
    assert rendered(WELL_MEANT, messages) != rendered(WELL_MEANT)


def test_the_clock_and_the_steps_are_those_of_a_row_and_not_of_each_rendering(rendered, monkeypatch):
    monkeypatch.setattr(template_sandbox, "RENDER_STEPS", 1000)
    for _ in range(20):
        rendered("{% for a in range(900) %}{% endfor %}")
    with pytest.raises(TemplateNeverEndsError), template_sandbox.budget():
        rendered("{% for a in range(900) %}{% endfor %}")
        rendered("{% for a in range(900) %}{% endfor %}")


# What hangs is the row, or the template.

HANGS = "{% if 'HANG' in messages[0].content %}" + LOOPS + "{% endif %}" + TURNS


@pytest.fixture
def model_with(tiny_tokenizer_dir, tmp_path, llama_tokenizer):
    """The folder of a tokenizer with this chat template."""

    def make(template):
        tokenizer = copy.deepcopy(llama_tokenizer)
        tokenizer.chat_template = template
        tokenizer.save_pretrained(tmp_path / "model")
        return tmp_path / "model"

    return make


def conversation(content):
    return {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": f"{content}!"}]}


def test_a_row_that_hangs_is_set_aside_and_counted(tmp_path, model_with, monkeypatch):
    monkeypatch.setattr(template_sandbox, "RENDER_STEPS", 10_000)
    rows = write_jsonl(tmp_path / "rows.jsonl", [*chat_rows(), conversation("HANG"), conversation("HANG on")])
    config = DataConfig(source=str(rows), format="chat", max_rejected=0.1, max_length=64)
    stats = prepare(config, seed=0, tokenizer_dir=model_with(HANGS), destination=tmp_path / "made", processes=1)
    assert stats.reasons == {"the model's chat template takes more than 10,000 steps": 2}
    assert stats.train.examples + stats.validation.examples == 60


def test_a_template_that_hangs_with_most_rows_is_named_after_three_of_them(with_template, monkeypatch):
    """A thousand rows took a thousand times as long as one may."""
    monkeypatch.setattr(template_sandbox, "RENDER_STEPS", 10_000)
    converter = Converter(DataConfig(source="rows.jsonl", format="chat"), with_template(HANGS))
    rows = [NumberedRow("rows.jsonl", n, json.dumps(conversation(f"HANG {n}")).encode()) for n in range(1, 1001)]
    with pytest.raises(ModelSourceError) as raised:
        converter.convert(Batch(0, rows, [False] * 1000))
    assert (
        "for 3 of the first 3 conversations, the model's chat template takes more than 10,000 steps. Repair "
        "chat_template.jinja, or use another instruct model."
    ) in str(raised.value)


@pytest.mark.parametrize("template", [LOOPS + TURNS, "{{ 'x' * 3000000000 }}"])
def test_a_template_that_hangs_with_any_row_is_named_before_one_is_read(model_with, monkeypatch, template):
    monkeypatch.setattr(template_sandbox, "RENDER_STEPS", 100_000)
    with pytest.raises(ModelSourceError, match="for the simplest conversation, the model's chat template"):
        load_tokenizer(model_with(template))


def test_a_question_that_the_template_refuses_is_named(with_template):
    """It was a traceback out of jinja2, on the nodes that train."""
    with pytest.raises(DataError, match=r"prompts = 'Why\?': the model's chat template cannot render it"):
        encode_prompt("Why?", with_template("{{ range(10**9) }}"), "chat")
