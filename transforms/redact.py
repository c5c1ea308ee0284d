"""Personal data out of free text: e-mail addresses, card, account, national id and phone numbers become tokens.

Recognition is phonenumbers' and python-stdnum's; what is written here finds candidates and lets plain text pass
quickly. Names and postal addresses are not recognised, and neither are numbers that are spelled out in words.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache

import phonenumbers
from phonenumbers.tzdata import TIMEZONE_DATA
from stdnum import iban, luhn
from stdnum.br import cpf
from stdnum.es import dni, nie
from stdnum.it import codicefiscale
from stdnum.us import ssn

EMAIL, CARD, ACCOUNT, NATIONAL_ID, PHONE = "[email]", "[card]", "[account]", "[id]", "[phone]"

MIN_DIGITS = 6
"""Fewest digits of anything that is redacted apart from e-mail addresses."""

Span = tuple[int, int]

_SEP = r"[ .\-/_]{0,3}"

_PASSING = bytes(byte for byte in range(0xD9) if not (0x30 <= byte <= 0x39 or byte in (0x00, 0x40)))
"""UTF-8 bytes that can't be part of a finding: all but digits, `@`, the separator NUL, and bytes from 0xD9 on, which
begin every digit and `@` outside ASCII (the first is U+0660, bytes D9 A0)."""

_LOCAL = r"[\w.+'%-]"
_EMAIL = re.compile(rf"(?<!{_LOCAL}){_LOCAL}++(?:@| @ )(?P<domain>[\w-]++(?:\.[\w-]++)++)")
_IBAN = re.compile(rf"(?<![A-Z0-9])[A-Z]{{2}}\d\d(?:{_SEP}[A-Z0-9]){{11,30}}(?![A-Z0-9])", re.IGNORECASE)
_CARD = re.compile(rf"(?<!\d)\d(?:{_SEP}\d){{11,}}(?!\d)")
_DIGIT = re.compile("[0-9]")
_DIGITS = re.compile(r"\d+")
_NAMED_ACCOUNT = re.compile(
    r"(?<![^\W_])(?:a/c|acc(?:oun)?t|bank(?:ing)?|conta(?: corrente)?|c/c|cuenta|compte|conto|konto(?:nummer)?|kto|"
    r"iban|routing|sort ?code|blz|clabe|cbu|rib|pix|ag[eê]ncia)"
    r"(?:[\s:=#.\-]|(?:n(?:o|r|um(?:ber|mer|ero)?|úmero|º|°)?|is|é|es|est|ist|lautet)(?!\w)){1,8}"
    r"(\d(?:[ .\-/]?\d){5,}(?:-?[\dXx])?)(?!\w)",
    re.IGNORECASE,
)
_PHONE_LIKE = re.compile(r"[+(]?\d(?:[()\s.\-/~,x]{0,3}\d){6}")

_TRUNK_00 = re.compile(r"(?<![\d+])00(?=[1-9]\d)")
"""The most common way to dial what is written `+`; two characters for two, so that positions stay the same."""

_ISSUED_CARD = re.compile(
    r"3[47]\d{13}|3[0689]\d{12,17}|35\d{14,17}|4\d{12}(?:\d{3}){0,2}|5[1-5]\d{14}|2[2-7]\d{14}|(?:5[0678]|6\d)\d{11,17}"
)
"""First digits and lengths of payment cards: American Express, Diners, JCB, Visa, Mastercard, and the rest (Maestro,
Discover, UnionPay, Elo), by ISO/IEC 7812 and the schemes' published issuer ranges."""

_LONGEST_CARD = 19

_NATIONAL_IDS: tuple[tuple[re.Pattern[str], Callable[[str], bool]], ...] = (
    (re.compile(r"(?<![\d.])\d{3}[. ]?\d{3}[. ]?\d{3}[-. /]?\d{2}(?!\d)"), cpf.is_valid),
    (re.compile(r"(?<!\d)\d{3}-\d{2}-\d{4}(?!\d)"), ssn.is_valid),
    (re.compile(r"(?<!\w)\d{8}[- ]?[A-Z](?!\w)", re.IGNORECASE), dni.is_valid),
    (re.compile(r"(?<!\w)[XYZ][- ]?\d{7}[- ]?[A-Z](?!\w)", re.IGNORECASE), nie.is_valid),
    (
        re.compile(r"(?<!\w)[A-Z]{6}[0-9LMNP-V]{2}[A-Z][0-9LMNP-V]{2}[A-Z][0-9LMNP-V]{3}[A-Z](?!\w)", re.IGNORECASE),
        codicefiscale.is_valid,
    ),
)
"""Numbers with a check that keeps chance findings rare, or (United States) with a form of their own."""


@cache
def _folding() -> dict[int, str]:
    """Character → the ASCII character that a reader sees in its place, one for one so that positions stay the same."""
    table = {}
    for code in range(0x80, 0x20000):
        character = chr(code)
        category = unicodedata.category(character)
        if category == "Nd":
            table[code] = str(unicodedata.decimal(character))
        elif category in ("Zs", "Cf"):
            table[code] = " "
        elif category == "Pd":
            table[code] = "-"
        elif unicodedata.decomposition(character).startswith(("<wide>", "<small>")):
            table[code] = unicodedata.normalize("NFKC", character)
    return table


def _fold(text: str) -> str:
    return text if text.isascii() else text.translate(_folding())


def phone_regions(timezone: str) -> tuple[str, ...]:
    """ISO 3166 regions whose national phone numbers are written in an IANA time zone; none for UTC and the like.

    By phonenumbers' metadata: the main region of each calling code in whose area this zone is.
    """
    return tuple(
        phonenumbers.region_code_for_country_code(int(prefix))
        for prefix, zones in TIMEZONE_DATA.items()
        if timezone in zones and int(prefix) in phonenumbers.COUNTRY_CODE_TO_REGION_CODE
    )


class Redactor:
    """Redacts texts. Numbers with a country code are found everywhere, national phone numbers of `regions` only."""

    def __init__(self, regions: Sequence[str]) -> None:
        self._regions: tuple[str | None, ...] = tuple(regions) or (None,)

    def redact_all(self, texts: Sequence[str | None]) -> list[str | None]:
        """The texts with findings replaced by tokens; None stays None. Redacting again changes nothing."""
        result = list(texts)
        for position in _suspects(texts):
            text = result[position]
            if text is not None:
                result[position] = self.redact(text)
        return result

    def redact(self, text: str) -> str:
        """One text with findings replaced by tokens."""
        # What a replacement brings together may be found in its turn. Each round takes away digits or an `@`.
        while (redacted := self._once(text)) != text:
            text = redacted
        return text

    def _once(self, text: str) -> str:
        text = _replace(text, _emails(_fold(text)), EMAIL)
        if len(_DIGIT.findall(_fold(text))) < MIN_DIGITS:
            return text
        for find, token in (
            (_ibans, ACCOUNT),
            (_cards, CARD),
            (_national_ids, NATIONAL_ID),
            (_named_accounts, ACCOUNT),
            (self._phones, PHONE),
        ):
            text = _replace(text, find(_fold(text)), token)
        return text

    def _phones(self, text: str) -> Iterator[Span]:
        if _PHONE_LIKE.search(text):
            dialled = _TRUNK_00.sub(" +", text)
            for region in self._regions:
                for match in phonenumbers.PhoneNumberMatcher(dialled, region):
                    yield match.start - (text[match.start] != dialled[match.start]), match.end


def _suspects(texts: Sequence[str | None]) -> Iterable[int]:
    """Positions of the texts that may hold a finding: six digits or an `@`, in any script."""
    # One translation of all texts is ten times as fast as one of each.
    left = "\0".join([text or "" for text in texts]).encode("utf-8", "replace").translate(None, _PASSING).split(b"\0")
    if len(left) != len(texts):  # a text holds NUL itself
        return range(len(texts))
    return [i for i, rest in enumerate(left) if rest and (len(rest) >= MIN_DIGITS or b"@" in rest or b"\xef" in rest)]


def _replace(text: str, spans: Iterable[Span], token: str) -> str:
    parts = []
    position = 0
    for start, end in sorted(spans):
        if start >= position:
            parts += [text[position:start], token]
        position = max(position, end)
    return "".join([*parts, text[position:]]) if parts else text


def _emails(text: str) -> Iterator[Span]:
    if "@" in text:
        for match in _EMAIL.finditer(text):
            if match["domain"].rpartition(".")[2][0].isalpha():
                yield match.span()


def _ibans(text: str) -> Iterator[Span]:
    for match in _IBAN.finditer(text):
        # The match may run on into the words that follow, so shorter beginnings are tried too.
        start, end = match.span()
        while end - start >= 15:
            at_word_end = text[end - 1].isalnum() and not text[end : end + 1].isalnum()
            if at_word_end and iban.is_valid(re.sub(r"[^A-Za-z0-9]", "", text[start:end]), check_country=False):
                yield start, end
                break
            end -= 1


def _cards(text: str) -> Iterator[Span]:
    for match in _CARD.finditer(text):
        groups = [(match.start() + m.start(), match.start() + m.end()) for m in _DIGITS.finditer(match[0])]
        first = 0
        while first < len(groups):
            found = _card_from(text, groups, first)
            if found is None:
                first += 1
            else:
                yield groups[first][0], groups[found][1]
                first = found + 1


def _card_from(text: str, groups: list[Span], first: int) -> int | None:
    """Index of the group with which the longest card number that begins with group `first` ends."""
    digits = ""
    longest = None
    for last in range(first, len(groups)):
        digits += text[slice(*groups[last])]
        if len(digits) > _LONGEST_CARD:
            break
        if _ISSUED_CARD.fullmatch(digits) and luhn.is_valid(digits):
            longest = last
    return longest


def _national_ids(text: str) -> Iterator[Span]:
    for pattern, is_valid in _NATIONAL_IDS:
        for match in pattern.finditer(text):
            if is_valid(match[0]):
                yield match.span()


def _named_accounts(text: str) -> Iterator[Span]:
    for match in _NAMED_ACCOUNT.finditer(text):
        yield match.span(1)
