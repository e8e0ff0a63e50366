"""The rules that one row of a data file must keep, each broken one an error that names its field.
`lvlm.data.readers` calls it. Fields are those of Centurio's trainer (`context`, `label`, `image_id`, `text_label`)
and four of ours, all optional.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

from lvlm.errors import InputError

IMAGE_PLACEHOLDER = "<image_placeholder>"
FIELDS = ("id", "context", "label", "text_label", "image_id", "language", "task", "source")

Fail = Callable[[str, str], InputError]
"""(field, what is wrong) -> the error that also names file and row."""


def as_list(value: Any) -> list[str]:
    """Centurio's code takes plain text where it takes a list of one."""
    return [value] if isinstance(value, str) else value


def _check_texts(data: Mapping[str, Any], name: str, fail: Fail) -> list[str]:
    if name not in data:
        raise fail(name, "the field is missing.")
    texts = as_list(data[name])
    if not isinstance(texts, list) or not texts or not all([type(text) is str for text in texts]):
        raise fail(name, f"must be text or a list of texts, not {str(data[name])[:60]!r}.")
    if not encodes(texts[0] if len(texts) == 1 else "".join(texts)):
        raise fail(name, "holds half of a surrogate pair (such as \\ud83d alone), which is no character.")
    return texts


def encodes(text: str) -> bool:
    """Whether a text is Unicode throughout; JSON can smuggle in halves of characters by their escapes."""
    if text.isascii():
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def check_images(data: Mapping[str, Any], fail: Fail, known: Container[str]) -> list[str]:
    """The images of a row; "", [""] and [] say that there is none. `known` were seen before and are sound names.

    `lvlm.data.images` looks for them on disk.
    """
    if "image_id" not in data:
        raise fail("image_id", 'the field is missing. Write "" for a row without an image.')
    value = data["image_id"]
    if value == "":
        return []
    names = as_list(value)
    if not isinstance(names, list) or not set(map(type, names)) <= {str}:
        raise fail("image_id", f"must be a path or a list of paths, not {str(value)[:60]!r}.")
    if names in ([], [""]):
        return []
    for name in names:
        if name in known:
            continue
        if not name:
            raise fail("image_id", 'an empty path stands among others. Use "" only for a row without any image.')
        if name[0] in "/\\~" or name[1:2] == ":" or "\0" in name or ".." in name.replace("\\", "/").split("/"):
            raise fail("image_id", f"'{name}' leaves the image folder. Paths are relative to it and hold no '..'.")
    return names


def _check_placeholders(users: Sequence[str], images: Sequence[str], fail: Fail) -> None:
    found = "\0".join(users).count(IMAGE_PLACEHOLDER)
    if found == len(images) or (found == 0 and len(images) == 1):
        return
    raise fail(
        "context",
        f"holds {found} {IMAGE_PLACEHOLDER} but field 'image_id' names {len(images)} images. "
        f"Write one {IMAGE_PLACEHOLDER} per image (it may be left out only where there is exactly one image).",
    )


def check_train(data: Mapping[str, Any], images: Sequence[str], fail: Fail) -> None:
    """A training row: as many answers as user turns, none of them empty."""
    users = _check_texts(data, "context", fail)
    answers = _check_texts(data, "label", fail)
    if len(users) != len(answers):
        raise fail(
            "label", f"has {len(answers)} turns but 'context' has {len(users)}. Every user turn needs its answer."
        )
    for turn, (user, answer) in enumerate(zip(users, answers, strict=True)):
        if not answer or answer.isspace():
            raise fail("label", f"the answer of turn {turn} is empty. Remove the turn, or the row.")
        if IMAGE_PLACEHOLDER in answer:
            raise fail("label", f"the answer of turn {turn} holds {IMAGE_PLACEHOLDER}, which belongs into 'context'.")
        if (not user or user.isspace()) and not images:
            raise fail("context", f"turn {turn} is empty, and there is no image to speak about.")
    _check_placeholders(users, images, fail)


def check_test(data: Mapping[str, Any], images: Sequence[str], fail: Fail) -> None:
    """A test row: one question, an empty `label`, and the gold answers in `text_label`."""
    users = _check_texts(data, "context", fail)
    if len(users) != 1:
        raise fail("context", f"a test row asks one question, this one has {len(users)}.")
    if not users[0].strip() and not images:
        raise fail("context", "the question is empty, and there is no image to speak about.")
    if "label" in data and data["label"] not in ("", [""]):
        raise fail("label", "must be [\"\"] in a test row; the gold answer stands in 'text_label'.")
    for answer in _check_texts(data, "text_label", fail):
        if not answer or answer.isspace():
            raise fail("text_label", "the gold answer is empty.")
    _check_placeholders(users, images, fail)
