"""How people write genders, ages and ethnicities: in folder names, and in the columns of tables."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Callable, Iterable
from typing import Final

from shared.faces.labels import MAX_AGE, UNKNOWN

MALE, FEMALE = range(2)

_MALE_WORDS: Final = """
male males man men boy boys gentleman gentlemen masculine
mann maenner manner mannlich maennlich herr herren junge jungen
hombre hombres masculino masculinos varon varones chico chicos nino ninos
homme hommes masculin masculins garcon garcons
uomo uomini maschio maschi maschile ragazzo ragazzi
homem homens menino meninos
mannen mannelijk jongen jongens
mezczyzna mezczyzni muz muzi mies miehet erkek erkekler pria lelaki barbat barbati ferfi
мужчина мужчины мужской мальчик чоловік чоловіки
男 男性 男人 男子 남 남자 남성 ذكر رجل رجال पुरुष आदमी
"""
_FEMALE_WORDS: Final = """
female females woman women girl girls lady ladies feminine
frau frauen weiblich madchen maedchen
mujer mujeres femenino femenina femeninos chica chicas nina ninas
femme femmes feminin feminine feminins fille filles
donna donne femmina femmine femminile ragazza ragazze
mulher mulheres feminino feminina menina meninas
vrouw vrouwen vrouwelijk meisje meisjes
kobieta kobiety zena zeny nainen naiset kadin kadinlar wanita perempuan femeie femei
женщина женщины женский девочка жінка жінки
女 女性 女人 女子 여 여자 여성 أنثى امرأة نساء महिला औरत
"""
_LETTERS: Final = {"m": MALE, "h": MALE, "f": FEMALE, "w": FEMALE}
_PAIRS: Final = {
    frozenset("hm"): {"h": MALE, "m": FEMALE},  # hombre, mujer
    frozenset("mv"): {},  # man, vrouw in Dutch, but mujer, varón in Spanish: nobody can tell
    frozenset("mk"): {"m": MALE, "k": FEMALE},  # mężczyzna, kobieta; man, kvinna
}
"""Letters that mean something else beside each other than alone."""
_GENDER_LETTERS: Final = frozenset(_LETTERS).union(*_PAIRS)
_UTKFACE: Final = {"0": MALE, "1": FEMALE}
_ISO_5218: Final = {"1": MALE, "2": FEMALE}
_ISO_5218_UNKNOWN: Final = frozenset({"0", "9"})
_FILLERS: Final = frozenset(
    [
        "face",
        "faces",
        "image",
        "images",
        "img",
        "imgs",
        "photo",
        "photos",
        "picture",
        "pictures",
        "pics",
        "foto",
        "fotos",
        "bild",
        "bilder",
        "imagenes",
        "train",
        "training",
        "val",
        "valid",
        "validation",
        "test",
        "testing",
        "data",
        "dataset",
        "set",
        "split",
        "crop",
        "cropped",
        "aligned",
        "resized",
        "all",
        "only",
    ]
)
"""Words that may stand beside a gender in a folder's name; a person's name is none of them."""
_SEPARATORS: Final = re.compile(r"[\W_]+")
_NUMBER: Final = re.compile(r"[0-9]+(?:[.,][0-9]+)?")
_MISSING: Final = frozenset({"", "nan", "none", "null", "na"})
"""What programs write into a table where there is nothing."""

_ETHNICITIES: Final = {
    0: "white caucasian european weiss blanc blanco",
    1: "black african africanamerican schwarz noir negro",
    2: "asian eastasian southeastasian chinese japanese korean",
    3: "indian southasian",
    4: "other others latino latina hispanic latinohispanic middleeastern arab mixed",
}


def fold(text: str) -> str:
    """Returns text as it is compared: without case, accents and blanks at its ends."""
    decomposed = unicodedata.normalize("NFKD", text.casefold().replace("\u0131", "i"))  # Turkish
    return "".join(character for character in decomposed if not unicodedata.combining(character)).strip()


def fold_number(text: str) -> str:
    """Returns text as `fold` does, and a whole number without the decimals that tables of numbers give it."""
    return fold(text).removesuffix(".0")


def is_missing(text: str) -> bool:
    """Returns whether a cell says nothing: it is blank, or says that a value is missing."""
    return fold(text) in _MISSING


@functools.cache
def _genders() -> dict[str, int]:
    words = {fold(word): MALE for word in _MALE_WORDS.split()}
    return words | {fold(word): FEMALE for word in _FEMALE_WORDS.split()}


def gender_by_word(text: str) -> int | None:
    """Returns the gender that a text names in a word of its own, alone or beside words such as `faces` and `train`."""
    folded = fold(text)
    if (gender := _genders().get(folded)) is not None:
        return gender
    words = [word for word in _SEPARATORS.split(folded) if word and not word.isdigit()]
    genders = {_genders()[word] for word in words if word in _genders()}
    others = [word for word in words if word not in _genders() and word not in _FILLERS]
    return genders.pop() if len(genders) == 1 and not others else None


def read_letters(values: Iterable[str]) -> Callable[[str], int | None]:
    """Returns what reads a gender in a letter: m or h, f or w; of h and m, the m is female, and k is beside an m.

    Args:
        values: all that stand in a column, or in the folders' place; of other letters and words nothing follows.
    """
    meanings = _PAIRS.get(frozenset(map(fold, values)) & _GENDER_LETTERS, _LETTERS)
    return lambda text: meanings.get(fold(text))


def is_number(text: str) -> bool:
    """Returns whether a text is a number, with or without a sign."""
    return _NUMBER.fullmatch(text.strip().lstrip("+-")) is not None


def read_digits(values: Iterable[str]) -> Callable[[str], int | None]:
    """Returns what reads a gender in digits, which mean something only beside all that stand in their place.

    0 and 1 alone are UTKFace's: male and female. With a 2, and otherwise only 0, 1 and 9, they are those of ISO 5218: 1
    is male, 2 female, 0 and 9 unknown. With anything else among them none is read: it would be a guess, and a wrong one
    turns women into men.

    Args:
        values: all of a column, or all folders that are numbers.
    """
    found = {fold_number(value) for value in values} - _MISSING
    meanings: dict[str, int] = {}
    if found <= _UTKFACE.keys():
        meanings = _UTKFACE
    elif "2" in found and found <= _ISO_5218.keys() | _ISO_5218_UNKNOWN:
        meanings = _ISO_5218
    return lambda text: meanings.get(fold_number(text))


def is_true(text: str) -> bool | None:
    """Returns what a column such as `Male` says: 1, true or yes; 0, -1, false or no; None for anything else."""
    folded = fold_number(text)
    if folded in {"1", "true", "yes", "y", "t"}:
        return True
    return False if folded in {"0", "-1", "false", "no", "n", "f"} else None


def age_of(text: str) -> int:
    """Returns an age in years: a number, or the middle of a range such as `50-59`, `(25, 32)` or `more than 70`."""
    numbers = [float(number.replace(",", ".")) for number in _NUMBER.findall(text.replace(", ", " "))[:2]]
    if not numbers or text.strip().startswith("-"):
        return UNKNOWN
    age = int(sum(numbers) / len(numbers))
    return age if age <= MAX_AGE else UNKNOWN


@functools.cache
def _ethnicities() -> dict[str, int]:
    words = {word: number for number, text in _ETHNICITIES.items() for word in text.split()}
    return words | {str(number): number for number in _ETHNICITIES}


def ethnicity_of(text: str) -> int:
    """Returns an index into `ETHNICITIES`; Latino and Middle Eastern are among *Other*, as UTKFace defines it."""
    return _ethnicities().get(_SEPARATORS.sub("", fold(text)), UNKNOWN)
