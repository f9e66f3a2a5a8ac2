"""What a run's folder needs besides its arrays: lock, checksums, which checkpoints to keep,
what must not change, provenance.
"""
