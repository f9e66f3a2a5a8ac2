"""Readers: one file's bytes → its documents. A reader raises ValueError for bytes of another
format; it never guesses.
"""
