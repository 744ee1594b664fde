"""Template language for clinical prompts, with an omit and an explicit mode.

======================== ========================================================================
written                  means
======================== ========================================================================
``{field}``              the value of a field; outside a group a missing one reads "not available"
``[a|b|c]``              a group: the first alternative whose fields are all present, else nothing
``[a[ inner] b]``        groups nest; a field missing in an inner group leaves the outer one whole
``[a|b||wording]``       the wording for explicit mode when no alternative is complete
======================== ========================================================================

In explicit mode a group without wording is rendered as its first alternative, each missing field "not
available". The signs ``{ } [ ] |`` are reserved; values may contain anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from mmare.errors import StudyError
from mmare.study.choices import PromptMode

__all__ = ["Prompt", "compile_prompt"]

_MISSING = "not available"
_RESERVED = "{}[]|"


@dataclass(frozen=True)
class _Field:
    name: str


@dataclass(frozen=True)
class _Group:
    alternatives: tuple[_Sequence, ...]
    wording: _Sequence | None


_Part = str | _Field | _Group
_Sequence = tuple[_Part, ...]


@dataclass(frozen=True)
class Prompt:
    """A parsed template, made by `compile_prompt`."""

    template: str
    fields: tuple[str, ...]  # each name once, in order of appearance
    _parts: _Sequence = field(repr=False)

    def render(self, values: Mapping[str, str | None], mode: PromptMode) -> str | None:
        """The text for one patient; ``None`` if all fields are missing: the patient lacks the modality.

        A field that is absent, ``None`` or blank is missing; unknown keys are ignored.
        """
        present = {name: text for name in self.fields if (text := (values.get(name) or "").strip())}
        if not present:
            return None
        return _render(self._parts, present, mode)


def compile_prompt(template: str) -> Prompt:
    """Parse a template in the language of this module.

    Raises:
        StudyError: If the template is malformed, with the position, or uses no field.

    Example:
        >>> prompt = compile_prompt("The patient is a {sex}[, aged {age}||, of unknown age].")
        >>> prompt.render({"sex": "female", "age": "61"}, PromptMode.OMIT)
        'The patient is a female, aged 61.'
        >>> prompt.render({"sex": "female"}, PromptMode.OMIT)
        'The patient is a female.'
        >>> prompt.render({"sex": "female"}, PromptMode.EXPLICIT)
        'The patient is a female, of unknown age.'
    """
    reader = _Reader(template)
    parts = reader.sequence(depth=0)
    names = tuple(dict.fromkeys(_names(parts)))
    if not names:
        raise StudyError(f"prompt {template!r} uses no field, expected at least one such as {{age}}")
    return Prompt(template, names, parts)


class _Reader:
    """Recursive descent parser."""

    def __init__(self, template: str) -> None:
        self._template = template
        self._at = 0

    def sequence(self, depth: int) -> _Sequence:
        """Parts up to the end, or within a group up to ``|`` or ``]``."""
        parts: list[_Part] = []
        while self._at < len(self._template):
            sign = self._template[self._at]
            if sign == "{":
                parts.append(self._field())
            elif sign == "[":
                parts.append(self._group(depth + 1))
            elif sign in "|]" and depth:
                break
            elif sign in _RESERVED:
                outside = " outside a group" if sign == "|" else " without the sign that opens it"
                raise self._error(f"has a {sign!r}{outside}", self._at)
            else:
                parts.append(self._text())
        return tuple(parts)

    def _text(self) -> str:
        start = self._at
        while self._at < len(self._template) and self._template[self._at] not in _RESERVED:
            self._at += 1
        return self._template[start : self._at]

    def _field(self) -> _Field:
        start = self._at
        self._at += 1
        name = self._text().strip()
        if self._at == len(self._template) or self._template[self._at] != "}":
            raise self._error("has a '{' that is not closed", start)
        if not name:
            raise self._error("has a field without a name", start)
        self._at += 1
        return _Field(name)

    def _group(self, depth: int) -> _Group:
        start = self._at
        self._at += 1
        alternatives = [self.sequence(depth)]
        wording: _Sequence | None = None
        while self._at < len(self._template) and self._template[self._at] == "|":
            if wording is not None:
                raise self._error(
                    "has a '|' after the wording for explicit mode, which must come last", self._at
                )
            if self._template.startswith("||", self._at):
                self._at += 2
                wording = self.sequence(depth)
            else:
                self._at += 1
                alternatives.append(self.sequence(depth))
        if self._at == len(self._template):
            raise self._error("has a '[' that is not closed", start)
        self._at += 1  # the closing bracket
        if not all(alternatives):
            raise self._error("has a group with an empty alternative", start)
        group = _Group(tuple(alternatives), wording)
        if not any(_names((group,))):
            raise self._error("has a group that uses no field", start)
        return group

    def _error(self, what: str, at: int) -> StudyError:
        return StudyError(f"prompt {self._template!r} {what}, at character {at + 1}")


def _names(parts: _Sequence) -> Iterator[str]:
    """All field names, nested ones included."""
    for part in parts:
        if isinstance(part, _Field):
            yield part.name
        elif isinstance(part, _Group):
            for alternative in part.alternatives:
                yield from _names(alternative)
            yield from _names(part.wording or ())


def _render(parts: _Sequence, present: Mapping[str, str], mode: PromptMode) -> str:
    pieces = []
    for part in parts:
        if isinstance(part, _Field):
            pieces.append(present.get(part.name, _MISSING))
        elif isinstance(part, _Group):
            pieces.append(_render(_choose(part, present, mode), present, mode))
        else:
            pieces.append(part)
    return "".join(pieces)


def _choose(group: _Group, present: Mapping[str, str], mode: PromptMode) -> _Sequence:
    """The alternative or wording of a group that applies to this patient."""
    for alternative in group.alternatives:
        if all(part.name in present for part in alternative if isinstance(part, _Field)):
            return alternative
    if mode is PromptMode.OMIT:
        return ()
    return group.alternatives[0] if group.wording is None else group.wording
