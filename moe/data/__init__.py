"""Text to batches, one file a step: corpus → tokenizer → prepare → store → packing → pipeline.

corpus      sources of text (files and `builtin`) as a stream of documents, each training or held out
tokenizer   SentencePiece BPE: train one, load one, text ↔ ids
prepare     tokenises a corpus once into a directory, atomically
store       that directory's format: shards of token records, an index, metadata
packing     documents → rows of a batch: training rows, and evaluation windows that score each token once
pipeline    the training stream (Grain): mix, shuffle, batch, shard by process, prefetch

No file here imports jax.
"""
