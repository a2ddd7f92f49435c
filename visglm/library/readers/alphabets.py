"""Latin letters with accents: of the encodings in which the same bytes are other letters, the one whose letters are
those of one language."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping

# Encoding → the letters beyond ASCII of each language that is written in it. Where several fit, the first one is taken:
# they hardly differ, then.
ALPHABETS: Mapping[str, tuple[str, ...]] = {
    "cp1252": (
        "äöüß", "àâæçéèêëîïôœùûüÿ", "áéíñóúü", "àáâãçéêíóôõúü", "àèéìíîòóùú", "åäöæøé", "äëïöüéèêá", "àçéèíïòóúü",
        "áðéíóúýþæö", "äöõüšž",
    ),
    "cp1250": ("ąćęłńóśźż", "áčďéěíňóřšťúůýž", "áäčďéíĺľňóôŕšťúýž", "áéíóöőúüű", "čćđšž", "ăâîşţ", "äöüß"),
    "iso8859_2": ("ąćęłńóśźż", "áčďéěíňóřšťúůýž", "áäčďéíĺľňóôŕšťúýž", "áéíóöőúüű", "čćđšž", "ăâîşţ"),
    "cp1254": ("âçğıîöşüûİ",),
}  # fmt: skip
OF_OTHERS = 0.05  # of the letters with accents; names and foreign words have others
NO_LETTERS = "ªºµ"  # though Unicode calls them so
# Signs that stand in no word. Where they seem to, they are letters of another encoding.
IN_WORDS = re.compile(
    r"(?<=[a-z])[^\w\s\x00-\x7f‘’·\xad-](?=[a-z])|(?<=[a-z])[±¶¼¾¯¬¦]|[±¶¼¾¯¬¦](?=[a-z])|[¹²³](?=[a-z])"
)
CONTROLS = {chr(code) for code in range(0x80, 0xA0)}


def latin_encoding(data: bytes) -> tuple[str, bool]:
    """The likeliest encoding of a Latin text, and whether it is one, as far as its letters tell."""
    found = []
    for encoding, alphabets in ALPHABETS.items():
        text = data.decode(encoding, "replace").lower()
        beyond = Counter(letter for letter in text if letter > "\x7f")
        strange = len(IN_WORDS.findall(text)) + sum(beyond[letter] for letter in CONTROLS | {"\ufffd"})
        letters = Counter({letter: num for letter, num in beyond.items() if letter.isalpha()})
        for letter in NO_LETTERS:
            letters.pop(letter, None)
        of_others = min(sum(num for letter, num in letters.items() if letter not in own) for own in alphabets)
        found.append((strange + of_others, letters.total(), encoding))
    odd, num_letters, encoding = min(found, key=lambda one: one[0])
    return encoding, odd <= OF_OTHERS * num_letters
