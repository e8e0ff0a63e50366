"""The page of a report: head, contents, sections as landmarks, style and script inside."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files


@dataclass(frozen=True)
class Section:
    """A part of the report with its heading; `body` is HTML. One without a title follows the head of the page."""

    title: str
    body: str

    @property
    def id(self) -> str:
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


def page(title: str, sections: Sequence[Section]) -> str:
    """The whole page. Nothing in it is fetched from elsewhere."""
    named = [section for section in sections if section.title]
    links = "".join(f"<li><a href='#{one.id}'>{html.escape(one.title)}</a></li>" for one in named)
    head = "".join(section.body for section in sections if not section.title)
    body = "".join(
        f"<section id='{one.id}' aria-labelledby='{one.id}-title'><h2 id='{one.id}-title'>{html.escape(one.title)}</h2>"
        f"{one.body}</section>\n"
        for one in named
    )
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{html.escape(title)}</title><style>{_asset('page.css')}</style></head><body>"
        "<a class='skip' href='#content'>Skip to the content</a>"
        f"<header><h1>{html.escape(title)}</h1>{head}</header>"
        f"<nav aria-label='Contents'><ul>{links}</ul></nav>"
        f"<main id='content'>{body}</main><script>{_asset('page.js')}</script></body></html>\n"
    )


def _asset(name: str) -> str:
    return files("ablations.report").joinpath(name).read_text(encoding="utf-8")
