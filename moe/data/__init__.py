"""Text to batches: sources → files → texts → documents → tokens → a directory → rows → batches.

corpus       sources of text (files and `builtin`) as a stream of documents,
             each training or held out
matching     what data.sources names → files, each once
readers      a file → its texts, by format
compression  gzip, zstd, bzip2 and xz as streams
builtin      the corpus of every CPython; arithmetic: its worked problems
sample       the text that a tokenizer is trained on
tokenizers   text ↔ ids: SentencePiece, trained or given, and tokenizer.json
chat         conversations: messages, templates, what is learnt, packing
tokenising   documents of a corpus → tokens, of text or of conversations
settings     what decides the contents of prepared data
prepare      tokenises a corpus once into a directory, atomically
given        other text as prepared data, and which of it a run was trained on
store        that directory: its format, metadata, checksums
documents    what it has of a split and domain: shards of token records, an index
packing      documents → rows of a batch: training rows, and evaluation windows
             that score each token once
order        permutations that a seed alone decides
batches      the training stream (Grain): mix, shuffle, batch, shard by process, prefetch
progress     how far a long reading has come

No file here imports jax.
"""
