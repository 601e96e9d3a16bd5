"""A page as a browser reads it: its text, and what could load or run something."""

from html.parser import HTMLParser

EMPTY_TAGS = {"meta", "path", "br"}


class Page(HTMLParser):
    """Text, tags and attributes of a page; fails on tags that do not match."""

    def __init__(self, source):
        super().__init__()
        self.text, self.tags, self.attributes, self._open, self._texts = "", [], [], [], []
        self.feed(source)
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in EMPTY_TAGS:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open[-1:] != ["style"]:
            self.text += data
            self._texts.append(data)

    @property
    def said(self):
        """The text with single spaces, also between elements."""
        return " ".join(" ".join(self._texts).split())

    def assert_inert(self):
        """Nothing is loaded or run, whatever a model or a user wrote."""
        assert not {"script", "link", "img", "iframe", "object", "base"} & set(self.tags)
        assert not [name for name, _ in self.attributes if name in ("src", "href") or name.startswith("on")]
        assert dict(self.attributes)["content"].startswith("default-src 'none'")
