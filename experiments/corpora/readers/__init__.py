"""One file's bytes → its documents. A reader raises ValueError for bytes that are no such file;
it never guesses.
"""
