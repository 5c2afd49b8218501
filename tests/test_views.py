import pytest

from selfkd.errors import DataError, UsageError
from selfkd.records import Prompt
from selfkd.views import (
    affix,
    context,
    fewshot,
    fill,
    hint,
    placeholders,
    plain,
    principles,
    system,
)

QUESTION = Prompt.of("1 + 2 = ?", answer="3")
SHOTS = [("1 + 1 = ?", "2"), ("2 + 2 = ?", "4")]


def chat(*turns: str, answer: str | None = "3") -> Prompt:
    """A prompt from `role: text` lines."""
    split = (turn.partition(": ") for turn in turns)
    return Prompt.of([{"role": role, "content": text} for role, _, text in split], answer)


def lines(messages: tuple[dict[str, str], ...]) -> list[str]:
    return [f"{m['role']}: {m['content']}" for m in messages]


def test_plain_is_the_prompt() -> None:
    assert plain(QUESTION) == QUESTION.messages
    assert plain.name == "plain"


def test_fewshot_puts_shots_after_the_system_message_and_before_earlier_turns() -> None:
    prompt = chat("system: be brief", "user: hi", "assistant: hello", "user: 1 + 2 = ?")
    assert lines(fewshot(SHOTS[:1])(prompt)) == [
        "system: be brief",
        "user: 1 + 1 = ?",
        "assistant: 2",
        "user: hi",
        "assistant: hello",
        "user: 1 + 2 = ?",
    ]


def test_no_shots_are_plain_and_plain_changes_no_composition() -> None:
    assert fewshot([]) is plain
    assert (fewshot([]) | hint()).name == hint().name == (hint() | plain).name


def test_hint_appends_the_answer_to_the_last_user_message() -> None:
    prompt = chat("user: hi", "assistant: hello", "user: 1 + 2 = ?")
    assert lines(hint(" ({answer})")(prompt)) == [
        "user: hi",
        "assistant: hello",
        "user: 1 + 2 = ? (3)",
    ]


def test_braces_in_data_do_no_harm() -> None:
    prompt = Prompt.of("what is {answer}?", answer="{answer} {0} {{x}}")
    (message,) = hint(r" \boxed{{{answer}}}")(prompt)
    assert message["content"] == r"what is {answer}? \boxed{{answer} {0} {{x}}}"


def test_context_fills_columns_in_after_the_question() -> None:
    prompt = Prompt.of("1 + 2 = ?", answer="3", feedback="count {again}")
    shown = context(" ({feedback}; {answer})")
    assert lines(shown(prompt)) == ["user: 1 + 2 = ? (count {again}; 3)"]
    assert shown.name == context(" ({feedback}; {answer})").name != context(" ({answer})").name
    with pytest.raises(DataError, match="has no 'feedback' to fill in"):
        shown(QUESTION)
    with pytest.raises(UsageError, match="names no column"):
        context("Think again.")


@pytest.mark.parametrize("template", ["no place", "{answr}", "{answer} in {x}"])
def test_a_hint_without_the_answer_is_refused(template: str) -> None:
    with pytest.raises(UsageError, match=r"must name \{answer\}"):
        hint(template)


def test_a_hint_for_a_prompt_without_answer_names_the_prompt() -> None:
    prompt = Prompt.of("1 + 2 = ?")
    with pytest.raises(DataError, match=prompt.id):
        hint()(prompt)


def test_a_prompt_without_user_message_cannot_be_edited() -> None:
    with pytest.raises(DataError, match="no user message"):
        affix("x")(chat("system: alone"))


def test_affix_at_either_end() -> None:
    assert lines(affix(" (rudely)")(QUESTION)) == ["user: 1 + 2 = ? (rudely)"]
    assert lines(affix("Rudely: ", where="start")(QUESTION)) == ["user: Rudely: 1 + 2 = ?"]


def test_system_replaces_and_principles_go_before_the_own_system_message() -> None:
    prompt = chat("system: own", "user: hi")
    assert lines(system("new")(prompt)) == ["system: new", "user: hi"]
    assert lines(principles("rules")(prompt)) == ["system: rules\n\nown", "user: hi"]
    assert lines(principles("rules")(QUESTION)) == ["system: rules", "user: 1 + 2 = ?"]


def test_views_compose_from_left_to_right() -> None:
    view = system("s") | fewshot(SHOTS[:1]) | affix("?") | affix("!")
    assert lines(view(QUESTION)) == [
        "system: s",
        "user: 1 + 1 = ?",
        "assistant: 2",
        "user: 1 + 2 = ??!",
    ]
    assert view.name.count(" | ") == 3
    assert view.name != (system("s") | fewshot(SHOTS[:1]) | affix("!") | affix("?")).name


def test_names_identify_texts() -> None:
    views = [
        fewshot(SHOTS),
        fewshot(SHOTS[::-1]),
        fewshot([("1 + 1 = ?", "2"), ("2 + 2 = ?", "5")]),
        affix("a"),
        affix("a", where="start"),
        affix("b"),
        system("a"),
        principles("a"),
        hint(),
        hint("{answer}"),
    ]
    assert len({v.name for v in views}) == len(views)
    assert fewshot(SHOTS).name == fewshot(tuple(SHOTS)).name


def test_views_leave_the_prompt_as_it_was() -> None:
    prompt = chat("system: own", "user: hi")
    before = lines(prompt.messages)
    (principles("p") | system("s") | fewshot(SHOTS) | hint() | affix("x"))(prompt)
    assert lines(prompt.messages) == before


def test_fill_is_one_pass_and_doubled_braces_stand_for_themselves() -> None:
    values = {"a": "{b}", "b": "{a}", "two words": "w"}
    assert fill("{a}{b} {{a}} {} {two words}", values) == "{b}{a} {a} {} w"
    assert placeholders("{a} {{b}} {} {two words}") == {"a", "two words"}
