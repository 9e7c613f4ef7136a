"""An HTML page as tests look at it: its elements, its tables, and whether it is well formed."""

from html.parser import HTMLParser

VOID = {"meta", "link", "img", "br", "hr", "input"}


class Page(HTMLParser):
    """Parses a page; an end tag that does not fit, or is missing, is an error."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, str] = {}
        """Anchor of a section -> all that is written in it."""
        self.tables: dict[str, list[list[str]]] = {}
        """Caption -> rows, the head first."""
        self._open: list[str] = []
        self._section = self._caption = ""
        self._in_caption = False
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.elements.append((tag, found))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "section":
            self._section = found["id"]
        if tag == "p" and found.get("class") == "caption":
            self._caption, self._in_caption = "", True
        if tag == "table":
            self.tables[self._caption] = []
        if tag == "tr":
            self.tables[self._caption].append([])
        if tag in ("td", "th"):
            self.tables[self._caption][-1].append("")

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag
        self._in_caption = False

    def handle_data(self, data):
        self.text[self._section] = self.text.get(self._section, "") + data
        if self._in_caption:
            self._caption += data
        if self._open and self._open[-1] in ("td", "th"):
            self.tables[self._caption][-1][-1] += data
