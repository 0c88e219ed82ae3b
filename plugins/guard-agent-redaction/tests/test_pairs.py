"""What is found beside a name, exactly: what is replaced, and where it begins and ends."""

from __future__ import annotations

import pytest

from guard_agent_redaction import pairs
from guard_agent_redaction.budget import Budget, BudgetError
from guard_agent_redaction.names import SensitiveNames
from guard_agent_redaction.pairs import PairRedactor, redact_bare_cookies, redact_cookie

RANDOM = "a1b2c3d4e5f6g7h8"
R = "[REDACTED]"


@pytest.fixture
def redact():
    return PairRedactor(SensitiveNames((), (), ()), Budget(10**6, 10**6)).redact


FOUND = {
    # signs
    "pin=1x": f"pin={R}",
    "pin == 1x": f"pin == {R}",
    "pin => 1x y": f"pin => {R} y",
    "pin := 1x y": f"pin := {R} y",
    "pin: 1x y": f"pin: {R} y",
    "a=b&pin=1x&c=d": f"a=b&pin={R}&c=d",
    "pin: 1x&c=d": f"pin: {R}",
    "user[pin]=1x&a": f"user[pin]={R}&a",
    "pin=1;x": f"pin={R};x",
    '"Authorization: X abcdefgh" next': f'"Authorization: {R}" next',
    "'a' 'the token: hunter2x9'": f"'a' 'the token: {R}'",
    'x"pin=1"y': f'x"pin={R}"y',
    # tags
    "<pin>1 2</pin>": f"<pin>{R}</pin>",
    "<a:pin>1 2</a:pin>": f"<a:pin>{R}</a:pin>",
    "</a><pin>1 2": f"</a><pin>{R}",
    "</": "</",
    "<pin>1 2": f"<pin>{R}",
    "<a><pin>1 2<b>c": f"<a><pin>{R}<b>c",
    "<pin>1 2</pi": f"<pin>{R}</pi",
    "<a><pin>1 2</pin><b>3": f"<a><pin>{R}</pin><b>3",
    "user <pin> 1x": f"user <pin> {R}",
    "/<pin>1x": f"/<pin>{R}",
    "<pin>/1x": f"<pin>{R}",
    "login <user> <pin>": "login <user> <pin>",
    "<pin>": "<pin>",
    "<pin": "<pin",
    "<b>bold": "<b>bold",
    "1 < pin > 1x": "1 < pin > 1x",
    "pin>1 and 1<2": "pin>1 and 1<2",
    "<img src>1<br>2": "<img src>1<br>2",
    "/reset/<token>/confirm": "/reset/<token>/confirm",
    "/reset/<string:token>/confirm": "/reset/<string:token>/confirm",
    "/reset/<a:token>1x/y": f"/reset/<a:token>{R}",
    "x<string:token>/1x": f"x<string:token>{R}",
    # lists of two
    '["pin", "1x"]': f'["pin", "{R}"]',
    '("pin", "1x")': f'("pin", "{R}")',
    "(b'pin', b'1x')": f"(b'pin', b'{R}')",
    r"[\"pin\", \"1 x\"]": rf"[\"pin\", \"{R}\"]",
    # quotes
    '"pin": "1 x", "a": "b"': f'"pin": "{R}", "a": "b"',
    "'pin': '1 x', 'a': 'b'": f"'pin': '{R}', 'a': 'b'",
    '"pin": 12, "a": 1': f'"pin": {R}, "a": 1',
    '"pin":   "1"': f'"pin":   "{R}"',
    '"pin": "1\\" x" y': f'"pin": "{R}" y',
    r"\"pin\": \"1 \\\" x\" y": rf"\"pin\": \"{R}\" y",
    '"pin": "1 x': f'"pin": "{R}',
    "pin='1 x' y": f"pin='{R}' y",
    "pin=u'1 x' y": f"pin=u'{R}' y",
    '"pin": [1, 2], "a": 1': f'"pin": {R}',
    '"pin": {"a": 1}': f'"pin": {R}',
    "'X-Api-Key: 1x' y": f"'X-Api-Key: {R}' y",
    # headers
    "Authorization: X 1x y\nHost: h": f"Authorization: {R}\nHost: h",
    "Authorization: X 1x&a=b": f"Authorization: {R}",
    "authorization=X 1x&a=b": f"authorization={R}&a=b",
    r"Authorization: 1x\nHost": rf"Authorization: {R}\nHost",
    "Cookie: a=b; c=d\nx": f"Cookie: a={R}; c={R}\nx",
    "Set-Cookie: a=b; Path=/; Secure": f"Set-Cookie: a={R}; Path=/; Secure",
    "cookie=a=b; c": f"cookie={R}",
    '"cookie": "a=b; c"': f'"cookie": "{R}"',
    "Cookie: 'a=b'": f"Cookie: '{R}'",
    # words
    "password: a b c, d": f"password: {R}, d",
    "password2: a b c. Done": f"password2: {R}. Done",
    "secret: a b | c": f"secret: {R}| c",
    "password: a b c=d": f"password: {R} c=d",
    "pin: ab1 c, d": f"pin: {R} c, d",
    "token: Bearer 1x y": f"token: {R} y",
    "token=token  1x y": f"token={R} y",
    "password: not hunter2": f"password: {R}",
    "password: not": "password: not",
    "password: must not be empty": "password: must not be empty",
    "token: expired.": "token: expired.",
    "token: is (1) missing": "token: is (1) missing",
    'token="expired"': f'token="{R}"',
    '"token": expired': f'"token": {R}',
    "token=expired": f"token={R}",
    "password:   ": "password:   ",
    "token: null": "token: null",
    "token=None": "token=None",
    "token=true": "token=true",
    f"token={R}": f"token={R}",
    'pin=""': 'pin=""',
    # punctuation around
    "(token=1x)": f"(token={R})",
    "[token=1x]": f"[token={R}]",
    "{token=1x}": f"{{token={R}}}",
    "<token=1x>": f"<token={R}>",
    "token=1x)": f"token={R}",
    "(a) token=1x)": f"(a) token={R}",
    "token=1x.": f"token={R}.",
    "token=1x!?.,": f"token={R}!?.,",
    "token=1x.....": f"token={R}....",
    "'token=1x'": f"'token={R}'",
    "token=1x'": f"token={R}",
    "token=.": f"token={R}",
    "pin=1.&a=b": f"pin={R}&a=b",
    # names of two words
    "api key: 1x": f"api key: {R}",
    "API Key=1x": f"API Key={R}",
    "security code: 1x": f"security code: {R}",
    "recovery codes: 1x y": "recovery codes: 1x y",
    "the key: 1x": "the key: 1x",
    "api\tkey: 1x": "api\tkey: 1x",
    # what counts only when it looks like a secret
    f"session={RANDOM}": f"session={R}",
    "session=3": f"session={R}",
    f"session: {RANDOM} y": f"session: {R} y",
    "session: ab1cd9 y": f"session: {R} y",
    "session: ab1cd9&y": f"session: {R}",
    "'Authorization: X 1x' y": f"'Authorization: {R}' y",
    "' token=1x'": f"' token={R}'",
    "'a' token=1x'": f"'a' token={R}",
    "session: started again": "session: started again",
    "session: 3 open": "session: 3 open",
    'session: "started"': 'session: "started"',
    '"session": "started"': f'"session": "{R}"',
    f"sig={RANDOM}&a": f"sig={R}&a",
    f"a-key={RANDOM}": f"a-key={RANDOM}",
    "sig=abc": "sig=abc",
    f"sig={RANDOM[:15]}": f"sig={RANDOM[:15]}",
    "sig=" + "a" * 20: "sig=" + "a" * 20,
    "sig=" + "1" * 20: "sig=" + "1" * 20,
    f"sig: {RANDOM}": f"sig: {RANDOM}",
    f"sig='{RANDOM}'": f"sig='{R}'",
    "sig=abc&pin=1x": f"sig=abc&pin={R}",
    # the value of a name
    '"name": "pin", "value": "1x"}, {"value": 2': f'"name": "pin", "value": "{R}"}}, {{"value": 2',
    '{"key": "pin", "val": "1x"': f'{{"key": "pin", "val": "{R}"',
    '{"field": "a", "value": "1x"': '{"field": "a", "value": "1x"',
    '{"name": "pin", "name": "a", "value": "1x"': '{"name": "pin", "name": "a", "value": "1x"',
    '{"value": "1x", "name": "pin"': '{"value": "1x", "name": "pin"',
    'name=pin value="1x"': 'name=pin value="1x"',
    'name="pin"\r\n\r\n1 x\r\n--b': f'name="pin"\r\n\r\n{R}\r\n--b',
    'name="pin"; a="b"\r\nc: d\r\n\r\n1 x': f'name="pin"; a="b"\r\nc: d\r\n\r\n{R}',
    'name="pin"\r\n\r\n': 'name="pin"\r\n\r\n',
    'name="a"\r\n\r\n1 x\r\n--b': 'name="a"\r\n\r\n1 x\r\n--b',
    # no pairs
    "a > pin > 1": "a > pin > 1",
    'x "pin", "1x"': 'x "pin", "1x"',
    "[pin, 1x]": "[pin, 1x]",
    "/oauth/token: 404": "/oauth/token: 404",
    "/oauth/token=1x": f"/oauth/token={R}",
    "/oauth/token:1x": f"/oauth/token:{R}",
    "a=b, c: d": "a=b, c: d",
}


def test_a_value_beside_a_name_is_replaced_from_its_first_character_to_its_last(redact):
    assert {text: redact(text) for text in FOUND} == FOUND


def test_where_nothing_is_replaced_it_is_the_same_object(redact):
    for text in ("no pairs here", "a=b", "token: expired"):
        assert redact(text) is text


def test_every_place_counts(redact):
    for places, fits in ((3, True), (2, False)):
        redactor = PairRedactor(SensitiveNames((), (), ()), Budget(10**6, places))
        if fits:
            assert redactor.redact("a=b&c=d&pin=1x") == f"a=b&c=d&pin={R}"
        else:
            with pytest.raises(BudgetError):
                redactor.redact("a=b&c=d&pin=1x")


def test_a_text_without_a_sign_of_a_pair_costs_nothing():
    redactor = PairRedactor(SensitiveNames((), (), ()), Budget(10**6, 0))

    assert redactor.redact("nothing, to see; here > 1") == "nothing, to see; here > 1"
    for sign in ("a=", "a:", "<a>x</a", "<a>x", '"a", ', "'a', "):
        with pytest.raises(BudgetError):
            redactor.redact(sign)


@pytest.mark.parametrize(
    ("value", "is_response", "wanted"),
    [
        ("a=b; c=d", False, f"a={R}; c={R}"),
        ("a=b;c=d", False, f"a={R};c={R}"),
        ("a=b; Path=/; Max-Age=3; HttpOnly", True, f"a={R}; Path=/; Max-Age=3; HttpOnly"),
        ("a=b; Path=/", False, f"a={R}; Path={R}"),
        ("a=b; Path=/=x", True, f"a={R}; Path={R}"),
        ("abc", False, R),
        ("  abc; a=b", False, f"  {R}; a={R}"),
        ("abc==; a=b", False, f"{R}; a={R}"),
        ("a=; b= ", False, f"{R}; {R}"),
        ("a=b; ;", False, f"a={R}; ;"),
        ("a b=c", False, R),
        ("", False, ""),
    ],
)
def test_cookies_keep_their_names_only(value, is_response, wanted):
    assert redact_cookie(value, is_response=is_response) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (f"a={RANDOM}; b=dark", f"a={R}; b=dark"),
        (f"a=b; c={RANDOM}", f"a=b; c={R}"),
        (f"For={RANDOM}; c={RANDOM}", f"For={RANDOM}; c={R}"),
        (f"a={RANDOM}", f"a={RANDOM}"),
        (f"a={RANDOM}; b", f"a={RANDOM}; b"),
        (f"a={RANDOM}; b=c d", f"a={RANDOM}; b=c d"),
        (f"a b={RANDOM}; c=d", f"a b={RANDOM}; c=d"),
        (f"a={RANDOM}=; c=d", f"a={R}; c=d"),
        ("a; b", "a; b"),
    ],
)
def test_cookies_that_lost_their_header_are_told_by_their_values(text, wanted):
    assert redact_bare_cookies(text) == wanted


def test_the_look_at_a_value_is_bounded(redact):
    """A number behind the first 256 characters does not make it random; a literal is short."""
    letters = "a" * pairs._LOOK

    assert redact(f"sig={letters}1") == f"sig={letters}1"
    assert redact(f"sig={letters[:-1]}1") == f"sig={R}"
    assert redact(f"password: not {letters}") == f"password: {R}"
