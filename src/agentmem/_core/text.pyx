"""The words, numbers and marks of a text, piece by piece: what a reader of model files makes its grammar of.

`Scanner` turns a piece of text into three arrays with a place per token, so that a grammar in Python can take many
thousand tokens in one go, and nobody has to hold the whole text. It knows comments (`#` to the end of the line) and
that `:`, `*` and control characters stand for themselves, but no grammar.
"""
cimport numpy as cnp
from cpython.conversion cimport PyOS_string_to_double
from libc.stdint cimport int32_t, uint8_t, uint64_t

import numpy as np

cnp.import_array()

cdef Py_ssize_t LONGEST_WORD = 1 << 16
cdef uint64_t EXACT_DIGITS = 1 << 53
cdef double[23] POWER_OF_TEN  # those that a double holds exactly
cdef Py_ssize_t _k
POWER_OF_TEN[0] = 1
for _k in range(1, 23):
    POWER_OF_TEN[_k] = 10 * POWER_OF_TEN[_k - 1]


# ---- leaves

cdef bint is_space(char c) noexcept nogil:
    return c == c" " or (c >= c"\t" and c <= c"\r")


cdef bint is_digit(char c) noexcept nogil:
    return c >= c"0" and c <= c"9"


cdef bint is_control(char c) noexcept nogil:
    return 0 <= c < c" " or c == 127


cdef Py_ssize_t end_of_word(const char* text, Py_ssize_t at, Py_ssize_t n) noexcept nogil:
    while at < n and text[at] != c" " and text[at] != c":" and text[at] != c"#" and not is_control(text[at]):
        at += 1
    return at


cdef uint8_t read_number(const char* text, Py_ssize_t n, double* value, bint* is_exact) noexcept nogil:
    """b"i" for digits alone, b"n" for another number, b"w" for a word that is none.

    `value` is the number only if `is_exact`: at most 2**53 in its digits and a power of ten that a double holds, so
    that the one multiplication or division rounds correctly.
    """
    cdef uint64_t digits = 0
    cdef Py_ssize_t at = 0, n_digits = 0, exponent = 0, written = 0
    cdef bint negative = False, negative_exponent = False, in_fraction = False, has_exponent = False, is_small = True
    if text[0] == c"+" or text[0] == c"-":
        negative = text[0] == c"-"
        at = 1
    while at < n:
        if text[at] == c"." and not in_fraction:
            in_fraction = True
        elif is_digit(text[at]):
            n_digits += 1
            exponent -= in_fraction
            if digits <= EXACT_DIGITS:
                digits = 10 * digits + (text[at] - c"0")
            else:
                is_small = False
        else:
            break
        at += 1
    if n_digits == 0:
        return c"w"
    if at < n and (text[at] == c"e" or text[at] == c"E"):
        has_exponent = True
        at += 1
        negative_exponent = at < n and text[at] == c"-"
        at += at < n and (text[at] == c"+" or text[at] == c"-")
        if at == n:
            return c"w"
        while at < n and is_digit(text[at]):
            written = 10 * written + (text[at] - c"0") if written < 1_000_000 else written
            at += 1
        exponent += -written if negative_exponent else written
    if at < n:
        return c"w"
    is_exact[0] = is_small and written < 1_000_000 and digits <= EXACT_DIGITS and -22 <= exponent <= 22
    if is_exact[0]:
        value[0] = digits / POWER_OF_TEN[-exponent] if exponent < 0 else digits * POWER_OF_TEN[exponent]
        if negative:
            value[0] = -value[0]
    return c"i" if n_digits == n and not has_exponent else c"n"


# ---- wrapper

cdef class Scanner:
    """Reads a text piece by piece; one reader, one thread.

    Parameters
    ----------
    keywords : dict of bytes to bytes
        Words that get a kind of their own, one character each.

    Attributes
    ----------
    words : dict of bytes to int
        The number of every word met so far, keywords first.
    line : int
        Of the next character.
    """

    cdef readonly dict words
    cdef readonly Py_ssize_t line
    cdef bytes keyword_kinds, rest
    cdef bint in_comment

    def __init__(self, dict keywords not None):
        self.words = {word: k for k, word in enumerate(keywords)}
        self.keyword_kinds = b"".join(keywords.values())
        if len(self.keyword_kinds) != len(keywords):
            raise ValueError(f"keywords {keywords!r} given; expected a kind of one character each")
        self.line, self.rest, self.in_comment = 1, b"", False

    def scan(self, bytes piece not None, bint last=False):
        """The tokens that end in this piece: kinds (n,) uint8, values (n,) float64 and lines (n,) int32.

        Kinds are b"i" for digits alone and b"n" for other numbers, whose value is correctly rounded; b"w" or a
        keyword's for words, whose value is their number in `words`; b":", b"*" and control characters are their own.
        A word that may go on in the next piece waits for it, unless this is the `last`. Raises ValueError for a word of
        over 65,536 bytes, and is as before then. O(len(piece)).
        """
        cdef bytes data = self.rest + piece
        cdef const char* text = data
        cdef const char* keyword_kinds = self.keyword_kinds
        cdef Py_ssize_t n = len(data), n_keywords = len(self.keyword_kinds), at = 0, end, n_tokens = 0
        cdef Py_ssize_t line = self.line, word
        found = np.empty(n, dtype=np.uint8), np.empty(n), np.empty(n, dtype=np.int32)
        cdef uint8_t[::1] kinds = found[0]
        cdef double[::1] values = found[1]
        cdef int32_t[::1] lines = found[2]
        cdef bint is_exact, is_mark, in_comment = self.in_comment
        cdef uint8_t kind
        cdef double value
        cdef char* stop
        while at < n:
            if text[at] == c"\n":
                line += 1
                in_comment = False
                at += 1
            elif in_comment or is_space(text[at]):
                at += 1
            elif text[at] == c"#":
                in_comment = True
            else:
                is_mark = text[at] == c":" or is_control(text[at])
                end = at + 1 if is_mark else end_of_word(text, at, n)
                if end - at > LONGEST_WORD:
                    raise ValueError(f"a word of over {LONGEST_WORD:,} bytes")
                if end == n and not is_mark and not last:
                    break
                value, is_exact = 0, True
                if is_mark or (end == at + 1 and text[at] == c"*"):
                    kind = text[at]
                elif is_digit(text[at]) or text[at] == c"." or text[at] == c"-" or text[at] == c"+":
                    kind = read_number(text + at, end - at, &value, &is_exact)
                    if not is_exact and kind != c"w":
                        value = PyOS_string_to_double(text + at, &stop, NULL)  # stops where the word does
                else:
                    kind = c"w"
                if kind == c"w":
                    word = self.words.setdefault(text[at:end], len(self.words))
                    value = word
                    if 0 <= word < n_keywords:
                        kind = keyword_kinds[word]
                kinds[n_tokens], values[n_tokens], lines[n_tokens] = kind, value, <int32_t> line
                n_tokens += 1
                at = end
        self.rest, self.line, self.in_comment = data[at:], line, in_comment
        return tuple([array[:n_tokens].copy() for array in found])
