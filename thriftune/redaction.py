"""Secrets in texts: passwords, signatures and tokens, removed before anything is written or shown.

The one place that knows what a secret looks like. Files go through `thriftune.artifacts.write_text`, errors through the
classes in `thriftune.errors`, the log through tasks/log.py, pages through tasks/pages.py; all of them ask here.
"""

import re

MARK = "REDACTED"

# Names, or parts of names, of URL parameters that grant access: presigned URLs of S3, GCS, Azure, OSS, CloudFront and
# Akamai, and common names of keys. Lengths are bounded so that no text takes more than linear time.
_SURELY_LETS_IN = (
    r"(?:[\w.-]{0,40}(?:signature|token|secret|passw(?:or)?d|passphrase|credential|access-?_?key|api-?_?key)[\w.-]{0,40}"
    r"|x-(?:amz|goog|oss|cos|ms)-[\w-]{1,40}|googleaccessid|key-pair-id|sig)"
)
# In a URL these count too; in other texts they are ordinary words.
_LETS_IN = (
    rf"(?:{_SURELY_LETS_IN}|policy|security|authorization|auth|jwt|sas|sign"
    r"|g?key|pass|pwd|pin|code|hdn(?:ts|ea)|__gda__|session(?:id)?)"
)
# Part of a signature, but not secret: they change each time a URL is signed (Azure, S3 and GCS v2).
_BESIDE_SIGNATURE = frozenset(
    {"expires", "sv", "ss", "srt", "sp", "st", "se", "sr", "sip", "spr", "skoid", "sktid", "skt", "ske", "sks", "skv"}
)
# What comes before a parameter: plain, in HTML, in JSON that is safe in HTML, and in a URL inside another URL.
_BEFORE = r"(?:[?&;#]|&amp;|\\u0026|%3F|%26|%23)"
_VALUE = r"[\w%+/=.~:*!$@,-]*[\w%+/=~*$@-]"  # not the colon or the comma of the sentence around it
_PARAMETER = re.compile(rf"({_BEFORE}({_LETS_IN})(?:=|%3D)){_VALUE}", re.IGNORECASE)
_NAME_SURELY_LETS_IN = re.compile(_SURELY_LETS_IN, re.IGNORECASE)
# The part between :// and @ of a URL. After a colon with a number and a slash (a port), or after an address in
# brackets, the @ belongs to the path.
_USER = re.compile(r"(?!\[[\da-fA-F:.]*\](?::\d{1,5})?/)[^\s/:\"'<>?#]*(?::(?!\d{1,5}[/?#])[^\s\"'<>]*)?")
# With several @ the last one ends it, as URL parsers do: somebody wrote a password without escaping it.
_AT_IN_PASSWORD = re.compile(r"(?:@[^\s/:\"'<>?#@,;]{0,1000}(?=@))*")
_LONGEST_USER = 1000
# Schemes where a single name before the @ is a container or account, not a secret.
_NAMES_NO_SECRET = ("abfs", "abfss", "wasb", "wasbs", "sftp", "ssh")
_SCHEME = re.compile(r"[\w+.-]{1,20}$")
# Long, and made of letters and digits: only a machine writes such a value, whatever its parameter is called.
_OPAQUE = re.compile(
    rf"({_BEFORE}(?:[\w.-]{{1,40}}=)?)([\w%+/~-]{{20,}}=*)"
    r"(?=[).,\]]*(?:$|[\s\"'<>|&;#\\]))"
)
_LONGEST_URL = 2000
_NOT_IN_URLS = re.compile(r"[\s\"'<>|]")
_DIGIT, _LETTER = re.compile(r"\d"), re.compile("[A-Za-z]")
_TOKEN = re.compile(
    r"(?:\b|(?<=\\[nrtbf]))(?:(?:hf|api_org|gh[opsur])_[A-Za-z0-9]{16,}|github_pat_\w{16,}|(?:AKIA|ASIA)[A-Z0-9]{12,}|glpat-[\w-]{16,}"
    r"|eyJ[\w-]{8,2000}\.eyJ[\w-]{8,4000}(?:\.[\w-]{1,2000})?)"
)
_BEARER = re.compile(r"(\b(?:bearer|authorization:\s*\w{1,20})\s{1,4})(?=\S{0,200}?\d)[\w.~+/=-]{8,}", re.IGNORECASE)


def redacted(text: str) -> str:
    """A text with the secrets in it replaced by REDACTED.

    Args:
        text: Any text: a message, a page, JSON.
    """
    if "://" in text:
        text = _without_users(text)
    text = _PARAMETER.sub(_without_parameter, text)
    if "://" in text:
        text = _OPAQUE.sub(_without_opaque, text)
    text = _TOKEN.sub(MARK, text)
    return _BEARER.sub(rf"\1{MARK}", text)


def names_user(place: str) -> bool:
    """Whether a URL has a user or a password in it, like http://user:password@host."""
    return _without_users(place) != place


def unsigned(place: str) -> str:
    """A URL without the parameters of its signature; any other path or hub id unchanged.

    So results of the same file have the same name, for example in a cache, whatever the signature it was fetched with.

    Args:
        place: Path, hub id or URL.
    """
    start, mark, query = place.partition("?")
    if "://" not in start or not mark:
        return place
    parameters = query.partition("#")[0].split("&")
    names = [parameter.partition("=")[0] for parameter in parameters]
    signing = {name for name in names if _NAME_SURELY_LETS_IN.fullmatch(name)}
    if not signing:
        return place
    signing |= {name for name in names if name.lower() in _BESIDE_SIGNATURE}
    kept = [parameter for name, parameter in zip(names, parameters, strict=True) if name not in signing]
    return start + (f"?{'&'.join(kept)}" if kept else "")


def _without_users(text: str) -> str:
    parts: list[str] = []
    done = 0
    for at in re.finditer("@", text):
        # Backwards from the @, so that a text without spaces takes no longer.
        before = text[max(done, at.start() - _LONGEST_USER) : at.start()]
        scheme, separator, user = before.rpartition("://")
        if not separator or not _USER.fullmatch(user) or _is_harmless(scheme, user):
            continue
        parts += [text[done : at.start() - len(user)], MARK]
        done = _AT_IN_PASSWORD.match(text, at.start()).end()  # type: ignore[union-attr]
    return "".join([*parts, text[done:]])


def _is_harmless(before: str, user: str) -> bool:
    scheme = _SCHEME.search(before)
    return scheme is not None and scheme[0].lower() in _NAMES_NO_SECRET and ":" not in user


def _without_parameter(found: re.Match[str]) -> str:
    is_sure = found[1][0] != ";" and _NAME_SURELY_LETS_IN.fullmatch(found[2])
    return f"{found[1]}{MARK}" if is_sure or _is_in_url(found) else found[0]


def _without_opaque(found: re.Match[str]) -> str:
    # Search the value alone: what is redacted must not depend on the text after it.
    is_opaque = _DIGIT.search(found[2]) and _LETTER.search(found[2])
    return f"{found[1]}{MARK}" if is_opaque and _is_in_url(found) else found[0]


def _is_in_url(found: re.Match[str]) -> bool:
    before = found.string[max(0, found.start() - _LONGEST_URL) : found.start()].rpartition("://")
    return bool(before[1]) and not _NOT_IN_URLS.search(before[2])
