"""Personal data out of free text: e-mail addresses, numbers of cards, accounts, people and phones, and, as far as
patterns go, names, streets, IP addresses and links that let somebody in become tokens.

Numbers are recognised by phonenumbers and python-stdnum; what is written here finds candidates and lets plain text
pass quickly. A name is recognised by the title before it or the closing above it, a street by its kind and number;
names elsewhere stay, and so do numbers that are spelled out in words.
"""

from __future__ import annotations

import ipaddress
import re
import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from itertools import accumulate

import phonenumbers
from phonenumbers.tzdata import TIMEZONE_DATA
from stdnum import iban, luhn
from stdnum.br import cnpj, cpf
from stdnum.de import idnr
from stdnum.es import dni, nie
from stdnum.fr import nir
from stdnum.it import codicefiscale
from stdnum.nl import bsn
from stdnum.pl import pesel
from stdnum.us import ssn

EMAIL, CARD, ACCOUNT, NATIONAL_ID, PHONE = "[email]", "[card]", "[account]", "[id]", "[phone]"
NAME, ADDRESS, LINK, IP = "[name]", "[address]", "[link]", "[ip]"

MIN_DIGITS = 6
"""Fewest digits of anything that is redacted by its digits alone."""

Span = tuple[int, int]

_TAKEN = "\x1f"
"""Stands for characters that are redacted already; part of no pattern."""

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
    (re.compile(r"(?<![\d.])\d{2}\.?\d{3}\.?\d{3}/?\d{4}-?\d{2}(?!\d)"), cnpj.is_valid),
    (re.compile(r"(?<!\d)[12](?: ?\d){14}(?!\d)"), nir.is_valid),
    (re.compile(r"(?<!\d)\d{11}(?!\d)"), pesel.is_valid),
    (re.compile(r"(?<!\w)(?!BG|GB|NK|KN|TN|NT|ZZ)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z](?: ?\d\d){3} ?[A-D](?!\w)"), bool),
    (re.compile(r"(?<!\d)\d{3}-\d{2}-\d{4}(?!\d)"), ssn.is_valid),
    (re.compile(r"(?<!\w)\d{8}[- ]?[A-Z](?!\w)", re.IGNORECASE), dni.is_valid),
    (re.compile(r"(?<!\w)[XYZ][- ]?\d{7}[- ]?[A-Z](?!\w)", re.IGNORECASE), nie.is_valid),
    (
        re.compile(r"(?<!\w)[A-Z]{6}[0-9LMNP-V]{2}[A-Z][0-9LMNP-V]{2}[A-Z][0-9LMNP-V]{3}[A-Z](?!\w)", re.IGNORECASE),
        codicefiscale.is_valid,
    ),
)
"""Numbers with a check that keeps chance findings rare, or (United States and Kingdom) with a form of their own."""

_NAMED_IDS: tuple[tuple[re.Pattern[str], Callable[[str], bool]], ...] = (
    (
        re.compile(r"(?<!\w)(?:steuer\W?id\w*|id-?nr|tin)\W{1,3}(\d(?: ?\d){10})(?!\d)", re.IGNORECASE),
        idnr.is_valid,
    ),
    (re.compile(r"(?<!\w)(?:bsn|burgerservicenummer)\W{1,3}(\d(?:[ .]?\d){8})(?!\d)", re.IGNORECASE), bsn.is_valid),
)
"""Numbers whose check too many other numbers pass: only behind their name."""

_LINK = re.compile(
    r"https?://(?:[^\s/@]+@\S+|[^\s?#]*[?#](?=\S*(?:token|sig|signature|session|sid|auth|key|code|secret|password|pwd)=)\S+)",
    re.IGNORECASE,
)
_IPV4 = re.compile(r"(?<![\w.])(?<!version )(?<!firmware )(?:\d{1,3}\.){3}\d{1,3}(?![\w.]*\d)", re.IGNORECASE)
_IPV6 = re.compile(r"(?<![\w:])(?:[0-9a-f]{0,4}:){2,7}[0-9a-f]{0,4}(?![\w:])", re.IGNORECASE)

_WORD = r"(?:[^\W\d_a-zß-öø-ÿ][^\W\d_]*(?:['’-][^\W\d_]+)*)"
_NAME_WORDS = rf"{_WORD}(?: (?:(?:van|von|de|der|den|da|do|dos|di|la|le|el|zu|zum) ){{0,2}}{_WORD}){{0,2}}"
_PARTICLE = r"(?:(?:van|von|de|der|den|da|do|dos|di|la|le|el|zu) ){0,2}"
_TITLES = (
    "Mr|Mrs|Ms|Miss|Herr|Herrn|Frau|Madame|Monsieur|Mme|señor|señora|"
    "Señor|Señora|senhor|senhora|Senhor|Senhora|mevrouw|meneer|Mevrouw|Meneer|signor|signora|signore|Signor|Signora|Pani|Panie|Panu|pani|panie"
)
_SHORT_TITLES = ("Dr", "Mr", "Mrs", "Ms", "sr", "sra", "Sr", "Sra", "dhr", "mevr", "Dott", "Sig")
_TITLED = re.compile(rf"(?<!\w)(?:(?:{_TITLES})|(?:{'|'.join(_SHORT_TITLES)})\.) ({_PARTICLE}{_NAME_WORDS})")
_SIGNED = re.compile(
    rf"(?:egards|incerely|Grüßen|Grüße|Gruß|Cordialement|ien à vous|[Ss]aludos?|tentamente|tenciosamente|groet|roeten|"
    rf"aluti|poważaniem|ozdrawiam)[ \t]*(?:,\s*|\n\s*)({_PARTICLE}{_NAME_WORDS})[ \t]*(?:\n|\.?\Z)"
    rf"|(?:hanks|hank you|brigad[oa]|razie|racias|erci|anke)[ \t]*[,.!]?[ \t]*\n\s*({_PARTICLE}{_NAME_WORDS})"
    r"[ \t]*(?:\n|\.?\Z)"
)
_NUMBER = r"\d{1,5}(?: ?[a-zA-Z])?(?:/\d+)?(?!\w)"
_STREET = re.compile(
    "|".join(
        (
            rf"(?<!\w)\d{{1,5}}[A-Z]? (?:[NSEW]\.? )?(?:{_WORD} ){{1,3}}"
            r"(?:Street|St|Avenue|Ave|Road|Rd|Lane|Ln|Drive|Crescent|Court|Way|Square|Boulevard|Blvd|Terrace)(?!\w)",
            rf"(?<!\w){_WORD}(?:straße|strasse|str\.|weg|platz|allee|gasse|ufer|straat|laan|plein|gracht|kade)"
            rf" {_NUMBER}",
            r"(?<!\w)\d{1,4}(?: (?:bis|ter))?,? (?:rue|avenue|boulevard|place|chemin|allée|impasse|quai) "
            rf"(?:(?:de|du|des|la|le|les|de la) )*(?:d'|l')?{_WORD}",
            rf"(?<!\w)(?:Calle|C/|Avenida|Avda\.?|Plaza|Paseo|Rua|Av\.|Travessa|Praça|Alameda|Via|Viale|Piazza|Corso|"
            rf"Vicolo|Largo) (?:(?:de|del|do|da|das|dos|dei|della|la|el) )*{_WORD}(?: {_WORD}){{0,2}},? {_NUMBER}",
            rf"(?<!\w)(?:ul|al|pl|os)\. {_WORD}(?: {_WORD}){{0,3}} {_NUMBER}",
        )
    )
)
_NAME_HINTS = tuple(
    hint.encode()
    for hint in (
        "Mr", "Ms", "Miss ", "Herr", "Frau ", "adame ", "onsieur ", "Mme ", "eñor", "enhor", "evrouw ", "eneer ",
        "ignor", "Pani", "Panu ", "pani", "Dr. ", "Dott. ", "Sig. ", "dhr. ", "mevr. ", "sr", "Sr", "egards",
        "incerely", "Grüße", "Gruß", "ordialement", "ien à vous", "aludo", "tentamente", "tenciosamente", "groet",
        "roeten", "aluti", "poważaniem", "ozdrawiam", "hanks,\n", "hanks\n", "hank you,\n", "rigado,\n", "rigada,\n",
        "razie,\n", "racias,\n", "erci,\n", "anke,\n",
    )
)  # fmt: skip
"""What a text holds, one at least, in which a name is looked for."""

_STREET_HINT = re.compile(
    r"(?<= )(?:St|Street|Ave|Avenue|Rd|Road|Lane|Ln|Drive|Crescent|Court|Way|Square|Boulevard|Blvd|Terrace|rue|avenue|"
    r"boulevard|place|chemin|allée|impasse|quai)(?!\w)|"
    r"(?:[sßz]e|[tr]\.|weg|platz|allee|ufer|straat|laan|plein|acht|kade|C/|alle|nida|laza|aseo|Rua|Av\.|essa|raça|meda|"
    r"Via|iale|azza|orso|colo|argo|[uap]l\.|os\.) "
)
"""What a text with a digit holds in which a street is looked for."""


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
        distinct = [text for text in dict.fromkeys(texts) if text]
        redacted: dict[str | None, str] = {}
        for position, names in _suspects(distinct).items():
            text = distinct[position]
            once = self._once(text, names=names)
            redacted[text] = text if once == text else self.redact(once)
        return [redacted.get(text, text) for text in texts]

    def redact(self, text: str) -> str:
        """One text with findings replaced by tokens."""
        # What a replacement brings together may be found in its turn. Each round takes away digits, an `@` or a name.
        while (redacted := self._once(text)) != text:
            text = redacted
        return text

    def _once(self, text: str, *, names: bool = True) -> str:
        parts = []
        position = 0
        for start, end, token in self._find(text, names):
            parts += [text[position:start], token]
            position = end
        return "".join([*parts, text[position:]]) if parts else text

    def find(self, text: str) -> list[Span]:
        """Where personal data stand, in order and apart; not what replacing them would bring together."""
        return [(start, end) for start, end, _ in self._find(text, names=True)]

    def _find(self, text: str, names: bool) -> list[tuple[int, int, str]]:
        folded = _fold(text)
        recognisers: list[tuple[Callable[[str], Iterable[Span]], str]] = [(_emails, EMAIL)]
        if "://" in folded:
            recognisers.append((_links, LINK))
        if names:
            recognisers.append((_names, NAME))
        digits = len(_DIGIT.findall(folded))
        if digits and _STREET_HINT.search(folded):
            recognisers.append((_streets, ADDRESS))
        if digits >= MIN_DIGITS:
            recognisers += [
                (_ibans, ACCOUNT),
                (_cards, CARD),
                (_national_ids, NATIONAL_ID),
                (_named_accounts, ACCOUNT),
                (_ips, IP),
                (self._phones, PHONE),
            ]
        found = []
        for find, token in recognisers:
            position = 0
            for start, end in sorted(find(folded)):
                if start >= position:
                    found.append((start, end, token))
                    # What one has found is no part of what another finds.
                    folded = folded[:start] + _TAKEN * (end - start) + folded[end:]
                position = max(position, end)
        return sorted(found)

    def _phones(self, text: str) -> Iterator[Span]:
        if _PHONE_LIKE.search(text):
            dialled = _TRUNK_00.sub(" +", text)
            for region in self._regions:
                for match in phonenumbers.PhoneNumberMatcher(dialled, region):
                    yield match.start - (text[match.start] != dialled[match.start]), match.end


def _suspects(texts: Sequence[str]) -> dict[int, bool]:
    """Position → whether a name may be recognised, of the texts that may hold a finding.

    They have six digits or an `@`, in any script; a digit and a kind of street; or what stands before a name.
    """
    # One search through all texts is many times as fast as one through each.
    joined = "\0".join(texts).encode("utf-8", "replace")
    left = joined.translate(None, _PASSING).split(b"\0")
    if len(left) != len(texts):  # a text holds NUL itself
        return dict.fromkeys(range(len(texts)), True)
    starts = list(accumulate((len(text) + 1 for text in joined.split(b"\0")), initial=0))
    named = set()
    for hint in _NAME_HINTS:
        at = joined.find(hint)
        while at >= 0:
            position = bisect_right(starts, at) - 1
            named.add(position)
            at = joined.find(hint, starts[position + 1])
    return {
        i: i in named
        for i, rest in enumerate(left)
        if i in named or (rest and (_is_telling(rest) or _STREET_HINT.search(texts[i])))
    }


def _is_telling(rest: bytes) -> bool:
    return len(rest) >= MIN_DIGITS or b"@" in rest or b"\xef" in rest


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
    for pattern, is_valid in _NAMED_IDS:
        for match in pattern.finditer(text):
            if is_valid(match[1]):
                yield match.span(1)


def _links(text: str) -> Iterator[Span]:
    if "://" in text:
        for match in _LINK.finditer(text):
            yield match.span()


def _ips(text: str) -> Iterator[Span]:
    for pattern in (_IPV4, _IPV6):
        for match in pattern.finditer(text):
            try:
                ipaddress.ip_address(match[0])
            except ValueError:
                continue
            yield match.span()


def _names(text: str) -> Iterator[Span]:
    for match in _TITLED.finditer(text):
        yield match.span(1)
    for match in _SIGNED.finditer(text):
        yield match.span(1) if match[1] else match.span(2)


def _streets(text: str) -> Iterator[Span]:
    for match in _STREET.finditer(text):
        yield match.span()


def _named_accounts(text: str) -> Iterator[Span]:
    for match in _NAMED_ACCOUNT.finditer(text):
        yield match.span(1)
