"""Meanings of the names of folders, columns and cells: one table for folders of photographs and for lists.

A folder called ``Training`` or ``测试集`` is no class, and a column ``Subset`` is no remark: who made them said which
pictures are for testing. Names are compared without case, accents, digits, and words such as *set*, *data* or *images*.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable

# Besides English: German, French, Spanish, Portuguese, Italian, Dutch, Polish, Russian, Turkish, Indonesian, Chinese,
# Japanese and Korean. "eval" is said of both, see splits_of.
SPLIT_WORDS = {
    "train": "train training trainings trn trainval treino treinamento entrainement apprentissage entrenamiento "
    "addestramento allenamento trening treningowy uczacy обучение обучающая тренировка egitim latih pelatihan 训练 "
    "訓練 学習 トレーニング 훈련 학습",
    "val": "val vals valid validate validation validations validating dev devel development validierung validierungs "
    "validacion validacao validazione convalida validatie walidacja walidacyjny валидация dogrulama validasi 验证 驗證 "
    "検証 バリデーション 검증",
    "test": "test tests testing tst prueba pruebas teste testes testowy тест тестовая тестирование uji pengujian 测试 "
    "測試 テスト 테스트",
    "eval": "eval evaluate evaluation evaluating evaluierung evaluacion avaliacao valutazione evaluatie holdout 评估 "
    "評価 평가",
}
SHORT_WORDS = {"tr": "train", "va": "val", "vl": "val", "te": "test", "ts": "test"}  # also codes of languages
FILLERS = (
    "sets data dataset datasets images image imgs img pictures picture photos photo pics split splits folder samples "
    "daten datensatz satz menge bilder fotos donnees jeu datos conjunto dados dati dane imagenes imagens 集合 集 数据 "
    "數據 资料 图片 图像 データ セット 画像 用 데이터 세트 이미지 set"
)
PARTICLES = ("de", "da", "do", "di", "du", "des", "of", "for", "the", "to", "pour", "para", "per", "fur", "is")
SPLIT_HEADINGS = "split splits subset subsets partition partitions fold folds kfold cvfold aufteilung particion"
PERHAPS_HEADINGS = "set sets dataset datasets data phase phases usage mode stage group part role"
MASK_WORDS = (
    "mask masks segmentation segmentations segmentationmasks annotation annotations label labels groundtruth trimap "
    "trimaps masken masque masques mascara mascaras maschere 掩码 掩膜 标注 標註 マスク"
)

LONGEST = 60  # letters: a longer name is a sentence, and would take the patterns below a while
MOST_VALUES = 50  # different cells of a column that may tell the splits


def _words(name: str) -> list[str]:
    """Return the words and numbers of a name, in small letters without accents: "évalSet_2" → eval, set, 2."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    plain = unicodedata.normalize("NFKD", spaced.casefold())
    return re.findall(r"[^\W\d_]+|\d+", "".join(mark for mark in plain if not unicodedata.combining(mark)))


def _any_of(names: str) -> str:
    return "|".join("".join(_words(name)) for name in names.split())


_FILLER = f"(?:{_any_of(FILLERS)})*"
_SPLIT = re.compile(
    f"{_FILLER}(?:{'|'.join(f'(?P<{split}>{_any_of(names)})' for split, names in SPLIT_WORDS.items())}){_FILLER}"
)
_MASK = re.compile(f"{_FILLER}(?:{_any_of(MASK_WORDS)}){_FILLER}")
_HEADING = re.compile(f"{_FILLER}(?:{_any_of(SPLIT_HEADINGS)}){_FILLER}")


def splits_of(names: Iterable[str]) -> dict[str, str]:
    """Return ``"train"``, ``"val"`` or ``"test"`` for those of some names that mean one.

    Names that stand side by side explain each other: ``eval`` means val beside a test set, otherwise test; ``tr`` and
    ``te`` mean something only together; ``birds_train`` and ``birds_test`` do, while ``bullet train`` is a train, and
    ``class test`` is a class.
    """
    names = list(dict.fromkeys(names))
    found = {name: split for name in names if (split := _split_of(_words(name)))}
    alone = {name: split for name in names if (split := SHORT_WORDS.get("".join(_words(name))))}
    found |= {name: split for name, split in alone.items() if {*found.values(), *alone.values()} - {split}}
    together = defaultdict(dict)
    for name in names:
        words = _words(name)
        said = [i for i, word in enumerate(words) if _split_of([word])]
        if len(said) == 1 and name not in found and "class" not in words:
            together[*words[: said[0]], *words[said[0] + 1 :]][name] = _split_of([words[said[0]]])
    for group in together.values():
        if len(set(group.values())) > 1:
            found |= group
    return _without_eval(found)


def _split_of(words: list[str]) -> str | None:
    match = _fits(_SPLIT, [word for word in words if word not in PARTICLES])
    return match.lastgroup if match else None


def _fits(pattern: re.Pattern, words: list[str]) -> re.Match | None:
    text = "".join(word for word in words if not word.isdecimal())
    return pattern.fullmatch(text) if len(text) <= LONGEST else None


def _without_eval(found: dict[str, str]) -> dict[str, str]:
    """Replace "eval" by what is missing of test and val; beside both of them nobody knows what it means."""
    said = set(found.values())
    meaning = "test" if "test" not in said else "val" if "val" not in said else None
    known = {name: meaning if split == "eval" else split for name, split in found.items()}
    return {name: split for name, split in known.items() if split}


def says_split(heading: str, cells: Iterable[str]) -> bool:
    """True if a column tells the split of each row: by its heading, or by what at least half of its cells mean."""
    words = _words(heading)
    if _fits(_HEADING, words) or _split_of(words):
        return True
    filled = [cell for cell in cells if cell]
    if len(set(filled)) > MOST_VALUES:
        return False
    known = splits_of(filled)
    understood = sum(cell in known for cell in filled)
    perhaps = "".join(words) in PERHAPS_HEADINGS.split()
    return understood > 0 and (perhaps or 2 * understood >= len(filled))


def means_mask(name: str) -> bool:
    """True if a folder of this name holds masks, outlines or other notes about the pictures."""
    return _fits(_MASK, _words(name)) is not None


def looks_like(name: str) -> str:
    """Return what two names share that differ only in case, spaces or the form of their letters."""
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())


def readable(name: str) -> str:
    r"""Return a name that can be shown and stored: without line breaks; ``caf\udce9`` for bytes that are no UTF-8."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", lambda mark: repr(mark[0])[1:-1], name)
