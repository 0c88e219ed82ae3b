"""
Records with secrets planted in them: every kind, in every place, the same for the same seed.

A planted secret is recognisable whatever became of it: each one holds one of the marks that
`leaks` looks for, and no mark is part of anything else.
"""

from __future__ import annotations

import base64
import json
import random
import re
import string
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote_to_bytes

from guard_agent import SecurityEvent, SecurityMetric, get_current_timestamp

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Payload = SecurityEvent | SecurityMetric

_ALPHABET = string.ascii_letters + string.digits
_MARK = "Cnry"
_BASIC_USER = "cnryuser:"  # nine bytes, so its Base64 is the same whatever follows
_FORMS = re.compile(
    rb"cnry"
    rb"|Y25yeXVzZXI6"  # the user of basic credentials
    rb"|Q25yeVVu"  # the mark in the payload of a web token
    rb"|(?<![0-9])4929[ \-+]?77[0-9]{2}[ \-+]?[0-9]{4}[ \-+]?[0-9]{4}"
    rb"|80081358[0-9]",  # a secret that is a number
    re.IGNORECASE,
)

NAMES = [
    "password", "Password", "passwd", "pwd", "db_password", "dbPassword", "user-password",
    "password2", "new_password", "secret", "client_secret", "clientSecret", "api_key", "apiKey",
    "X-Api-Key", "x-api-key", "api.key", "API-KEY", "ApiKey", "token", "access_token",
    "accessToken", "refresh-token", "id_token", "x-auth-token", "csrf_token", "X-CSRF-Token",
    "session_id", "sessionid", "private_key", "aws_secret_access_key", "secretKey",
    "HTTP_X_API_KEY", "http.request.header.x-api-key", "credentials.password",
]  # fmt: skip
HEADERS = ["Authorization", "authorization", "Proxy-Authorization", "X-Api-Key", "X-Auth-Token"]
# Names written with letters of other alphabets, full width or with invisible characters between.
LOOK_ALIKES = [
    "p\u0430ssword", "passw\u043erd", "\u0440assword", "t\u043eken", "\u0430pi_key",
    "api_k\u0435y", "s\u0435cret", "\uff50\uff41\uff53\uff53\uff57\uff4f\uff52\uff44",
    "pass\u200bword", "to\u00adken", "\u0455ecret", "A\u03c1i-Key", "\u1d56assword",
]  # fmt: skip
WORDS = [
    "request", "blocked", "for", "user", "alice", "from", "the", "gateway", "while", "checking",
    "rule", "942100", "matched", "login", "attempt", "at", "/checkout", "with", "status", "403",
    "and", "limit=100", "path: /a", "(see", "log)", "GET", "upstream", "returned", "an", "error",
]  # fmt: skip


def leaks(data: bytes | str) -> list[str]:
    """What is left of planted secrets, with some text around each."""
    raw = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data
    return [
        form[max(0, found.start() - 60) : found.end() + 30].decode("utf-8", "replace")
        # The digits of "%20" would hide a number behind them.
        for form in ((raw, unquote_to_bytes(raw)) if b"%" in raw else (raw,))
        for found in _FORMS.finditer(form)
    ]


class Generator:
    """Draws records; the same seed draws the same."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def payloads(self, amount: int) -> Iterator[tuple[str, str, Payload]]:
        """Kind, place and record; all pairs of kind and place come up in turn."""
        pairs = [(kind, place) for kind in KINDS for place in PLACES]
        for number in range(amount):
            kind, place = pairs[number % len(pairs)]
            yield kind, place, self.payload(kind, place)

    def payload(self, kind: str, place: str) -> Payload:
        return PLACES[place](self, KINDS[kind](self))

    # --- what is drawn ----------------------------------------------------------------------------

    def choice(self, items: list[Any]) -> Any:
        return self._random.choice(items)

    def chance(self, share: float) -> bool:
        return self._random.random() < share

    def letters(self, low: int, high: int) -> str:
        return "".join(self._random.choices(_ALPHABET, k=self._random.randint(low, high)))

    def digits(self, amount: int) -> str:
        return "".join(self._random.choices(string.digits, k=amount))

    def word(self) -> str:
        """A secret of one word; now and then with the signs people put into passwords."""
        text = f"{self.letters(0, 6)}{_MARK}{self.letters(4, 24)}"
        if self.chance(0.2):
            text += self.choice(list("!#$*~^_-.")) + self.letters(2, 6) + _MARK
        return text

    def random_word(self) -> str:
        """A secret that looks generated."""
        return f"{self.letters(4, 8)}{self.digits(3)}{_MARK}{self.letters(10, 30)}"

    def phrase(self) -> str:
        return " ".join([self.word() for _ in range(self._random.randint(2, 5))])

    def prose(self) -> str:
        return " ".join(self._random.choices(WORDS, k=self._random.randint(1, 5)))

    def around(self, text: str) -> str:
        """``text`` somewhere in a sentence, with the punctuation of sentences."""
        before = self.choice(["", "", f"{self.prose()} ", f"{self.prose()}: ", f"{self.prose()} ("])
        if not before:
            return text
        if before.endswith("("):
            return f"{before}{text}) {self.prose()}"
        return before + text + self.choice(["", "", f" {self.prose()}", f"; {self.prose()}", "."])

    def basic(self) -> str:
        return base64.b64encode((_BASIC_USER + self.word()).encode()).decode()

    def web_token(self) -> str:
        def part(text: str) -> str:
            return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")

        # The mark stands where three bytes begin, so its Base64 shows.
        payload = json.dumps({"sub": f"{_MARK}Unit{self.letters(9, 9)}", "iat": 1}, indent=None)
        return f"{part(json.dumps({'alg': 'HS256'}))}.{part(payload)}.{self.word_of_base64()}"

    def word_of_base64(self) -> str:
        return f"{self.letters(8, 12)}{_MARK}{self.letters(20, 24)}-_{_MARK}"

    def card(self) -> str:
        head = f"492977{self.digits(9)}"
        total = sum(
            sum(divmod(int(digit) * (2 - position % 2), 10)) for position, digit in enumerate(head)
        )
        number = f"{head}{-total % 10}"
        gap = self.choice(["", "", " ", "-"])
        return gap.join(number[start : start + 4] for start in range(0, 16, 4))

    def key_block(self) -> str:
        kind = self.choice(["RSA ", "EC ", "", "OPENSSH ", "ENCRYPTED "])
        lines = [f"{self.letters(20, 30)}{_MARK}{self.letters(20, 30)}" for _ in range(3)]
        end = "\n".join([*lines, f"-----END {kind}PRIVATE KEY-----"])
        # Cut off in one of five, as texts are.
        body = end if self.chance(0.8) else "\n".join(lines)
        return f"-----BEGIN {kind}PRIVATE KEY-----\n{body}"


# --- kinds ----------------------------------------------------------------------------------------
#
# A kind is a text that holds a secret, or a piece of data that does.


def _pair(g: Generator) -> tuple[str, str]:
    if g.chance(0.3):
        scheme = g.choice(["", "Bearer ", "Token ", "ApiKey "])
        return g.choice(HEADERS), f"{scheme}{g.word()}"
    return g.choice(NAMES), g.word()


def _nested_key(g: Generator) -> Any:
    name, value = _pair(g)
    value = g.choice([value, value, [value, g.word()], {"current": value}, g.phrase(), 0])
    if value == 0:
        value, name = int(f"80081358{g.digits(4)}"), g.choice(["password", "pin", "cvv", "secret"])
    return {"service": g.prose(), name: value}


def _list_of_pairs(g: Generator) -> Any:
    name, value = _pair(g)
    rows = [["Host", "shop.example.com"], [name, value], ["Accept", "*/*"]]
    form = g.choice([list, tuple, "named"])
    if form == "named":
        keys = g.choice([("name", "value"), ("key", "value"), ("Name", "Value")])
        return [dict(zip(keys, row, strict=True)) for row in rows]
    return [form(row) for row in rows]


def _json_text(g: Generator) -> Any:
    data = g.choice([_nested_key, _list_of_pairs])(g)
    text = json.dumps(data, separators=g.choice([(",", ":"), (", ", ": ")]))
    # As people log it: behind some words, or cut off.
    return g.choice([text, text, f"payload {text}", text[: -g.choice([1, 2, 3])]])


def _double_encoded(g: Generator) -> Any:
    text = json.dumps(json.dumps(_nested_key(g)))
    return g.choice([text, text, f"body={text}", json.dumps({"body": json.dumps(_nested_key(g))})])


def _userinfo(g: Generator) -> Any:
    scheme = g.choice(["https", "postgresql", "redis", "amqp", "mongodb+srv"])
    user = g.choice(["", "app", "app%40corp", g.word()])
    return g.around(f"{scheme}://{user}:{g.word()}@db.example.com:5432/shop")


def _query(g: Generator) -> Any:
    name, value = g.choice(NAMES), g.word()
    if g.chance(0.2):
        value = quote(f"{value} {_MARK}&={_MARK}", safe="")
    query = f"page=2&{name}={value}" + g.choice(["", "&sort=asc", "#top"])
    url = f"{g.choice(['', 'https://shop.example.com'])}/items?{query}"
    if g.chance(0.2):
        url = f"/login?next={quote(url, safe='')}"
    return g.around(url)


def _form(g: Generator) -> Any:
    return f"user=alice&{g.choice(NAMES)}={g.word()}&remember=1"


def _cookie(g: Generator) -> Any:
    name = g.choice(["Cookie", "cookie", "HTTP_COOKIE"])
    return {name: f"theme={g.word()}; sid={g.random_word()}; a={g.word()}"}


def _cookie_line(g: Generator) -> Any:
    line = f"Cookie: sid={g.random_word()}; theme={g.word()}"
    return g.choice([line, f"GET / HTTP/1.1\r\nHost: a\r\n{line}\r\n\r\n", f"{g.prose()}\n{line}"])


def _set_cookie(g: Generator) -> Any:
    value = f"id={g.random_word()}; Path=/; HttpOnly; SameSite=Lax"
    name = g.choice(["Set-Cookie", "set-cookie"])
    return g.choice([{name: value}, f"{name}: {value}", [[name, value]]])


def _bearer(g: Generator) -> Any:
    scheme = g.choice(["Bearer", "bearer", "BEARER"])
    return g.around(f"{scheme} {g.choice([g.word, g.random_word, g.web_token])()}")


def _web_token(g: Generator) -> Any:
    return g.around(g.web_token())


def _aws_key(g: Generator) -> Any:
    key = f"{g.choice(['AKIA', 'ASIA'])}CNRY{g.letters(12, 12).upper()}"
    secret = f"{g.letters(8, 8)}/{_MARK}+{g.letters(26, 26)}"
    return g.choice([g.around(key), f"{key}:{secret}", f"aws_secret_access_key = {g.word()}"])


def _key_block(g: Generator) -> Any:
    text = g.key_block()
    return g.choice([text, text.replace("\n", "\\n"), f"{g.prose()}\n{text}"])


def _card(g: Generator) -> Any:
    card = g.card()
    if card.isdigit() and g.chance(0.3):
        return {"paid_with": int(card)}
    return g.around(card)


def _header_in_bytes(g: Generator) -> Any:
    name, value = g.choice(HEADERS).encode(), f"Bearer {g.word()}".encode()
    return g.choice(
        [{name: value}, [(name, value)], repr([(name, value)]), {"raw": repr({name: value})}]
    )


def _spelling(g: Generator) -> Any:
    name = g.choice(NAMES)
    spell = g.choice([str.upper, str.title, str.lower, lambda t: t.replace("_", " ")])
    return {spell(name): g.word()}


def _look_alike(g: Generator) -> Any:
    name, value = g.choice(LOOK_ALIKES), g.word()
    return g.choice([{name: value}, f"{name}={value}&a=1", [[name, value]], f"{name}: {value}"])


def _basic(g: Generator) -> Any:
    text = f"{g.choice(['Basic', 'basic'])} {g.basic().rstrip(g.choice(['', '=']))}"
    return g.choice([g.around(text), {"Authorization": text}, f"Authorization: {text}"])


def _exception(g: Generator) -> Any:
    name, value = g.choice(NAMES[:20]), g.word()
    text = g.choice(
        [
            f"login failed for {name}={value}",
            f"could not connect to https://app:{value}@db.example.com/",
            f"invalid header: Authorization: Bearer {value}",
            f"bad value {name}='{value} {value}' in request",
            f'{{"{name}": "{value}"}}',
        ]
    )
    error = g.choice([ValueError, RuntimeError, KeyError, ConnectionError])(text)
    frame = f'Traceback (most recent call last):\n  File "app.py", line 3\n{error!r}'
    return g.choice([error, {"error": error}, repr(error), frame])


def _prose(g: Generator) -> Any:
    name = g.choice(["password", "token", "api_key", "API key", "secret", "client_secret"])
    sign = g.choice(["=", ": ", " = ", " is: ", "='", ': "'])
    close = sign[-1] if sign[-1] in "'\"" else ""
    name = f"{name}" if "is" not in sign else name
    return g.around(f"{name}{sign.replace(' is:', ':')}{g.word()}{close}")


def _phrase(g: Generator) -> Any:
    """Words without quotes behind the name of a password."""
    name = g.choice(["password", "Password", "passphrase", "db_password", "secret"])
    return f"{g.choice(['', 'login with '])}{name}: {g.phrase()}"


KINDS: dict[str, Callable[[Generator], Any]] = {
    "nested key": _nested_key,
    "list of pairs": _list_of_pairs,
    "JSON in a string": _json_text,
    "JSON encoded twice": _double_encoded,
    "userinfo of an address": _userinfo,
    "query of an address": _query,
    "form": _form,
    "cookie": _cookie,
    "line with cookies": _cookie_line,
    "set-cookie": _set_cookie,
    "bearer": _bearer,
    "web token": _web_token,
    "AWS key": _aws_key,
    "private key": _key_block,
    "card number": _card,
    "header in bytes": _header_in_bytes,
    "spelling of a name": _spelling,
    "look-alikes": _look_alike,
    "basic credentials": _basic,
    "exception": _exception,
    "prose": _prose,
    "phrase in prose": _phrase,
}


# --- places ---------------------------------------------------------------------------------------


def _event(**fields: Any) -> SecurityEvent:
    metadata = fields.pop("metadata", {})
    event = SecurityEvent(
        timestamp=get_current_timestamp(),
        event_type=fields.pop("event_type", "penetration_attempt"),
        ip_address="203.0.113.7",
        action_taken="request_blocked",
        **fields,
    )
    # As guard-core does; so it may hold what the model would not take.
    event.metadata = metadata
    return event


def _text(value: Any) -> str:
    """What becomes of data where only a text fits: JSON where it can, else what `repr` shows."""
    if isinstance(value, str):
        return value
    if isinstance(value, BaseException):
        return f"{type(value).__name__}: {value}"
    try:
        return json.dumps(value)
    except TypeError:
        return repr(value)


def _plain(value: Any) -> Any:
    """``value`` if JSON can carry it, else its text."""
    try:
        json.dumps(value)
    except TypeError:
        return _text(value)
    return value


def _headers(g: Generator, secret: Any) -> Payload:
    headers: Any = {"host": "shop.example.com", "accept": "*/*"}
    if isinstance(secret, dict):
        headers.update(secret)
    else:
        headers[g.choice(["referer", "x-forwarded-uri", "x-original-body"])] = _text(secret)
    if g.chance(0.3):
        headers = [[name, value] for name, value in headers.items()]
    return _event(metadata={"headers": headers})


def _metadata(g: Generator, secret: Any) -> Payload:
    for _ in range(g.choice([0, 1, 2, 4])):
        secret = g.choice([{"inner": secret}, [secret], {"a": 1, "b": [secret, None]}])
    return _event(metadata={"context": secret, "n": 1})


def _json_place(g: Generator, secret: Any) -> Payload:
    return _event(metadata={"body": json.dumps({"request": _plain(secret), "n": [1, 2]})})


def _twice_place(g: Generator, secret: Any) -> Payload:
    text = json.dumps(json.dumps({"request": _plain(secret)}))
    return _event(**{g.choice(["reason", "pattern_matched"]): text})


def _url_place(g: Generator, secret: Any) -> Payload:
    text = quote(_text(secret), safe=g.choice(["", "/:=&?"]))
    return _event(endpoint=f"/search?q={text}&page=1")


def _reason(g: Generator, secret: Any) -> Payload:
    return _event(reason=_text(secret))


def _user_agent(g: Generator, secret: Any) -> Payload:
    text = _text(secret)
    return _event(user_agent=g.choice([text, f"Mozilla/5.0 (X11; Linux x86_64) {text}"]))


def _extra(g: Generator, secret: Any) -> Payload:
    if g.chance(0.3):
        return _event(handler_name=_text(secret))
    return _event(
        **{
            g.choice(["shop", "tenant_note"]): g.choice(
                [_plain(secret), {"deep": [_plain(secret)]}]
            )
        }
    )


def _exception_place(g: Generator, secret: Any) -> Payload:
    error = g.choice([ValueError, RuntimeError])(_text(secret))
    return _event(metadata={"error": error, "cause": repr(error)})


def _tag_value(g: Generator, secret: Any) -> Payload:
    tags = {"method": "GET", "note": _text(secret)}
    if isinstance(secret, dict) and all(isinstance(value, str) for value in secret.values()):
        tags.update({_text(name): value for name, value in secret.items()})
    return SecurityMetric(
        timestamp=get_current_timestamp(), metric_type="response_time", value=0.1,
        endpoint=g.choice(["/items", f"/items?q={quote(_text(secret))}"]), tags=tags,
    )  # fmt: skip


def _key_place(g: Generator, secret: Any) -> Payload:
    return _event(metadata={"seen": {_text(secret): 1}})


PLACES: dict[str, Callable[[Generator, Any], Payload]] = {
    "headers": _headers,
    "nested metadata": _metadata,
    "JSON in a string": _json_place,
    "JSON encoded twice": _twice_place,
    "address": _url_place,
    "reason": _reason,
    "user agent": _user_agent,
    "extra": _extra,
    "exception text": _exception_place,
    "metric tags": _tag_value,
    "keys": _key_place,
}
