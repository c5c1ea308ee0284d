"""Which stage, department and topic an event belongs to: explicit hint, then rules, then the model, else unassigned.

The customer's latest touchpoint, the fourth way to a tag, looks at other events and is applied to committed rows.
"""

from __future__ import annotations

import logging
import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple, Protocol

from vocbeam.schemas.governance import RULE_FIELDS, TEXT_FIELDS, Governance, Rule
from vocbeam.schemas.records import HINT, MODEL, NO_TOPIC, RULE, UNASSIGNED, Columns, EventType, Tag

log = logging.getLogger(__name__)

OTHER_VALUE, UNKNOWN_VALUE, UNDECLARED = "other", "unknown", ""
"""Segment of a value that the governance file doesn't list, of an absent value, and of an undeclared position."""

SEGMENT_COLUMNS = ("segment_1", "segment_2", "segment_3")

_REMEMBERED_COMBINATIONS = 1 << 16

_ODD_SPACES = "\t\n\v\f\r\x1c\x1d\x1e\x1f\x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(
    map(chr, range(0x2000, 0x200B))
)


class Prediction(NamedTuple):
    """What a model says about a text: a stage, a topic of it, and its confidence 0 to 1.

    `words` are those that spoke most for the stage, the strongest first.
    """

    stage: str
    topic: str
    confidence: float
    words: tuple[str, ...] = ()


class Predicted(NamedTuple):
    """What a model says about some texts, aligned with them: a tag, None where it wasn't wanted or the model abstains,
    and negative, neutral or positive, None where the model can't tell.
    """

    tags: Sequence[Prediction | None]
    sentiments: Sequence[str | None]


class TextModel(Protocol):
    """A trained model as tagging needs it; `stages` are all that it may predict."""

    @property
    def version(self) -> str:
        """Which model it is."""
        ...

    @property
    def stages(self) -> Sequence[str]:
        """All stages that it may predict."""
        ...

    def predict(self, texts: Sequence[str], wanted: Sequence[bool]) -> Predicted:
        """The sentiment of every text, and a tag of those that are wanted.

        Called once for all events of one type in a group, with distinct texts.
        """
        ...


class Tagged(NamedTuple):
    """The columns that tagging adds, and how many hints named no stage or department of the governance file."""

    columns: Columns
    ignored_hints: int


class _Decision(NamedTuple):
    """What hints and exact values decide for all events with the same ones.

    `word_rules` are rules whose exact conditions hold and whose words are still to be looked for, in file order; the
    first that is found gives its tag, else `otherwise`.
    """

    word_rules: tuple[tuple[int, Tag], ...]
    otherwise: Tag
    ignored_hints: int


class Tagger:
    """Tags events under one governance file and, if there is one, a model."""

    def __init__(self, governance: Governance, model: TextModel | None = None) -> None:
        self.taxonomy_version = governance.version
        self.model_version = None if model is None else model.version
        self._governance = governance
        self._model = model
        self._unknown = frozenset(model.stages if model else ()) - governance.stage_owner.keys()
        if model is not None and self._unknown:
            log.warning(
                "model %s knows stages that are not in the governance file (version %d); it abstains where it would "
                "say them: %s. Train a new model with `vocbeam train`",
                model.version, governance.version, ", ".join(sorted(self._unknown)),
            )  # fmt: skip
        self._phrases = [tuple(_folded(words) for words in rule.when.words or ()) for rule in governance.rules]
        self._plans = {event_type: _plan(governance, event_type) for event_type in RULE_FIELDS}
        self._segments = [
            (
                segment.name,
                {value: value for value in segment.values} | {"": UNKNOWN_VALUE, UNKNOWN_VALUE: UNKNOWN_VALUE},
            )
            for segment in governance.segments
        ]

    def tag(self, event_type: EventType, columns: Columns) -> Tagged:
        """Columns `stage`, `department`, `topic`, `tag_method`, `tag_confidence`, `tag_words`, `sentiment` and
        `segment_1` to `segment_3`.

        `columns` are those of the contract, with redacted text. Words are found whole, in any case and across any
        white space.
        """
        fields, decide = self._plans[event_type]
        keys = zip(*[columns[name] for name in fields], strict=True)
        decisions = [decide(key) for key in keys]
        tags = [decision.otherwise for decision in decisions]
        sentiment: Sequence[str | None] = [None] * len(tags)
        if event_type in TEXT_FIELDS:
            sentiment = self._tag_by_text(event_type, columns, decisions, tags)
        stage, department, topic, method, confidence, words = (
            map(list, zip(*tags, strict=True)) if tags else ([] for _ in Tag._fields)
        )
        tagged: Columns = {
            "stage": stage,
            "department": department,
            "topic": topic,
            "tag_method": method,
            "tag_confidence": confidence,
            "tag_words": words,
            "sentiment": list(sentiment),
            **self._segment_columns(columns),
        }
        return Tagged(tagged, sum([decision.ignored_hints for decision in decisions]))

    def _tag_by_text(
        self, event_type: EventType, columns: Columns, decisions: Sequence[_Decision], tags: list[Tag]
    ) -> Sequence[str | None]:
        """Replaces the tags that follow from a text; the sentiment of each."""
        parts = [columns[name] for name in TEXT_FIELDS[event_type]]
        texts = ["\n".join(filter(None, fields)) for fields in zip(*parts, strict=True)]
        # Each distinct text is looked at once: answers from a template and short comments repeat.
        numbers = {text: number for number, text in enumerate(dict.fromkeys(texts))}
        numbered = [numbers[text] for text in texts]
        open_rules = {rule for decision in decisions for rule, _ in decision.word_rules}
        if open_rules:
            chunk_text = _ChunkText(list(numbers))
            found = {rule: chunk_text.rows_with(self._phrases[rule]) for rule in open_rules}
            for row, decision in enumerate(decisions):
                for rule, tag in decision.word_rules:
                    if numbered[row] in found[rule]:
                        tags[row] = tag
                        break
        known = [text for text in numbers if text]
        if self._model is None or not known:
            return [None] * len(texts)
        open_texts = {text for text, tag in zip(texts, tags, strict=True) if tag.stage == UNASSIGNED}
        predicted = self._model.predict(known, [text in open_texts for text in known])
        predictions = dict(zip(known, predicted.tags, strict=True))
        sentiments = dict(zip(known, predicted.sentiments, strict=True))
        for row, text in enumerate(texts):
            prediction = predictions.get(text)
            if prediction is not None and prediction.stage not in self._unknown and tags[row].stage == UNASSIGNED:
                tags[row] = self._predicted(prediction, tags[row])
        return [sentiments.get(text) for text in texts]

    def _predicted(self, prediction: Prediction, before: Tag) -> Tag:
        hinted = before.department != UNASSIGNED
        department = before.department if hinted else self._governance.stage_owner[prediction.stage]
        words = " ".join(prediction.words) or None
        return Tag(prediction.stage, department, prediction.topic, MODEL, prediction.confidence, words)

    def _segment_columns(self, columns: Columns) -> Columns:
        maps = columns["segments"]
        result: Columns = {column: [UNDECLARED] * len(maps) for column in SEGMENT_COLUMNS}
        # Decoding makes equal maps one object.
        numbers = list(map(id, maps))
        distinct = dict(zip(numbers, maps, strict=True))
        for column, (name, listed) in zip(SEGMENT_COLUMNS, self._segments, strict=False):
            found = {number: listed.get(given.get(name, ""), OTHER_VALUE) for number, given in distinct.items()}
            result[column] = [found[number] for number in numbers]
        return result


class _ChunkText:
    """The texts of a chunk as one string, so that each phrase is searched for once and not once a text."""

    def __init__(self, texts: Sequence[str]) -> None:
        rows = _folded("\0".join(texts).join("\0\0")).split("\0")[1:-1]
        self._all = "\0".join(["", *rows, ""])
        self._starts = list(accumulate([len(row) + 1 for row in rows], initial=1))

    def rows_with(self, phrases: Sequence[str]) -> set[int]:
        """Positions of the texts that hold any of the folded phrases as whole words."""
        rows = set()
        everything, starts = self._all, self._starts
        for phrase in phrases:
            at = everything.find(phrase)
            while at >= 0:
                end = at + len(phrase)
                if _in_word(everything[at - 1]) or _in_word(everything[end]):
                    at = everything.find(phrase, at + 1)
                else:
                    row = bisect_right(starts, at)
                    rows.add(row - 1)
                    at = everything.find(phrase, starts[row])
        return rows


def _in_word(character: str) -> bool:
    return character.isalnum() or character == "_"


def _folded(text: str) -> str:
    """`text` without differences of case, of composed and decomposed accents, and of white space."""
    text = unicodedata.normalize("NFC", text.casefold())
    # On the text of a whole chunk a replacement each is 50 times as fast as one regular expression.
    for space in _ODD_SPACES:
        text = text.replace(space, " ")
    while "  " in text:
        text = text.replace("  ", " ")
    return text


def _plan(
    governance: Governance, event_type: EventType
) -> tuple[tuple[str, ...], Callable[[tuple[str | None, ...]], _Decision]]:
    """(fields that decide, their values' decision): computed once for each combination of values."""
    rules = [(i, rule) for i, rule in enumerate(governance.rules) if rule.when.applies_to(event_type)]
    tested = tuple(sorted({name for _, rule in rules for name in rule.when.fields}))

    def decide(values: tuple[str | None, ...]) -> _Decision:
        stage_hint, department_hint, *tested_values = values
        stage = stage_hint if stage_hint in governance.stage_owner else None
        department = department_hint if department_hint in governance.departments_by_id else None
        ignored = (stage_hint is not None and stage is None) + (department_hint is not None and department is None)
        if stage is not None:
            hinted = Tag(stage, department or governance.stage_owner[stage], NO_TOPIC, HINT, 1.0)
            return _Decision((), hinted, ignored)
        of = dict(zip(tested, tested_values, strict=True))
        word_rules: list[tuple[int, Tag]] = []
        for i, rule in rules:
            if all(of[name] in allowed for name, allowed in rule.when.fields.items()):
                tag = _rule_tag(governance, rule, department)
                if rule.when.words is None:
                    return _Decision(tuple(word_rules), tag, ignored)
                word_rules.append((i, tag))
        if department is not None:
            return _Decision(tuple(word_rules), Tag(UNASSIGNED, department, NO_TOPIC, HINT, 1.0), ignored)
        nothing = Tag(UNASSIGNED, UNASSIGNED, NO_TOPIC, UNASSIGNED, None)
        return _Decision(tuple(word_rules), nothing, ignored)

    return ("journey_stage", "department", *tested), lru_cache(maxsize=_REMEMBERED_COMBINATIONS)(decide)


def _rule_tag(governance: Governance, rule: Rule, department_hint: str | None) -> Tag:
    department = department_hint or governance.department_of(rule)
    return Tag(rule.then.stage, department, rule.then.topic or NO_TOPIC, RULE, 1.0)
