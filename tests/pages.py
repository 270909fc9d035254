"""Reading the pages of reports."""

from __future__ import annotations

from html.parser import HTMLParser


class Page(HTMLParser):
    """Tags in order, checked for balance; texts; attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.images: list[dict[str, str | None]] = []
        self.links: list[str | None] = []
        self.headings: list[str] = []
        self.headings: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)
        if tag == "img":
            self.images.append(dict(attributes))
        self.links += [value for key, value in attributes if key in ("href", "src")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.open and self.open[-1] in ("h1", "h2", "h3"):
            self.headings.append(data)

    @classmethod
    def of(cls, text: str) -> Page:
        page = cls()
        page.feed(text)
        assert page.open == []
        return page
