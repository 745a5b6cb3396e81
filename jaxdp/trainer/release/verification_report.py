"""What `python -m jaxdp.verify` says of a release."""

from pathlib import Path

from ... import _distribution
from ..columns import folded
from .markdown import as_markdown
from .recomputed import NotKnown
from .statement import Statement, read_statement
from .verification import Check, checks

NAME = "privacy.json"
LIMITS = (
    "Not checked, since it can't be seen from outside: that these mechanisms were run, and what "
    "PRIVACY.md takes for granted."
)


def verify(path: str, width: int) -> tuple[list[str], bool]:
    """Checks the statement of a release.

    Args:
      path: the folder of a run, the release/ in it, or a privacy.json.
      width: of the lines.

    Returns:
      What to tell, and whether the statement holds.

    Raises:
      ValueError: in one line, if there is no statement, or it can't be read or recomputed.
    """
    file = _file(path)
    try:
        statement = read_statement(file)
        found = [*checks(statement), *_page(file, statement)]
    except NotKnown as error:
        raise ValueError(
            f"{file} can't be checked: {error}, which this version can't add"
        ) from None
    except OSError as error:
        raise ValueError(f"{file} can't be read ({error.strerror}): take another copy") from None
    wide = max(len(check.name) for check in found)
    lines = [str(file)]
    for check in found:
        head = f"  {'ok' if check.holds else 'WRONG':5}  {check.name:{wide}}  "
        # A statement's own words must not look like lines of this page, or steer a terminal.
        told = "".join(char if char.isprintable() else "?" for char in check.told)
        first, *others = folded(told, max(width - len(head), 24))
        lines += [head + first, *(" " * len(head) + line for line in others)]
    wrong = [check.name for check in found if not check.holds]
    end = f"The statement does NOT hold: {', '.join(dict.fromkeys(wrong))}."
    if not wrong:
        end = f"The statement holds: {len(found)} checks. {LIMITS}"
    return [*lines, *folded(end, width)], not wrong


def _page(file: Path, statement: Statement) -> list[Check]:
    """Whether PRIVACY.md, which people read, says the same; its words are those of a version."""
    page = file.with_name("PRIVACY.md")
    own = (_distribution.DISTRIBUTION, _distribution.__version__)
    if not page.is_file():
        return []
    if (statement.library.name, statement.library.version) != own:
        told = f"NOT compared: {statement.library.name} {statement.library.version} wrote it"
        return [Check(page.name, True, told)]
    same = page.read_text(encoding="utf-8", errors="replace") == as_markdown(statement)
    return [Check(page.name, same, "says the same" if same else f"is not the page of {NAME}")]


def _file(path: str) -> Path:
    given = Path(path)
    for file in (given / "release" / NAME, given / NAME, given):
        if file.is_file():
            return file
    raise ValueError(
        f"{path} holds no release ({NAME}): give the folder of a run, the release/ in it, or the "
        "file"
    )
