"""What every page of HTML must be: well nested, with unique ids, with words for every picture, and without other hosts."""

import re
from html.parser import HTMLParser

VOID = {"area", "br", "col", "hr", "img", "input", "link", "meta", "source", "wbr"}
INSIDE = {"p": {"div", "p", "table", "ul", "ol", "dl", "figure", "section", "h2", "h3", "pre"}, "button": {"a", "button"}}
"""What may not stand within an element, as far as a template is likely to do it."""


def faults(text: str) -> list[str]:
    """What is wrong with a page; nothing where it is sound."""
    page = _Page()
    page.feed(text)
    page.close()
    found = page.faults + [f"<{tag}> is not closed" for tag in page.stack]
    found += [f"id {id_} occurs {page.ids.count(id_)} times" for id_ in set(page.ids) if page.ids.count(id_) > 1]
    found += [f"nothing has the id {id_}" for id_ in page.references if id_ not in page.ids]
    if not text.startswith("<!doctype html>\n"):
        found.append("the page does not begin with its doctype")
    return found


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.stack: list[str] = []
        self.faults: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.attributes(tag, attrs)
        for outer, refused in INSIDE.items():
            if outer in self.stack and tag in refused:
                self.faults.append(f"<{tag}> within <{outer}>")
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.attributes(tag, attrs)

    def handle_endtag(self, tag):
        if not self.stack or self.stack.pop() != tag:
            self.faults.append(f"</{tag}> at {self.getpos()} closes another element")

    def handle_data(self, data):
        if self.stack and self.stack[-1] == "style":
            self.addresses("style", data)

    def attributes(self, tag, attrs):
        values = dict(attrs)
        if len(values) < len(attrs):
            self.faults.append(f"<{tag}> has an attribute twice")
        if any(name.startswith("on") for name in values) or tag in ("script", "link", "iframe", "object", "embed"):
            self.faults.append(f"<{tag}> {sorted(values)} runs or loads something")
        if tag in ("img", "svg") and not (values.get("alt") or values.get("aria-label")):
            self.faults.append(f"<{tag}> says nothing to those who do not see it")
        self.ids += [values["id"]] if "id" in values else []
        for name in ("src", "href", "srcset", "poster", "action"):
            if name in values and not values[name].startswith(("data:", "#")):
                self.faults.append(f"<{tag} {name}> leads to {values[name][:60]}")
        self.references += [v[1:] for k, v in values.items() if k == "href" and v.startswith("#")]
        self.references += [values[name] for name in ("for", "popovertarget", "aria-labelledby") if name in values]
        for name in ("style", "clip-path", "fill", "stroke"):
            self.addresses(name, values.get(name) or "")

    def addresses(self, where, text):
        for address in re.findall(r"url\(([^)]*)\)|@import", text):
            if address.startswith("#"):
                self.references.append(address[1:])
            else:
                self.faults.append(f"{where} loads {address[:60]}")
