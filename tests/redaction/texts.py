"""Labelled texts of seven languages: templates filled with generated values that are valid in form, and negatives.

The development half is there to improve the redaction by, the held-out half to judge it: other templates, other values.
Nothing in them is real: numbers are drawn from a seed, with the check digits that their kind has.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ruamel.yaml import YAML
from stdnum import iban, luhn
from stdnum.br import cnpj, cpf
from stdnum.de import idnr
from stdnum.es import dni, nie
from stdnum.fr import nir
from stdnum.it import codicefiscale
from stdnum.nl import bsn
from stdnum.pl import pesel

Half = Literal["development", "held_out"]
HALVES: tuple[Half, ...] = ("development", "held_out")

VALUES_PER_TEMPLATE = 4
"""Texts made of each template."""

_MARK = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Labelled:
    """A text, its language, the regions of its phone numbers, and its personal spans: (start, end, class)."""

    language: str
    regions: tuple[str, ...]
    text: str
    spans: tuple[tuple[int, int, str], ...]


def labelled_texts(half: Half) -> Iterator[Labelled]:
    """All texts of one half, always the same."""
    content: dict[str, Any] = YAML(typ="safe").load(Path(__file__).parent / f"{half}.yaml")
    for language, entry in content.items():
        draw = Values(random.Random(f"{half} {language}"), entry)
        regions = tuple(entry["regions"])
        for template in entry["personal"]:
            for _ in range(VALUES_PER_TEMPLATE):
                yield _fill(language, regions, template, draw)
        for text in entry["harmless"]:
            yield Labelled(language, regions, text, ())


def _fill(language: str, regions: tuple[str, ...], template: str, draw: Values) -> Labelled:
    text, spans, position = "", [], 0
    for mark in _MARK.finditer(template):
        text += template[position : mark.start()]
        value = draw.value(mark[1])
        spans.append((len(text), len(text) + len(value), mark[1].rstrip("0123456789")))
        text += value
        position = mark.end()
    return Labelled(language, regions, text + template[position:], tuple(spans))


class Values:
    """Draws values of each class, in the ways people write them."""

    def __init__(self, chance: random.Random, entry: dict[str, Any]) -> None:
        self._chance = chance
        self._entry = entry

    def value(self, kind: str) -> str:
        """One value of a class: from the file's list, or generated."""
        if kind in self._entry.get("values", {}):
            return str(self._chance.choice(self._entry["values"][kind]))
        maker: Callable[[], str] = getattr(self, f"_{kind}")
        return maker()

    def _digits(self, n: int) -> str:
        return "".join(self._chance.choice("0123456789") for _ in range(n))

    def _email(self) -> str:
        first, last = self._chance.choice(["ana", "j.smith", "k-weber", "lu_cas"]), self._digits(2)
        return f"{first}{last}@{self._chance.choice(['example.com', 'mail.example.org', 'exemplo.com.br'])}"

    def _card(self) -> str:
        body = self._chance.choice(["4", "51", "55"]) + self._digits(15)
        body = body[:15]
        number = body + luhn.calc_check_digit(body)
        groups = [number[i : i + 4] for i in range(0, 16, 4)]
        return self._chance.choice(["", " ", "-"]).join(groups)

    def _iban(self) -> str:
        country, body = self._chance.choice(
            [("DE", 18), ("ES", 20), ("PL", 24), ("PT", 21), ("AT", 16), ("BE", 12), ("NL", 10), ("FR", 23)]
        )
        bban = ("ABNA" if country == "NL" else "") + self._digits(body)
        number = country + iban.calc_check_digits(country + "00" + bban) + bban
        return " ".join(re.findall(".{1,4}", number)) if self._chance.random() < 0.5 else number

    def _ip(self) -> str:
        return ".".join(str(self._chance.randrange(1, 254)) for _ in range(4))

    def _url(self) -> str:
        token = "".join(self._chance.choice("abcdef0123456789") for _ in range(24))
        name = self._chance.choice(["token", "access_token", "session", "sig"])
        return f"https://shop.example.com/orders/return?{name}={token}"

    def _id_us(self) -> str:
        return (
            f"{self._chance.randrange(100, 665)}-{self._chance.randrange(10, 99)}-{self._chance.randrange(1000, 9999)}"
        )

    def _id_gb(self) -> str:
        number = self._chance.choice(["AB", "CE", "JK", "SN"]) + self._digits(6) + self._chance.choice("ABCD")
        return " ".join(re.findall("..?", number)) if self._chance.random() < 0.5 else number

    def _id_de(self) -> str:
        while True:
            number = str(self._chance.randrange(1, 10)) + self._digits(9)
            number += self._digits(1)
            if idnr.is_valid(number):
                return (
                    f"{number[:2]} {number[2:5]} {number[5:8]} {number[8:]}" if self._chance.random() < 0.5 else number
                )

    def _id_fr(self) -> str:
        born = f"{self._chance.randrange(40, 99)}{self._chance.randrange(1, 13):02}"
        body = f"{self._chance.choice('12')}{born}75{self._digits(6)}"
        number = body + nir.calc_check_digits(body)
        parts = (number[:1], number[1:3], number[3:5], number[5:7], number[7:10], number[10:13], number[13:])
        return " ".join(parts) if self._chance.random() < 0.5 else number

    def _id_es(self) -> str:
        if self._chance.random() < 0.5:
            body = self._digits(8)
            return body + dni.calc_check_digit(body)
        body = self._chance.choice("XYZ") + self._digits(7)
        return body + nie.calc_check_digit(body)

    def _id_br(self) -> str:
        if self._chance.random() < 0.5:
            body = self._digits(9)
            number = body + cpf._calc_check_digits(body)
            return cpf.format(number) if self._chance.random() < 0.7 else number
        body = self._digits(8) + "0001"
        number = body + cnpj.calc_check_digits(body)
        return cnpj.format(number) if self._chance.random() < 0.7 else number

    def _id_nl(self) -> str:
        while True:
            number = self._digits(9)
            if bsn.is_valid(number) and number[0] != "0":
                return number

    def _id_pl(self) -> str:
        body = f"{self._chance.randrange(40, 99)}{self._chance.randrange(1, 13):02}{self._chance.randrange(1, 28):02}"
        body += self._digits(4)
        return body + pesel.calc_check_digit(body)

    def _id_it(self) -> str:
        body = f"RSSMRA{self._chance.randrange(40, 99)}{self._chance.choice('ABCDEHLMPRST')}"
        body += f"{self._chance.randrange(1, 29):02}H501"
        return body + codicefiscale.calc_check_digit(body)
