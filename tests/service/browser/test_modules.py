"""The page's pure modules: times, links and filters, in the browser that runs them."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture(scope="module")
def modules(chromium: Any, live_address: str) -> Any:
    """A page whose ``use(file, code)`` evaluates code over a module ``m``."""
    context = chromium.new_context()
    page = context.new_page()
    page.goto(live_address)

    def use(name: str, expression: str) -> Any:
        return page.evaluate(f"async () => {{ const m = await import('/static/{name}.js'); "
                             f"return ({expression}); }}")  # fmt: skip

    yield use
    context.close()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00.0"), (9.99, "0:09.9"), (59.96, "0:59.9"), (62.35, "1:02.3"), (3723.5, "1:02:03.5")],
)
def test_a_time_is_cut_off_and_not_rounded(modules: Any, seconds: float, text: str) -> None:
    assert modules("times", f"m.clock({seconds})") == text


def test_an_unknown_time_is_a_question_mark(modules: Any) -> None:
    assert modules("times", "[m.clock(null), m.clock(NaN)]") == ["?", "?"]
    assert modules("times", "m.clockRange(1, null)") == "from 0:01.0"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("12.5", 12.5), ("12,5", 12.5), ("1:02.5", 62.5), ("1:02:03", 3723), ("90", 90), ("4 s", 4)],
)
def test_times_are_read(modules: Any, text: str, seconds: float) -> None:
    assert modules("times", f"m.parseTime({text!r})") == seconds


@pytest.mark.parametrize("text", ["", "x", "-3", "1:60", "1:2:3:4", "1e3", "1:", "Infinity"])
def test_what_is_no_time_is_null(modules: Any, text: str) -> None:
    assert modules("times", f"m.parseTime({text!r})") is None


def test_an_address_restores_its_state(modules: Any) -> None:
    state = """{...m.DEFAULTS, q: "a & b", like: "h", likeSegment: 3, group: "moment", k: 7,
        weight: 0.25, within: "x/ü", fromS: 0, toS: 12.5, minConfidence: 0.5, deduplicate: true,
        filters: [{field: "source", op: "eq", value: "a~b&c"}], where: "x = 'y'",
        open: {handle: "h", startS: 1.234, endS: null, segment: 0}}"""
    assert modules(
        "links", f"JSON.stringify(m.readAddress(m.writeAddress({state}).slice(1))) === "
        f"JSON.stringify({state})"
    )  # fmt: skip


@pytest.mark.parametrize(
    "search",
    ["?k=x&w=7&from=-1&conf=2", "?k=1e99", "?f=&f=~&s=1", "?group=%00&t=5", "?k=&offset=-4"],
)
def test_what_an_address_should_not_hold_is_left_out(modules: Any, search: str) -> None:
    assert modules("links", f"m.writeAddress(m.readAddress({search!r}))") == "/"


@pytest.mark.parametrize(
    ("field", "op", "value", "kind", "expression"),
    [
        ("source", "eq", "it's", "texts", "source = 'it''s'"),
        ("source", "has", "50%_\\", "texts", "source ilike '%50\\%\\_\\\\%'"),
        ("source", "in", "a, b,", "texts", "source in ('a', 'b')"),
        ("like", "eq", "x", "texts", "\"like\" = 'x'"),
        ("year", "ge", "2020", "whole numbers", "year >= 2020"),
        ("quality", "lt", "0,5", "decimal numbers", "quality < 0.5"),
        ("outdoor", "yes", "", "truth values", "outdoor = true"),
        ("source", "none", "", "texts", "source is null"),
    ],
)
def test_a_filter_becomes_an_expression_that_the_service_reads(
    modules: Any, field: str, op: str, value: str, kind: str, expression: str
) -> None:
    from xclip_deploy.runtime.gallery.filters import parse_filter

    arguments = f"{{field: {field!r}, op: {op!r}, value: {value!r}}}, {kind!r}"
    assert modules("filters", f"m.condition({arguments})") == expression
    types = {"texts": str, "whole numbers": int, "decimal numbers": float, "truth values": bool}
    parse_filter(expression, {field: types[kind]})


@pytest.mark.parametrize(
    ("op", "value", "kind"),
    [("ge", "x", "whole numbers"), ("ge", "1.5", "whole numbers"), ("eq", " ", "texts"),
     ("in", ",", "texts"), ("lt", "1 or true", "decimal numbers")],
)  # fmt: skip
def test_a_value_that_cannot_be_is_named(modules: Any, op: str, value: str, kind: str) -> None:
    arguments = f"{{field: 'f', op: {op!r}, value: {value!r}}}, {kind!r}"
    call = f"(() => {{ try {{ return m.condition({arguments}); }} catch (e) {{ return e; }} }})()"
    assert modules("filters", f"{call} instanceof Error")


def test_ends_of_a_cut_are_checked(modules: Any) -> None:
    assert modules("cutting", "m.faultIn(1, 2, 10)") is None
    assert "after the start" in modules("cutting", "m.faultIn(2, 2, 10)")
    assert "ends at 0:10" in modules("cutting", "m.faultIn(11, 12, 10)")
    assert "Give times" in modules("cutting", "m.faultIn(null, 12, 10)")
