"""Text to batches: sources → files → texts → documents → tokens → a directory → rows → batches.

corpus       sources of text (files and `builtin`) as a stream of documents,
             each training or held out
matching     the patterns in data.sources → files, each once
readers      a file → its texts, by format
compression  gzip, zstd, bzip2 and xz as streams
builtin      the corpus that every CPython brings; arithmetic: its worked problems
sample       the text that a tokenizer is trained on
tokenizers   text ↔ ids: SentencePiece, trained or given, and tokenizer.json
chat         conversations: messages, templates, what is learnt, packing
tokenising   documents of a corpus → tokens, for text or conversations
settings     what decides the contents of prepared data
prepare      tokenises a corpus once into a directory, atomically
given        a user's own text as prepared data, and which of it a run was trained on
store        the prepared directory: its format, metadata, checksums
documents    its files for one split and domain: shards of token records, an index
packing      documents → rows of a batch: training rows, and evaluation windows
             that score each token once
order        permutations that a seed alone decides
batches      the training stream (Grain): mix, shuffle, batch, shard by process, prefetch
progress     progress reports of a long read

No file here imports jax.
"""
