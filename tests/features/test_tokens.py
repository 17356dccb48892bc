"""The words of texts in all scripts, and queries that find the items with these words."""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from features.catalogue import Catalogue
from features.context import Context
from features.history import EMPTY
from features.replay import Replay
from features.retrieval import SOURCES, retrieve
from features.text import tokens, vocabulary
from features.text.implied_tags import AttributeValues, ItemWords
from features.text.tokens import WORD_CHARACTERS, fold, is_pair, is_part, tokenize
from features.text.vocabulary import MAX_QUERY_PARTS, MAX_QUERY_WORDS, Vocabulary
from tests.worlds import DAY, START, make_catalogue, make_events


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("红木椅", ["红", "红木", "木", "木椅", "椅"]),
        ("椅", ["椅"]),
        ("木椅，红 2把", ["木", "木椅", "椅", "红", "2", "把"]),
        ("ランプ・青", ["ラ", "ラン", "ン", "ンプ", "プ", "青"]),
        ("ﾗﾝﾌﾟ", ["ラ", "ラン", "ン", "ンプ", "プ"]),
        ("お茶", ["お", "お茶", "茶"]),
        ("나무 의자", ["나", "나무", "무", "의", "의자", "자"]),
        ("ไม้", ["ไ", "ไม้", "ม้"]),
        ("ໂຕະ", ["ໂ", "ໂຕ", "ຕ", "ຕະ", "ະ"]),
        ("ទូ", ["ទូ"]),
        ("ခုံ", ["ခုံ"]),
        ("LED灯 USB充电", ["led", "灯", "usb", "充", "充电", "电"]),
        ("𠮷野", ["𠮷", "𠮷野", "野"]),
    ],
)
def test_scripts_without_spaces_give_characters_with_their_marks_and_pairs(text: str, found: list[str]) -> None:
    """Pairs do not reach over white space, punctuation, digits and other scripts."""
    assert tokenize(text) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("हिंदी की किताबें", ["हिंदी", "की", "किताबें"]),
        ("நாற்காலி மரம்", ["நாற்காலி", "மரம்"]),
        ("কাঠের চেয়ার", ["কাঠের", "চেয়ার"]),
        ("كرسي خشبي", ["كرسي", "خشبي"]),
        ("שולחן עץ", ["שולחן", "עץ"]),
        ("ghế gỗ", ["ghe", "go"]),
    ],
)
def test_words_keep_the_marks_that_spell_them(text: str, found: list[str]) -> None:
    r"""Vowel signs and viramas of Indic scripts are not matched by `\w`, and would cut a word into its consonants."""
    assert tokenize(text) == [unicodedata.normalize("NFKC", unicodedata.normalize("NFKD", word)) for word in found]


@pytest.mark.parametrize(
    ("written", "same"),
    [
        ("كُرْسِيٌّ", "كرسي"),  # with vowels
        ("كـــرسي", "كرسي"),  # stretched
        ("أحمر", "احمر"),
        ("مكتبة", "مكتبه"),
        ("کتابی", "كتابي"),  # Persian letters
        ("می\u200cخواهم", "میخواهم"),
        ("שָׁלוֹם", "שלום"),
        ("צה״ל", "צהל"),
        ("ज़रूरी", "जरूरी"),
        ("चाँद", "चांद"),
        ("٣٠ १२ ๕", "30 12 5"),
        ("ＵＳＢ", "usb"),
        ("soft\u00adhyphen", "softhyphen"),
        ("が", "か\u3099"),
        ("각", "\u1100\u1161\u11a8"),
        ("葛\U000e0100", "葛"),  # a variation selector
        ("Straße", "STRASSE"),
        ("Ёлка", "елка"),
        ("Ἀθήνα", "αθηνα"),
    ],
)
def test_spellings_of_one_word_are_equal(written: str, same: str) -> None:
    assert tokenize(written) == tokenize(same) != []


@given(st.text(max_size=60))
@example("ﷺ İ ŉ \U0001d400 ᾴ ϓ́ ǅ")
@example("\u0e33\u0e49ก\ud800क़")
def test_every_letter_and_digit_is_in_a_word_and_nothing_else_starts_one(text: str) -> None:
    found = tokenize(text)
    assert set("".join(found)) >= {c for c in fold(text) if c.isalnum()} or len(max(found)) >= WORD_CHARACTERS // 2
    # Code points that Unicode has reserved for more Chinese characters count as letters already.
    assert all(word[0].isalnum() or unicodedata.category(word[0]) == "Cn" for word in found)
    assert all(len(word) <= WORD_CHARACTERS for word in found)
    assert [is_pair(word) for word in found].count(True) <= [is_part(word) for word in found].count(True) / 2
    assert all(is_part(word) for word in found if is_pair(word))


@given(st.text(alphabet=st.characters(max_codepoint=127), max_size=200))
def test_plain_english_is_read_as_by_the_first_version(text: str) -> None:
    """Version 1 matched `[^\\W_]+` in the text in lower case, without apostrophes."""
    old = [w[:WORD_CHARACTERS] for w in re.findall(r"[^\W_]+", re.sub("['`]", "", text.casefold()))]
    assert tokenize(text) == old


def test_all_letters_of_the_scripts_without_spaces_are_parts() -> None:
    """By their names in Unicode, in the planes that Python's version of Unicode knows."""
    scripts = ("CJK UNIFIED", "HIRAGANA LETTER", "KATAKANA LETTER", "HANGUL SYLLABLE", "THAI CHARACTER", "LAO LETTER")
    letters = [
        c
        for c in map(chr, range(0x300, 0x32000))
        if c.isalpha() and unicodedata.name(c, "").startswith((*scripts, "KHMER LETTER", "MYANMAR LETTER"))
    ]
    assert len(letters) > 100_000
    assert [c for c in letters if not is_part(c)] == []
    words = [c for c in map(chr, range(sys.maxunicode)) if c.isalpha() and is_part(c)]
    others = (
        "LATIN",
        "GREEK",
        "CYRILLIC",
        "ARABIC",
        "HEBREW",
        "DEVANAGARI",
        "TAMIL",
        "GEORGIAN",
        "ETHIOPIC",
        "TIBETAN",
    )
    assert [c for c in words if unicodedata.name(c, "").startswith(others)] == []


SHOP = {
    "zh": ["实木复古餐椅 带软垫", "红色蓝牙耳机 降噪", "儿童积木玩具", "不锈钢保温杯 500ml"],
    "ja": ["木製ダイニングチェア", "ワイヤレスイヤホン 赤", "子供用積み木セット", "ステンレス保温マグ"],
    "ko": ["원목 식탁 의자", "무선 블루투스 이어폰 빨강", "어린이 나무 블록", "스테인리스 보온 텀블러"],
    "th": ["เก้าอี้ไม้วินเทจ", "หูฟังบลูทูธสีแดง", "ของเล่นบล็อกไม้สำหรับเด็ก", "แก้วเก็บความร้อนสแตนเลส"],
    "lo": ["ຕັ່ງໄມ້ສັກ", "ຫູຟັງສີແດງ", "ຂອງຫຼິ້ນເດັກນ້ອຍ", "ຈອກເກັບຄວາມຮ້ອນ"],
    "km": ["កៅអីឈើបុរាណ", "កាសស្តាប់ត្រចៀក", "ប្រដាប់ក្មេងលេង", "កែវទឹកក្តៅ"],
    "my": ["သစ်သားကုလားထိုင်", "ကြိုးမဲ့နားကြပ်", "ကလေးကစားစရာ", "ရေနွေးဘူး"],
    "hi": ["लकड़ी की कुर्सी", "लाल ब्लूटूथ हेडफ़ोन", "बच्चों के लकड़ी के खिलौने", "स्टील की बोतल"],
    "ta": ["மர நாற்காலி", "சிவப்பு ஹெட்ஃபோன்", "குழந்தைகள் பொம்மை", "எஃகு தண்ணீர் பாட்டில்"],
    "ar": ["كرسي خشبي كلاسيكي", "سماعات بلوتوث حمراء", "ألعاب أطفال خشبية", "كوب حراري من الفولاذ"],
    "he": ["כיסא עץ עתיק", "אוזניות בלוטות׳ אדומות", "צעצועי עץ לילדים", "בקבוק תרמי מפלדה"],
    "ru": ["Деревянный стул", "Красные наушники", "Детские кубики", "Стальной термос"],
}
"""Titles of a chair, headphones, toy blocks and a flask in each language."""


def titled(titles: Sequence[str]) -> Catalogue:
    """A catalogue of items with a title, and nothing else that has words."""
    n = len(titles)
    return replace(
        make_catalogue(n),
        titles=titles,
        category=np.full(n + 1, 3, np.int32),
        brand=np.full(n + 1, 2, np.int32),
        tag_start=np.zeros(n + 2, np.int64),
        tag=np.empty(0, np.int32),
    )


def words_of(language: str) -> Vocabulary:
    return Vocabulary.without_vectors(titled(SHOP[language]))


def best(language: str, query: str) -> str:
    """The title that the words of a query match best, "" if two match equally well, or if none matches."""
    words = words_of(language)
    share = words.match(words.read(query), np.arange(4, dtype=np.int32))
    return SHOP[language][int(share.argmax())] if np.sum(share == share.max()) == 1 and share.max() > 0 else ""


@pytest.mark.parametrize(
    ("language", "query", "item"),
    [
        ("zh", "椅", 0),
        ("zh", "耳机", 1),
        ("zh", "红色的耳机", 1),
        ("zh", "耳机 红色", 1),
        ("zh", "積木玩具", 2),  # one character differs from the title
        ("zh", "保温", 3),
        ("ja", "チェア", 0),
        ("ja", "ﾁｪｱ", 0),
        ("ja", "赤いイヤホン", 1),
        ("ja", "積み木", 2),
        ("ja", "保温ステンレス", 3),
        ("ko", "의자", 0),
        ("ko", "이어폰을", 1),  # with a particle
        ("ko", "나무블록", 2),  # without the title's space
        ("th", "เก้าอี้", 0),
        ("th", "หูฟังสีแดง", 1),
        ("th", "ของเล่นเด็ก", 2),
        ("th", "สแตนเลส", 3),
        ("lo", "ຕັ່ງ", 0),
        ("lo", "ຫູຟັງ", 1),
        ("km", "កៅអី", 0),
        ("km", "ត្រចៀក", 1),
        ("my", "ကုလားထိုင်", 0),
        ("my", "နားကြပ်", 1),
        ("hi", "कुर्सी", 0),
        ("hi", "हेडफोन", 1),  # without the nukta
        ("hi", "खिलौने", 2),
        ("hi", "बोतल", 3),
        ("ta", "நாற்காலி", 0),
        ("ta", "பொம்மை", 2),
        ("ar", "كُرسي", 0),
        ("ar", "حمراء", 1),
        ("ar", "العاب", 2),  # without the hamza
        ("he", "כיסא", 0),
        ("he", "בלוטות", 1),
        ("ru", "стул", 0),
    ],
)
def test_a_query_finds_the_item_with_its_words(language: str, query: str, item: int) -> None:
    assert best(language, query) == SHOP[language][item]


@pytest.mark.parametrize(
    ("language", "typed", "item"),
    [
        ("hi", "कुर्सि", 0),
        ("hi", "खिलोने", 2),
        ("ta", "நாற்காலீ", 0),
        ("ar", "كلاسكي", 0),
        ("ar", "سماعت", 1),
        ("he", "אוזניו", 1),
        ("ru", "термоз", 3),
        ("ru", "деревяный", 0),
        ("ru", "наушн", 1),
    ],
)
def test_misspelled_and_incomplete_words_of_other_alphabets_are_replaced(language: str, typed: str, item: int) -> None:
    """Edits are of letters: in UTF-8, a letter of Hindi is three bytes, more than any word may differ by."""
    words = words_of(language)
    assert words.read(typed).term.tolist()
    assert best(language, typed) == SHOP[language][item]


def test_a_character_is_no_misspelling_of_another() -> None:
    """椅 and 椈 differ in one byte of three."""
    query = words_of("zh").read("椈")
    assert query.word.tolist() == []
    assert query.weight.tolist() == [1]


def test_a_pair_that_no_item_contains_is_left_out_and_an_unknown_character_has_weight() -> None:
    """椅龍: 椅 is in one of four titles, log(1 + 3.5 / 1.5) = 1.204; 龍 is in none, log(1 + 2 * 6) = 2.565."""
    known, unknown = np.log1p(3.5 / 1.5), np.log1p(12)
    query = words_of("zh").read("椅龍")
    np.testing.assert_allclose(query.weight, np.array([known, unknown]) / (known + unknown), rtol=1e-6)


def test_long_queries_are_cut_by_words_and_by_characters() -> None:
    words = words_of("zh")
    text = "".join(chr(0x4E00 + 7 * k) for k in range(200))
    assert len(words.read(text).weight) <= MAX_QUERY_PARTS
    mixed = words.read(" ".join(f"word{k}" for k in range(40)) + "耳机")
    assert len(mixed.weight) == MAX_QUERY_WORDS + 3


def test_queries_retrieve_items_of_every_script() -> None:
    titles = [title for shop in SHOP.values() for title in shop]
    vectors = np.eye(len(titles) + 1, 64, dtype=np.float32)
    items = Replay(titled(titles), vectors, make_events([], 1), np.array([START])).items_at(START + 100 * DAY)
    bit = 1 << SOURCES.index("query_words")
    for query, language, number in (("耳机", "zh", 1), ("หูฟัง", "th", 1), ("सस्ती कुर्सी", "hi", 0), ("كرسي", "ar", 0)):
        found = retrieve(items, EMPTY, START + 100 * DAY, len(titles), Context(query=query))
        assert titles.index(SHOP[language][number]) in found.item[found.source_bits & bit > 0].tolist()


def test_common_words_are_not_searched_for_once_rare_ones_fill_the_list(monkeypatch: pytest.MonkeyPatch) -> None:
    """木 is in 8 titles, 椅 in 2. With a limit of 2 items, only those with 椅 are found, unless none is admitted."""
    titles = ["木椅", "木椅 大"] + ["木"] * 6
    words = Vocabulary.without_vectors(titled(titles))
    assert words.holding(words.read("椅木")).tolist() == list(range(8))
    monkeypatch.setattr(vocabulary, "_ENOUGH_ITEMS", 2)
    assert words.holding(words.read("椅木")).tolist() == [0, 1]
    assert words.holding(words.read("椅木"), np.arange(8) > 1).tolist() == [2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize(
    ("wood", "steel"),
    [
        ("实木餐椅{}号", "不锈钢椅{}号"),
        ("เก้าอี้ไม้สัก{}", "เก้าอี้เหล็ก{}"),
        ("लकड़ी की कुर्सी {}", "स्टील की कुर्सी {}"),
        ("كرسي خشبي {}", "كرسي فولاذي {}"),
    ],
)
def test_tags_are_read_from_titles(wood: str, steel: str) -> None:
    """20 of 30 wooden chairs have the tag, no steel chair has it: the other 10 get it, and no steel chair does."""
    titles = [wood.format(k) for k in range(30)] + [steel.format(k) for k in range(30)]
    start = np.append(np.minimum(np.arange(61), 20), 20)
    catalogue = replace(titled(titles), tag_start=start, tag=np.zeros(20, np.int32), tag_names=["tags=wooden"])
    values = AttributeValues.of(catalogue, ItemWords.of(titles))
    amount = np.array([values.amount[a:b].sum() for a, b in pairwise(values.start.tolist())])
    assert (amount[:20] == 1).all()
    assert (amount[20:30] > 0).all()
    assert (amount[30:] == 0).all()


def test_the_version_is_part_of_this_test() -> None:
    """A change to the words of these texts is a new version, so that releases made before it are not misread."""
    texts = ["Kids' Café-crème", "红木椅 2", "ไม้", "हिंदी", "كُرسي", "ﾗﾝﾌﾟ", "나무"]
    words = "kids cafe creme 红 红木 木 木椅 椅 2 ไ ไม้ ม้ हिंदी كرسي ラ ラン ン ンプ プ 나 나무 무"
    assert (tokens.VERSION, " ".join(w for t in texts for w in tokenize(t))) == (2, words)
