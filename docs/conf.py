"""How Sphinx builds these pages: `.ci/docs` runs it."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

from docutils import nodes
from docutils.utils import get_source_line
from sphinx import addnodes
from sphinx.transforms import SphinxTransform

_ROOT = Path(__file__).parents[1]
_PROJECT = tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]

project = _PROJECT["name"]
release = version = _PROJECT["version"]
copyright = "the txmail contributors"
html_theme = "furo"
html_title = f"{project} {release}"
html_copy_source = False
# A literal block is Python only where the page says so.
highlight_language = "none"
exclude_patterns = ["_build"]
# `like this` without a role is a name in the code.
default_role = "literal"


class RelativeLinks(SphinxTransform):
    """Links to files, `queue.rst`, lead in the built pages where they lead in the sources.

    A link to another page leads to that page; a link to any other file offers the file. Sphinx
    warns if there is no such page or file.
    """

    default_priority = 5

    def apply(self, **_: object) -> None:
        for link in list(self.document.findall(nodes.reference)):
            target = link.get("refuri", "")
            if target and ":" not in target:
                link.replace_self(self._resolved_by_sphinx(link, target))

    def _resolved_by_sphinx(self, link: nodes.reference, target: str) -> nodes.Element:
        attributes = {"refdoc": self.env.docname, "refwarn": True}
        # The README is included in a page, and its links start at its own folder.
        path = Path(get_source_line(link)[0]).parent.joinpath(target).resolve()
        if path.suffix == ".rst" and path.is_relative_to(self.env.srcdir):
            page = path.relative_to(self.env.srcdir).with_suffix("")
            attributes |= {"reftype": "doc", "refdomain": "std", "reftarget": f"/{page.as_posix()}"}
            return addnodes.pending_xref(
                "", nodes.inline("", link.astext()), refexplicit=True, **attributes
            )
        file = os.path.relpath(path, self.env.srcdir)
        attributes |= {"reftype": "download", "reftarget": f"/{file}"}
        return addnodes.download_reference("", nodes.literal("", link.astext()), **attributes)


def setup(app) -> dict[str, bool]:
    app.add_transform(RelativeLinks)
    return {"parallel_read_safe": True}
