"""Names that mean a split, a mask, or nothing of the kind."""

from __future__ import annotations

import pytest

from course_utils.data.words import SPLIT_WORDS, means_mask, readable, says_split, splits_of


@pytest.mark.parametrize(
    "names",
    [
        "train val test",
        "Training Validation Testing",
        "TRAIN_SET val2017 test-images",
        "trainSet ValidationData TestPictures",
        "trn dev tst",
        "tr va te",
        "train eval test",
        "Trainingsdaten Validierungsset Testmenge",
        "entraînement validation évaluation",
        "entrenamiento validación prueba",
        "treino validação teste",
        "addestramento convalida test",
        "обучение валидация тест",
        "eğitim doğrulama test",
        "训练集 验证集 测试集",
        "訓練データ 検証用 テスト",
        "훈련 검증 테스트",
        "birds_train birds_val birds_test",
        "stage1-train stage1-valid stage1-test",
    ],
)
def test_words_for_the_three_splits(names):
    names = names.split()
    assert splits_of([*names, "cats"]) == dict(zip(names, ("train", "val", "test"), strict=True))


@pytest.mark.parametrize(
    "names",
    [
        ["tr", "de", "fr"],
        ["bullet train", "freight car"],
        ["test tube", "train station", "crash test dummy"],
        ["covid_test_positive", "covid_test_negative"],
        ["class test", "class train"],
        ["trains", "valley", "testament", "trainer", "set", "data", "images", "2017", "", "_"],
        ["dataset" * 500, "train" * 500],
    ],
)
def test_names_that_mean_no_split(names):
    assert splits_of(names) == {}


def test_eval_means_what_the_others_leave():
    assert splits_of(["train", "eval"])["eval"] == "test"
    assert splits_of(["train", "test", "eval"])["eval"] == "val"
    assert "eval" not in splits_of(["train", "val", "test", "eval"])


def test_no_word_means_two_splits():
    words = [word for words in SPLIT_WORDS.values() for word in words.split()]
    assert len(words) == len(set(words))
    for split, names in SPLIT_WORDS.items():
        assert set(splits_of(names.split()).values()) == {"test" if split == "eval" else split}


def test_columns_that_say_nothing_about_splits():
    assert not says_split("owner", ["Ann", "Bob"])
    assert not says_split("remark", ["train station", "", ""])
    assert not says_split("name", [f"train {i}" for i in range(1000)])
    assert not says_split("kind", ["train", "bus", "bus"])
    assert not says_split("test_result", ["positive", "negative"])


def test_masks():
    assert all(map(means_mask, ["masks", "Mask", "mask_images", "Annotations", "labels", "Ground Truth", "掩码"]))
    assert not any(map(means_mask, ["no_mask", "with mask", "masked", "label maker", "class mask", ""]))


def test_readable_names():
    assert readable("été, 猫, می‌خواهم") == "été, 猫, می‌خواهم"
    assert readable("caf\udce9\n") == r"caf\udce9\n"
