"""Datasets as people have them: the same drawn faces in ten layouts."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterator
from typing import Final

import cv2
import numpy as np
from PIL import Image

from shared.faces.labels import ETHNICITIES
from tests.support.builders.archives import Files, face_jpeg, face_pixels, saved, zipped

FACES: Final = 60
"""How many there are in each layout: thirty of each gender, of every age and ethnicity."""


def _people(count: int = FACES) -> Iterator[tuple[int, int, int, int, bytes]]:
    """Yields number, age, gender, ethnicity and JPEG."""
    for number in range(count):
        gender = number % 2
        yield number, 20 + number % 50, gender, number % 5, face_jpeg(number, gender)


def tarred(files: Files, *, gzip: bool = False) -> bytes:
    """Returns a tar of the files, packed by gzip if so wished."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz" if gzip else "w") as archive:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def _utkface() -> Files:
    return [
        (f"UTKFace/{age}_{gender}_{ethnicity}_2017011{number:012d}.jpg.chip.jpg", data)
        for number, age, gender, ethnicity, data in _people()
    ]


def utkface() -> bytes:
    """UTKFace: labels in the names."""
    return zipped(_utkface())


def utkface_tar_gz() -> bytes:
    """UTKFace as it comes."""
    return tarred(_utkface(), gzip=True)


def folders() -> bytes:
    """A folder for each gender, below one for each part."""
    return zipped(
        (f"faces/{'val' if number % 5 == 0 else 'train'}/{('male', 'female')[gender]}/{number:04d}.jpg", data)
        for number, _, gender, _, data in _people()
    )


def spanish_folders() -> bytes:
    """Folders in another language, from Windows: backslashes."""
    return zipped(
        (f"Fotos\\{('Hombres', 'Mujeres')[gender]}\\foto {number}.jpg", data)
        for number, _, gender, _, data in _people()
    )


def fairface() -> bytes:
    """FairFace: two parts, a table for each, ages as ranges."""
    races = ("White", "Black", "East Asian", "Indian", "Middle Eastern")
    tables = {part: ["file,age,gender,race,service_test"] for part in ("train", "val")}
    files = []
    for number, age, gender, ethnicity, data in _people():
        part = "val" if number % 5 == 0 else "train"
        low = age // 10 * 10
        in_words = "more than 70" if age >= 70 else f"{low}-{low + 9}"
        row = f"{part}/{number}.jpg,{in_words},{('Male', 'Female')[gender]},{races[ethnicity]},{number % 3 == 0}"
        tables[part].append(row)
        files.append((f"fairface-img-margin025-trainval/{part}/{number}.jpg", data))
    for part, lines in tables.items():
        files.append((f"fairface_label_{part}.csv", "\n".join(lines).encode()))
    return zipped(files)


def celeba() -> bytes:
    """CelebA: a table with blanks that starts with a count, and forty attributes of 1 and -1."""
    attributes = ("5_o_Clock_Shadow", "Arched_Eyebrows", "Male", "Smiling", "Young")
    lines = [str(FACES), " ".join(attributes)]
    files = []
    for number, age, gender, _, data in _people():
        signs = [-1, 1 if gender else -1, -1 if gender else 1, 1 if number % 3 else -1, 1 if age < 40 else -1]
        lines.append(f"{number + 1:06d}.jpg " + " ".join(f"{sign:2d}" for sign in signs))
        files.append((f"img_align_celeba/{number + 1:06d}.jpg", data))
    return zipped([*files, ("Anno/list_attr_celeba.txt", ("\r\n".join(lines) + "\r\n").encode())])


def adience() -> bytes:
    """Adience: a folder for each person, tables for each fold, faces whose gender nobody knows."""
    header = "user_id\toriginal_image\tface_id\tage\tgender\tx\ty\tdx\tdy\ttilt_ang\tfiducial_yaw_angle\tfiducial_score"
    folds: list[list[str]] = [[header] for _ in range(5)]
    files = []
    for number, age, gender, _, data in _people():
        user, image, face = f"{30_000_000 + number // 4}@N03", f"{9_600_000 + number}_o.jpg", 1 + number % 4
        letter = "u" if number % 20 == 7 else "mf"[gender]
        low = age // 10 * 10
        folds[number % 5].append(f"{user}\t{image}\t{face}\t({low}, {low + 7})\t{letter}\t0\t0\t9\t9\t0\t0\t50")
        files.append((f"AdienceBenchmark/aligned/{user}/landmark_aligned_face.{face}.{image}", data))
    for number, lines in enumerate(folds):
        files.append((f"AdienceBenchmark/fold_{number}_data.txt", "\n".join(lines).encode()))
    return zipped(files)


def lfw() -> bytes:
    """LFW: a folder for each person, and a list of the files of each gender."""
    lists: tuple[list[str], list[str]] = ([], [])
    files = []
    for number, _, gender, _, data in _people():
        person = f"{('George', 'Anna')[gender]}_W_Person{number // 4}"
        name = f"{person}_{number % 4 + 1:04d}.jpg"
        lists[gender].append(name)
        files.append((f"lfw-deepfunneled/{person}/{name}", data))
    for word, names in zip(("male", "female"), lists, strict=True):
        files.append((f"{word}_names.txt", "\n".join(names).encode()))
    return zipped(files)


def hugging_face() -> bytes:
    """Hugging Face's `imagefolder`: a `metadata.csv` in each part, names relative to it."""
    files = []
    for part in ("train", "test"):
        lines = ["file_name,gender,age,ethnicity"]
        for number, age, gender, ethnicity, data in _people():
            if (number % 5 == 0) == (part == "test"):
                lines.append(f"images/{number}.png,{('man', 'woman')[gender]},{age},{ETHNICITIES[ethnicity]}")
                files.append((f"data/{part}/images/{number}.png", data))
        files.append((f"data/{part}/metadata.csv", "\n".join(lines).encode()))
    return zipped(files)


def phone() -> bytes:
    """A phone's folder: HEIC, turned by EXIF, in two albums."""
    import pillow_heif

    pillow_heif.register_heif_opener()
    files = []
    exif = Image.Exif()
    exif[0x0112] = 6
    for number, _, gender, _, _ in _people():
        pixels = cv2.cvtColor(cv2.resize(face_pixels(number, gender), (128, 128)), cv2.COLOR_BGR2RGB)
        image = Image.fromarray(np.rot90(pixels, 1) if number % 2 else pixels)
        data = saved(image, "HEIF", quality=80, **({"exif": exif.tobytes()} if number % 2 else {}))
        files.append((f"{('Men', 'Women')[gender]}/IMG_{number:04d}.HEIC", data))
    return zipped(files)


LAYOUTS: Final[dict[str, Callable[[], bytes]]] = {
    "UTKFace": utkface,
    "UTKFace.tar.gz": utkface_tar_gz,
    "male and female folders": folders,
    "the same in Spanish": spanish_folders,
    "FairFace": fairface,
    "CelebA": celeba,
    "Adience": adience,
    "LFW": lfw,
    "Hugging Face imagefolder": hugging_face,
    "a phone's folder of HEIC": phone,
}
