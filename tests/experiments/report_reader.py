"""Reads a report's page, for the tests."""

from html.parser import HTMLParser


class Page(HTMLParser):
    """A page taken apart: its tags with their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.pieces: list[str] = []
        self.feed(text)
        self.close()
        self.whole = "".join(self.pieces)
        self.text = " ".join(self.whole.split())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in ("td", "th", "h1", "h2", "h3", "p", "li", "tr", "pre", "summary"):
            self.pieces.append(" ")

    def handle_data(self, data):
        self.pieces.append(data)

    def values(self, attribute: str) -> list[str]:
        return [attributes[attribute] for _, attributes in self.tags if attribute in attributes]
