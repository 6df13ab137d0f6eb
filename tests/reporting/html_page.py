"""A page as a browser would take it, for tests of reports."""

from html.parser import HTMLParser

VOID = {"meta", "link", "img", "br", "input", "hr"}


class Page(HTMLParser):
    """Well-formed tags, the ids of sections, what is missing, and every address that a browser would load."""

    def __init__(self, text):
        super().__init__()
        self.open, self.sections, self.missing, self.addresses, self.tags = [], [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.tags.append(tag)
        if tag == "section":
            self.sections.append(values["id"])
        if values.get("class") == "missing":
            self.missing.append(self.sections[-1])
        self.addresses += [values[name] for name in ("src", "href", "xlink:href") if name in values]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, (tag, self.getpos())
