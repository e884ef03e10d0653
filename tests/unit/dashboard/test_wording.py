"""Plain words: what readers stumbled over stands on no page, in no script, reply or document."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[3]
OLD_WORDS = {
    # what was said: what is said now
    r"\bwants? attention\b": "Needs attention",
    r"\bwas failed\b": "failed",
    r"\bimages a second\b": "images/s",
    r"\bat worst\b": "Worst",
    r"\bnewest predictions\b": "Recent predictions",
    r"\bsent to the queue\b": "via the queue",
    r"\bin a pack\b|\bin one pack\b": "in a batch",
    r"\btrainings\b": "Training runs",
    r"\bin work\b": "In progress",
    r"\bheard of yet\b|\bthat it lives\b": "No services running",
    r"\bdrawn faces\b|\bdrawing the sample\b": "synthetic faces; Generating…",
    r"\bnot read yet\b": "not processed yet",
    r"\blast used\b": "Last run",
    r"\bnamed (fe)?male\b|>named\b|>Named<": "Predicted",
    r">labelled<|\"labelled\"": "Label",
    r"\bname holds\b|\bname's? holds? that\b": "File name contains",
    r"\bright or wrong\b|✓ right": "Correct?",
    r">part<|\"part\"": "Split",
    r"\bsurest\b|\bleast sure\b|\bmost wrong\b|% sure\b": "Most confident; Largest error; confidence",
    r"\bface fits\b|\bloosen\b": "No faces match",
    r"\bsame face twice\b|\bcontradicting labels\b|\blook-alikes\b": "Exact duplicates; Near-duplicates",
    r"\bleft out, and why\b": "Rejected files",
    r"\bleads to its faces\b": "click a cell to see its faces",
    r"\bring on both curves\b": "marked on both curves",
    r"\bevery group\b.*</h2>": "Accuracy by group",
    r"\bfalsely named\b": "false-positive rate",
    r"\bmost firmly\b": "most confidently disagrees",
    r"\bdrawn from the first epoch\b": "Appears after the first epoch.",
    r"\bis given up\b": "Progress will be lost.",
    r"\basked to stop\.": "Cancelling…",
    r"\buser cancelled\b": "Cancelled by a user",
    r"\bbug on our side\b": "Internal error",
    r"\bwhat serves now\b|\bworkers that serve\b|\bits run\b|\bits own page\b": "Serving now; Details",
    r"\breason, which is kept\b": "Reason (recorded)",
    r"\bchallenges no longer\b": "Challenger removed:",
    r"\bwhere did it look\b|\bwhere it looked\b|\bthe network looked\b": "Explain",
    r"\bnext wrong one\b|\bas given\b|\bas the network sees it\b(?=.*figcaption)": "Next misclassified",
    r"\bchosen ones\b|\bchoose all\b": "selected; Select all",
    r"\bwhere they came from\b|\bfor good\b": "re-queued; deleted",
    r"\bdead letters?\b(?!-)": "Failed messages",
    r"\bredelivered\b": "Attempts",
    r"\bthat did not work\b": "Page not found",
    r"\bwhoever runs it\b|\bthat is not the token\b": "ask the administrator; Wrong token.",
    r"\bin the queue, waiting\b": "Queued (n ahead)",
    r"\bby itself\b": "automatically",
}
GLOSSARY = {
    "dataset.html": ["Predicted by model", "Decision threshold", "Confidence from"],
    "../../shared/datasets/face_filter.py": ["Predicted", "Label", "Correct?", "Split", "Confidence"],
    "answer.html": ["Accuracy by group", "Confusion matrix", "Decision threshold"],
    "face.html": ["Predicted", "Label", "Correct?", "Split", "Confidence"],
    "job.html": ["Predicted", "Label", "Correct?", "Confidence"],
    "predict.html": ["Predicted", "Label"],
    "dead.html": ["Failed messages"],
    "base.html": ["Failed messages"],
}


def texts_of_python(path: Path) -> Iterator[tuple[int, str]]:
    """Yields (line, text) of the strings that a module says to people: all but its docstrings."""
    tree = ast.parse(path.read_text())
    silent = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            silent.add(id(node.value))  # what stands below a constant explains it
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in silent:
            yield node.lineno, node.value


PAGES_ONLY = (
    r"\bdead letters?\b(?!-)",
    r"\bby itself\b",
    r"\bwhere they came from\b|\bfor good\b",
    r"\bwhat serves now\b|\bworkers that serve\b|\bits run\b|\bits own page\b",
)
"""Not said to users of the dashboard; in text for engineers these are the field's terms, or plain."""


def said() -> Iterator[tuple[str, str]]:
    """Yields (place, text) of everything that a reader of pages, replies, errors and documents sees."""
    folder = REPOSITORY / "dashboard"
    pages = [*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/*.md")]
    for path in sorted([*folder.glob("templates/*.html"), *folder.glob("static/js/*.js"), *pages]):
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            if not line.lstrip().startswith(("//", "{#", "#")):
                yield f"{path.relative_to(REPOSITORY)}:{number}", line
    for package in ("shared", "trainer", "inference", "dashboard"):
        for path in sorted((REPOSITORY / package).rglob("*.py")):
            for number, text in texts_of_python(path):
                yield f"{path.relative_to(REPOSITORY)}:{number}", text


@pytest.mark.parametrize("old", OLD_WORDS, ids=lambda old: OLD_WORDS[old])
def test_old_words_are_gone(old: str) -> None:
    found = [
        f"{place}: {text.strip()[:160]}"
        for place, text in said()
        if re.search(old, text, re.IGNORECASE)
        and (old not in PAGES_ONLY or place.startswith(("dashboard/", "docs/api.md")))
    ]

    assert found == [], f"say: {OLD_WORDS[old]}"


@pytest.mark.parametrize("page", GLOSSARY)
def test_pages_keep_to_the_glossary(page: str) -> None:
    text = (REPOSITORY / "dashboard" / "templates" / page).read_text()

    assert [word for word in GLOSSARY[page] if word not in text] == []
