"""Texts in CSV files that are safe to open in a spreadsheet.

Names of files and classes may come from strangers, and a spreadsheet runs a cell that looks like a
formula: https://owasp.org/www-community/attacks/CSV_Injection
"""

import re

# Full-width signs count too in some locales.
FORMULA = re.compile("[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")


def safe_cell(text: str) -> str:
    """Put an apostrophe before a text that a spreadsheet would take for a formula."""
    return f"'{text}" if FORMULA.match(text) else text
