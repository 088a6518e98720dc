"""A licence in the Hub's words: one of its identifiers, or `other` with a name and a link.

The identifiers are those of huggingface.co/docs/hub/repositories-licenses, as of August 2026. The Hub files what is not
among them under no licence at all, so another word is `license: other` with that word as `license_name`.
"""

from __future__ import annotations

import re

from pipeline.errors import ParamsError

IDENTIFIERS = {
    "afl-3.0", "agpl-3.0", "apache-2.0", "apple-amlr", "apple-ascl", "artistic-2.0", "bigcode-openrail-m",
    "bigscience-bloom-rail-1.0", "bigscience-openrail-m", "bsd", "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear",
    "bsl-1.0", "c-uda", "cc", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0",
    "cc-by-nc-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0",
    "cc-by-nd-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc0-1.0", "cdla-permissive-1.0", "cdla-permissive-2.0",
    "cdla-sharing-1.0", "creativeml-openrail-m", "deepfloyd-if-license", "ecl-2.0", "epl-1.0", "epl-2.0", "etalab-2.0",
    "eupl-1.1", "eupl-1.2", "fair-noncommercial-research-license", "gemma", "gfdl", "gpl", "gpl-2.0", "gpl-3.0",
    "grok2-community", "h-research", "intel-research", "isc", "lgpl", "lgpl-2.1", "lgpl-3.0", "lgpl-lr", "llama2",
    "llama3", "llama3.1", "llama3.2", "llama3.3", "llama4", "lppl-1.3c", "mit", "mpl-2.0", "ms-pl", "ncsa", "odbl",
    "odc-by", "ofl-1.1", "openmdw-1.0", "openmdw-1.1", "openrail", "openrail++", "osl-3.0", "pddl", "postgresql",
    "unknown", "unlicense", "wtfpl", "zlib",
}  # fmt: skip
OTHER = "other"
_FILES = ("LICENSE", "LICENSE.md")  # what a link may name in the folder itself


def matter(licence: str, link: str = "") -> dict[str, str]:
    """Return what the front matter of a card says of a licence; nothing where none is known.

    Args:
        licence: an identifier, in any case and with blanks for dashes, or a name of one's own.
        link: where the text of a licence of another name is; "" leaves it out.

    Raises:
        ParamsError: no name can be made of it, or the link does not fit.
    """
    if link and not (link in _FILES or re.match(r"https?://\S+$", link)):
        raise ParamsError(
            f"'{link}' is no link to a licence, expected https://... or {' or '.join(_FILES)}, a file of the folder."
        )
    if not licence:
        if link:
            raise ParamsError("There is a link to a licence without a name. Give --licence too.")
        return {}

    name = re.sub(r"[\s_]+", "-", licence.strip().lower())
    if name in IDENTIFIERS:
        if link:
            raise ParamsError(f"'{name}' is a licence that the Hub has a link for. Leave out --licence-link.")
        return {"license": name}

    name = re.sub(r"-+", "-", re.sub(r"[^a-z0-9.-]", "", name)).strip("-.")
    if name in ("", OTHER):
        raise ParamsError(
            f"'{licence}' does not say which licence it is. Give its name: an identifier of the Hub such as "
            "apache-2.0, or one of your own in plain letters such as my-license-1.0."
        )
    return {"license": OTHER, "license_name": name} | ({"license_link": link} if link else {})
