"""How a language says what is in a scene: captions, questions, answers, from one YAML file each (`lexicons/README.md`).
Called by `writer` for every text of the built-in world and by `reading` for its words.
"""

import unicodedata
from collections.abc import Hashable, Mapping
from functools import cache, cached_property
from pathlib import Path
from string import Formatter
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from lvlm.data.worlds.questions import Question
from lvlm.data.worlds.scenes import COLOURS, PLACES, SHAPES, SIZES, Group, Scene
from lvlm.errors import InputError, nearest
from lvlm.languages import find

FOLDER = Path(__file__).parent / "lexicons"
VOWELS = "aeiou"

Text = Annotated[str, Field(min_length=1)]
Form = tuple[Text, Text]  # (word, agreement class)


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Noun(_Part):
    """The forms of a shape noun; `two` only where the language has a dual, else `many` serves from 2 on."""

    one: Form
    many: Form
    two: Form | None = None

    def form(self, count: int) -> Form:
        if count == 2 and self.two is not None:
            return self.two
        return self.one if count == 1 else self.many


class YesNo(_Part):
    yes: Text
    no: Text


class Requests(_Part):
    caption: Text
    reading: Text


class SingleQuestions(_Part):
    """Questions over one group; only `exists` has a gap."""

    colour: Text
    shape: Text
    size: Text
    count: Text
    place: Text
    exists: Text


class BindingQuestions(_Part):
    """Questions over several groups, told apart by place or by noun."""

    colour: Text
    shape: Text
    size: Text
    count: Text
    place: Text
    more: Text


GAPS = {
    "group": {"place", "noun"}, "counted": {"noun", "number"},
    "questions.exists": {"noun"},
    "binding.colour": {"place"}, "binding.shape": {"place"}, "binding.size": {"place"}, "binding.count": {"place"},
    "binding.place": {"noun"}, "binding.more": {"first", "second"},
}  # fmt: skip


def _keys_are(*expected: str) -> BeforeValidator:
    """The mapping has exactly these keys."""

    def check(value: object) -> object:
        if isinstance(value, Mapping) and set(value) != set(expected):
            missing, surplus = sorted(set(expected) - set(value)), sorted(set(value) - set(expected))
            raise ValueError(f"missing {missing}, surplus {surplus}")
        return value

    return BeforeValidator(check)


Adjective = Text | dict[str, Text]


class LexiconFile(_Part):
    """One file of `lexicons/`, checked: every form that a sentence needs is there, every gap of a template known."""

    code: Text
    sources: Text
    alphabet: Text
    classes: list[Text]
    articles: dict[str, Text]
    order: list[Literal["article", "size", "colour", "shape"]]
    group: Text
    counted: Text
    joiner: Text
    shapes: Annotated[dict[str, Noun], _keys_are(*SHAPES)]
    colours: Annotated[dict[str, Adjective], _keys_are(*COLOURS)]
    sizes: Annotated[dict[str, Adjective], _keys_are(*SIZES)]
    places: Annotated[dict[str, Text], _keys_are(*PLACES)]
    numbers: tuple[Text, Text, Text, Text]
    yes_no: YesNo
    requests: Requests
    questions: SingleQuestions
    binding: BindingQuestions
    words: Text

    @model_validator(mode="after")
    def _complete(self) -> "LexiconFile":
        if set(self.order) - {"article"} != {"size", "colour", "shape"} or len(set(self.order)) < len(self.order):
            raise ValueError(f"order: size, colour, shape and perhaps article, each once, not {self.order}")
        if set(self.articles) - set(self.classes):
            raise ValueError(f"articles: {sorted(set(self.articles) - set(self.classes))} not among the classes")
        for shape, noun in self.shapes.items():
            for form in (noun.one, noun.two, noun.many):
                if form is not None and form[1] not in self.classes:
                    raise ValueError(f"shapes.{shape}: class {form[1]!r} is not one of {self.classes}")
        for kind, adjectives in (("colours", self.colours), ("sizes", self.sizes)):
            for name, adjective in adjectives.items():
                if isinstance(adjective, dict) and set(adjective) != {*self.classes, "answer"}:
                    missing = sorted({*self.classes, "answer"} - set(adjective))
                    surplus = sorted(set(adjective) - {*self.classes, "answer"})
                    raise ValueError(f"{kind}.{name}: missing {missing}, surplus {surplus}")
        self._check_templates()
        self._check_words()
        return self

    def _check_templates(self) -> None:
        templates = {"group": self.group, "counted": self.counted, "joiner": self.joiner}
        for part in ("requests", "questions", "binding"):
            templates |= {f"{part}.{name}": text for name, text in getattr(self, part).model_dump().items()}
        for name, template in templates.items():
            try:
                gaps = {gap for _, gap, _, _ in Formatter().parse(template) if gap is not None}
            except ValueError as error:
                raise ValueError(f"{name}: {error} in {template!r}") from error
            if gaps != GAPS.get(name, set()):
                raise ValueError(f"{name}: gaps {sorted(GAPS.get(name, set()))} expected, {sorted(gaps)} found")

    def _check_words(self) -> None:
        words = self.words.split()
        twice = sorted({word for word in words if words.count(word) > 1})
        foreign = [word for word in words if set(word) - set(self.alphabet)]
        length = [word for word in words if not 3 <= len(word) <= 5]
        if twice or foreign or length or len(words) < 60:
            raise ValueError(
                f"words: {len(words)} (at least 60 needed); twice {twice}; not in the alphabet {foreign}; "
                f"not of 3 to 5 letters {length}"
            )


class Lexicon:
    """One language's way of speaking about scenes. Texts are NFC; captions and answers start in lower case.

    words: what `reading` may print, 3 to 5 letters each, in the file's order.
    attributes: every form a caption or an answer may hold, in lower case -> attribute id ("colour:red"). A count of 1
    is left out: captions do not say it, and in several languages the number is also the article.
    """

    def __init__(self, file: LexiconFile) -> None:
        self._file = file
        self.code = file.code
        self.sources = file.sources
        self.caption_request = file.requests.caption
        self.read_request = file.requests.reading
        self.words: tuple[str, ...] = tuple(file.words.split())
        self.attributes: dict[str, str] = self._collect_attributes()

    def caption(self, scene: Scene) -> str:
        """The scene in words, group by group: "on the left: a small red circle; at the top: large blue stars (two)"."""
        return self._file.joiner.join(
            self._file.group.format(place=self._file.places[group.place], noun=self.noun_phrase(group))
            for group in scene.groups
        )

    def noun_phrase(self, group: Group) -> str:
        """Nominative noun phrase with everything said of the group but its place."""
        phrase = self._phrase(group.shape, group.colour, size=group.size, count=group.count, article=True)
        if group.count == 1:
            return phrase
        return self._file.counted.format(noun=phrase, number=self._file.numbers[group.count - 1])

    def question(self, question: Question) -> str:
        """The question's text. Gaps are nominative noun phrases or place phrases, so nothing is inflected here."""
        gaps: dict[str, str] = {}
        if question.pair is not None:
            colour, shape = question.pair
            count = 3 if question.many else 1  # 3: the general plural also where there is a dual
            gaps["noun"] = self._phrase(shape, colour, size=None, count=count, article=question.kind == "exists")
        if question.kind == "more":
            gaps["first"], gaps["second"] = (self._file.places[place] for place in question.places)
        elif question.places:
            gaps["place"] = self._file.places[question.places[0]]
        binding = question.binding and question.kind != "exists"
        templates = self._file.binding if binding else self._file.questions
        text: str = getattr(templates, question.kind).format(**gaps)
        # title(), not upper(): Georgian capitals are for text set all in capitals and never begin a sentence.
        return text[:1].title() + text[1:]

    def answer(self, question: Question) -> str:
        """The answer in its citation form, without a full stop."""
        return self._answers[question.answer]

    @cached_property
    def _answers(self) -> dict[str, str]:
        file = self._file
        return (
            {f"colour:{name}": _citation(adjective) for name, adjective in file.colours.items()}
            | {f"size:{name}": _citation(adjective) for name, adjective in file.sizes.items()}
            | {f"shape:{name}": noun.one[0] for name, noun in file.shapes.items()}
            | {f"place:{name}": phrase for name, phrase in file.places.items()}
            | {f"count:{count}": number for count, number in enumerate(file.numbers, start=1)}
            | {"exists:yes": file.yes_no.yes, "exists:no": file.yes_no.no}
        )

    def _phrase(self, shape: str, colour: str, *, size: str | None, count: int, article: bool) -> str:
        noun, agreement = self._file.shapes[shape].form(count)
        words = {"shape": noun, "colour": _agree(self._file.colours[colour], agreement)}
        if size is not None:
            words["size"] = _agree(self._file.sizes[size], agreement)
        if article and agreement in self._file.articles:
            words["article"] = self._file.articles[agreement]
        parts = [words[name] for name in self._file.order if name in words]
        for i, part in enumerate(parts):
            plain, bar, before_vowel = part.partition("|")  # "a|an"
            if bar:
                parts[i] = before_vowel if parts[i + 1][0] in VOWELS else plain
        return " ".join(parts)

    def _collect_attributes(self) -> dict[str, str]:
        file = self._file
        said = [(text, attribute) for attribute, text in self._answers.items()]
        for kind, adjectives in (("colour", file.colours), ("size", file.sizes)):
            for name, adjective in adjectives.items():
                forms = [adjective] if isinstance(adjective, str) else list(adjective.values())
                said += [(form, f"{kind}:{name}") for form in forms]
        for name, noun in file.shapes.items():
            said += [(form[0], f"shape:{name}") for form in (noun.one, noun.two, noun.many) if form is not None]
        attributes: dict[str, str] = {}
        for text, attribute in said:
            if attribute == "count:1" or attribute.startswith("exists:"):
                continue
            surface = text.lower()
            if attributes.setdefault(surface, attribute) != attribute:
                raise ValueError(f"{surface!r} means both {attributes[surface]} and {attribute}")
        answers = [text.lower() for text in self._answers.values()]
        if twice := sorted({text for text in answers if answers.count(text) > 1}):
            raise ValueError(f"{twice} answers more than one question value")
        return attributes


def _agree(adjective: Adjective, agreement: str) -> str:
    return adjective if isinstance(adjective, str) else adjective[agreement]


def _citation(adjective: Adjective) -> str:
    return adjective if isinstance(adjective, str) else adjective["answer"]


class _TextLoader(yaml.BaseLoader):
    """YAML in which every scalar is text (Norwegian's `no` is not False) and a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key.value for key, _ in node.value]
        if twice := sorted({key for key in keys if keys.count(key) > 1}):
            raise yaml.constructor.ConstructorError(None, None, f"keys given twice: {twice}", node.start_mark)
        return super().construct_mapping(node, deep=deep)


def read_lexicon(path: Path) -> Lexicon:
    """Read and check one file; a fault is an InputError that names the file and the key."""
    try:
        content = yaml.load(unicodedata.normalize("NFC", path.read_text(encoding="utf-8")), Loader=_TextLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"The lexicon file {path} cannot be read: {error}.") from error
    try:
        file = LexiconFile.model_validate(content)
        if file.code != path.stem:
            raise ValueError(f"code: {file.code!r} differs from the file's name")
        return Lexicon(file)
    except ValueError as error:
        faults = str(error)
        if isinstance(error, ValidationError):
            places = [".".join(map(str, fault["loc"])) or "file" for fault in error.errors()]
            faults = "; ".join(f"{place}: {fault['msg']}" for place, fault in zip(places, error.errors(), strict=True))
        raise InputError(f"The lexicon file {path} is not valid: {faults}. See the README in its folder.") from error


def lexicon_codes() -> tuple[str, ...]:
    """Codes of the languages that the built-in world speaks, in alphabetical order."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))


@cache
def load_lexicon(code: str) -> Lexicon:
    """The lexicon of a language, under any of its codes; one without a file is an InputError that names the nearest
    ones."""
    codes = lexicon_codes()
    if (known := find(code)) is not None:
        code = known.language.code
    if code not in codes:
        raise InputError(
            f"The built-in world has no lexicon for the language {code!r}. Nearest: {nearest(code, list(codes))}; "
            f"all: {', '.join(codes)}. Choose one of these, or add a file to {FOLDER} as the README there describes."
        )
    return read_lexicon(FOLDER / f"{code}.yaml")
