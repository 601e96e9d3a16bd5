"""Conversations as a chat template writes them: where the assistant's turns are, and which templates are refused."""

import copy

import pytest

from thriftune.data.chat import read_messages
from thriftune.data.examples import RowError
from thriftune.data.rendering import render

SYSTEM = {"role": "system", "content": "Be short."}
USER = {"role": "user", "content": "Why?"}
ANSWER = {"role": "assistant", "content": "So."}
CALL = {"role": "assistant", "tool_calls": [{"function": {"name": "sky", "arguments": {"day": 1}}}]}
RESULT = {"role": "tool", "content": "blue"}
TOOLS = [{"type": "function", "function": {"name": "sky", "description": "Its colour."}}]

CHATML = (
    "{% for m in messages %}{{ '<s>' + m['role'] + '\n' + m['content'] + '</s>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant\n' }}{% endif %}"
)
CHATML_WITH_TOOLS = (
    "{% if tools %}{{ '<s>tools\n' + (tools | tojson) + '</s>\n' }}{% endif %}"
    "{% for m in messages %}{{ '<s>' + m['role'] + '\n' + m['content'] }}"
    "{% for call in m.tool_calls %}{{ '[' + call.function.name + ' ' + (call.function.arguments | tojson) + ']' }}"
    "{% endfor %}{{ '</s>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant\n' }}{% endif %}"
)


@pytest.fixture
def rendered(llama_tokenizer):
    """Read messages and apply a template to them."""

    def make(template, messages, tools=None):
        tokenizer = copy.deepcopy(llama_tokenizer)
        tokenizer.chat_template = template
        return render(read_messages(messages, "messages", tools), tokenizer)

    return make


def answers(text):
    return [text.text[start:end] for start, end in text.answers]


def test_each_turn_of_the_assistant_is_marked_up_to_its_closing_token(rendered):
    text = rendered(CHATML, [SYSTEM, USER, ANSWER, {"role": "user", "content": "So."}, {**ANSWER, "content": " No\n"}])
    assert text.text == (
        "<s>system\nBe short.</s>\n<s>user\nWhy?</s>\n<s>assistant\nSo.</s>\n"
        "<s>user\nSo.</s>\n<s>assistant\n No\n</s>\n"
    )
    assert answers(text) == ["So.</s>", " No\n</s>"]
    assert text.question == "So."
    assert text.is_rendered


def test_calls_are_marked_and_what_tools_return_is_not(rendered):
    text = rendered(CHATML_WITH_TOOLS, [USER, CALL, RESULT, RESULT, ANSWER], TOOLS)
    assert text.text == (
        '<s>tools\n[{"type": "function", "function": {"name": "sky", "description": "Its colour."}}]</s>\n'
        '<s>user\nWhy?</s>\n<s>assistant\n[sky {"day": 1}]</s>\n<s>tool\nblue</s>\n<s>tool\nblue</s>\n'
        "<s>assistant\nSo.</s>\n"
    )
    assert answers(text) == ['[sky {"day": 1}]</s>', "So.</s>"]


def test_arguments_in_json_text_are_rendered_as_the_object(rendered):
    """A template that writes arguments with tojson would write OpenAI's JSON text as a quoted string."""
    call = {"function": {"name": "sky", "arguments": '{"day":1,"at":"noon"}'}}
    text = rendered(CHATML_WITH_TOOLS, [USER, {"role": "assistant", "content": "Hm. ", "tool_calls": [call]}])
    assert answers(text) == ['Hm. [sky {"day": 1, "at": "noon"}]</s>']


def test_a_result_may_be_rendered_as_json(rendered):
    """Llama 3.1's template writes results with tojson, and was once said to leave out those with quotes in them."""
    template = CHATML_WITH_TOOLS.replace("m['content']", "(m.content | tojson if m.role == 'tool' else m.content)")
    text = rendered(template, [USER, CALL, {"role": "tool", "content": '{"sky": "blü"}\n'}, ANSWER])
    assert text.text.splitlines()[4:6] == ["<s>tool", r'"{\"sky\": \"blü\"}\n"</s>']
    assert answers(text) == ['[sky {"day": 1}]</s>', "So.</s>"]


@pytest.mark.parametrize(
    ("left_out", "messages", "reason"),
    [
        ("system", [SYSTEM, USER, ANSWER], "message 1 (system)"),
        ("user", [USER, ANSWER], "message 1 (user)"),
        ("tool", [USER, CALL, RESULT, ANSWER], "message 3 (tool)"),
        ("assistant", [USER, ANSWER], "message 2 (assistant)"),
    ],
)
def test_a_template_that_leaves_out_a_message_is_refused(rendered, left_out, messages, reason):
    template = CHATML_WITH_TOOLS.replace("in messages %}", f"in messages if m.role != '{left_out}' %}}")
    with pytest.raises(RowError) as raised:
        rendered(template, messages)
    assert str(raised.value) == f"the model's chat template leaves out the content of {reason}"


def test_a_template_that_knows_no_calls_is_refused(rendered):
    with pytest.raises(RowError, match=r"leaves out the content of message 2 \(assistant\)"):
        rendered(CHATML, [USER, CALL])
    with pytest.raises(RowError, match=r"leaves out the content of message 2 \(assistant\)"):
        rendered(CHATML, [USER, {**CALL, "content": "I look."}, RESULT, ANSWER])


GENERATION = (
    "{% for m in messages %}{{ m.role + ': ' }}{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content + '</s>\n' }}{% endgeneration %}"
    "{% else %}{{ m.content + '\n' }}{% endif %}{% endfor %}"
)


@pytest.mark.parametrize("opening", ["{% generation %}", "{%- generation -%}", "{%generation%}"])
def test_a_template_that_marks_the_turns_itself_is_believed(rendered, opening):
    template = GENERATION.replace("{% generation %}", opening).replace("m.content + '</s>", "'(' + m.content + ')</s>")
    text = rendered(template, [USER, ANSWER, USER, {**ANSWER, "content": "No é."}])
    assert text.text == "user: Why?\nassistant: (So.)</s>\nuser: Why?\nassistant: (No é.)</s>\n"
    # White space after the closing token is not the model's to say.
    assert answers(text) == ["(So.)</s>", "(No é.)</s>"]
    assert text.is_rendered


def test_of_several_templates_each_is_asked_itself_whether_it_marks_turns(rendered):
    """One that marks them made every row of the others one of no turns, which was refused."""
    marking = CHATML_WITH_TOOLS.replace("{{ '<s>' + m", "{% generation %}{% endgeneration %}{{ '<s>' + m")
    text = rendered({"default": CHATML, "tool_use": marking}, [USER, ANSWER])
    assert answers(text) == ["So.</s>"]


def test_marked_turns_may_change_when_later_ones_come(rendered):
    """Templates of reasoning models drop earlier thoughts; where they say what to train on, nothing has to be found."""
    template = GENERATION.replace("m.content + '</s>", "m.content + ('!' if loop.last else '') + '</s>")
    assert answers(rendered(template, [USER, ANSWER, USER, ANSWER])) == ["So.</s>", "So.!</s>"]


@pytest.mark.parametrize(
    "template",
    [
        # The last message differs.
        "{% for m in messages %}{{ m.content + ('!' if loop.last else '.') }}{% endfor %}",
        # The prompt for an answer is not how the answer starts.
        "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}{{ 'Answer:' }}{% endif %}",
        # How many messages there are is said first.
        "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}",
    ],
)
def test_a_template_that_rewrites_earlier_turns_is_refused(rendered, template):
    with pytest.raises(RowError, match="rewrites earlier turns|does not start an answer in"):
        rendered(template, [USER, ANSWER, USER, ANSWER])


def test_turns_of_a_template_that_drops_earlier_thoughts_are_found_by_what_they_say(rendered):
    """Qwen3's template writes thoughts into the last turn only: every longer conversation was refused."""
    thinking = (
        "{% for m in messages %}{{ '<s>' + m['role'] + '\n' }}"
        "{% if m['role'] == 'assistant' and loop.last %}{{ '(thoughts)' }}{% endif %}"
        "{{ m['content'] + '</s>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<s>assistant\n' }}{% endif %}"
    )
    messages = [USER, {**ANSWER, "content": "One."}, USER, {**ANSWER, "content": "Two."}]
    assert answers(rendered(thinking, messages)) == ["One.</s>", "(thoughts)Two.</s>"]


def test_each_turn_that_a_template_marks_ends_in_its_closing_token(rendered):
    """A second EOS was added after a turn that ends in a space, and EOS of earlier turns was not trained."""
    marking = (
        "{% for m in messages %}{{ '<s>' + m['role'] + '\n' }}"
        "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}{% endgeneration %}"
        "{% else %}{{ m['content'] }}{% endif %}{{ '</s>\n' }}{% endfor %}"
    )
    messages = [USER, {**ANSWER, "content": "One."}, USER, {**ANSWER, "content": "Two. "}]
    assert answers(rendered(marking, messages)) == ["One.</s>", "Two. </s>"]


def test_a_turn_of_weight_nothing_is_read_and_not_trained(rendered):
    """OpenAI's weight was dropped, and the turns that it keeps from being learned were learned."""
    messages = [USER, {**ANSWER, "content": "Bad.", "weight": 0}, USER, {**ANSWER, "weight": 1}]
    assert answers(rendered(CHATML, messages)) == ["So.</s>"]
    with pytest.raises(RowError, match="every turn of the assistant has weight 0"):
        rendered(CHATML, [USER, {**ANSWER, "weight": 0}])


def test_what_a_template_refuses_is_refused_with_its_own_words(rendered, llama_tokenizer):
    with pytest.raises(RowError) as raised:
        rendered(llama_tokenizer.chat_template, [SYSTEM, USER, ANSWER])
    assert str(raised.value) == (
        "the model's chat template refuses it: Conversation roles must alternate user/assistant/user/assistant/..."
    )
    assert answers(rendered(llama_tokenizer.chat_template, [USER, ANSWER])) == [" So.</s>"]


# The last four once ended the run.
@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ("{% if %}", "refuses it: Expected an expression"),
        ("{{ messages[9].content.x }}", "refuses it: list object has no element 9"),
        ("{{ ''.__class__.__mro__ }}", "refuses it: access to attribute '__class__'"),
        ("{{ 'a' + 1 }}", "cannot render it (TypeError)"),
        ("{{ ''.index('a') }}", "cannot render it (ValueError)"),
        ("{{ 1 / 0 }}", "cannot render it (ZeroDivisionError)"),
        ("{{ '{}{}'.format(1) }}", "cannot render it (IndexError)"),
        ("{{ range(1000000000) }}", "cannot render it (OverflowError)"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "cannot render it (RecursionError)"),
    ],
)
def test_a_template_that_fails_refuses_the_row(rendered, expression, reason):
    with pytest.raises(RowError) as raised:
        rendered(CHATML + expression, [USER, ANSWER])
    assert str(raised.value).startswith(f"the model's chat template {reason}")


def test_arguments_nested_too_deep_for_the_template_refuse_the_row(rendered):
    """They once ended the run with a RecursionError out of tojson."""
    deep = 1
    for _level in range(5000):
        deep = [deep]
    call = {"function": {"name": "sky", "arguments": {"at": deep}}}
    with pytest.raises(RowError, match=r"cannot render it \(RecursionError\)"):
        rendered(CHATML_WITH_TOOLS, [USER, {"role": "assistant", "tool_calls": [call]}])


def test_tools_that_the_template_ignores_are_refused(rendered):
    """They were dropped without a word, and the model learned to answer as if there were none."""
    with pytest.raises(RowError, match="chat template leaves out the tools"):
        rendered(CHATML, [USER, ANSWER], TOOLS)
    assert "Its colour." in rendered(CHATML_WITH_TOOLS, [USER, ANSWER], TOOLS).text


def test_reasoning_is_trained_on_or_refused(rendered):
    reasoned = {**ANSWER, "reasoning_content": "Because of light."}
    shows = CHATML.replace("m['content']", "(m.reasoning_content or '') + m['content']")
    assert answers(rendered(shows, [USER, reasoned])) == ["Because of light.So.</s>"]
    with pytest.raises(RowError, match=r"leaves out the content of message 2 \(assistant\)"):
        rendered(CHATML, [USER, reasoned])
