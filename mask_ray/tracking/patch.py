"""What of a patch may be stored with a run: no file that git ignores, nothing like a key."""

import re
from collections.abc import Collection, Sequence
from fnmatch import fnmatch
from pathlib import PurePosixPath

_KEY_FILES = (
    ".env", ".env.*", "*.env", ".netrc", ".npmrc", ".pypirc", ".pgpass", ".htpasswd", "*.pem",
    "*.key", "*.p12", "*.pfx", "*.jks", "*.keystore", "*.kdbx", "*.tfvars", "id_rsa*", "id_dsa*",
    "id_ecdsa*", "id_ed25519*", "auth_token", "*credentials*", "*secrets*",
)  # fmt: skip

# The forms that the providers document, as secret scanners look for them.
_KEYS = re.compile(
    r"""
    -----BEGIN[ ][A-Z ]*PRIVATE[ ]KEY
    | \b(?:AKIA|ASIA)[0-9A-Z]{16}\b                           # AWS
    | \bgh[pousr]_[A-Za-z0-9]{36} | \bgithub_pat_\w{22}       # GitHub
    | \bglpat-[\w-]{20}                                       # GitLab
    | \bAIza[\w-]{35}                                         # Google
    | \bhf_[A-Za-z0-9]{30}                                    # Hugging Face
    | \bsk-[\w-]{20}                                          # OpenAI and others
    | \bxox[abeoprs]-[\w-]{10}                                # Slack
    | \beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.                       # JSON web tokens
    | \b[a-z][a-z0-9+.-]*://[^\s/:@"']+:[^\s/@"'{$]+@         # a password in a URI
    | (?i:secret|passw(?:or)?d|token|api_?key|access_?key|private_?key|credential)[\w-]*
      ["']?\s*[:=]\s*["']?(?=[\w+/-]*\d)(?=[\w+/-]*[A-Za-z])[\w+/-]{16,}={0,2}(?![\w.(\[])
    """,
    re.VERBOSE,
)
_FILE = re.compile(r"^(?=diff --git )", re.MULTILINE)


def shareable(diff: str, names: Sequence[str], ignored: Collection[str]) -> str:
    """Return the patch without files that must not leave the machine.

    Args:
        diff: Output of `git diff --no-renames`.
        names: The files in it, in this order.
        ignored: Files that git tracks although it ignores their names.

    Returns:
        The patch. Lines before it, which `git apply` skips, name what is left out.
    """
    parts = [part for part in _FILE.split(diff) if part.strip()]
    if len(parts) != len(names):
        return "# left out: the whole patch, whose files cannot be separated\n"
    reasons = [_reason(name, part, ignored) for name, part in zip(names, parts, strict=True)]
    left_out = [
        f"# left out: {name!a} {reason}\n"
        for name, reason in zip(names, reasons, strict=True)
        if reason
    ]
    return "".join(left_out) + "".join(
        part for part, reason in zip(parts, reasons, strict=True) if not reason
    )


def _reason(name: str, part: str, ignored: Collection[str]) -> str:
    """Return why a file is left out; empty if it is not."""
    if name in ignored:
        return "is ignored by git"
    file_name = PurePosixPath(name).name.lower()
    if any(fnmatch(file_name, pattern) for pattern in _KEY_FILES):
        return "has the name of a file of keys"
    return "holds what looks like a key" if _KEYS.search(part) else ""
