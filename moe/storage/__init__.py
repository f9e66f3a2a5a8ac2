"""What a run's folder needs besides its arrays: lock, checksums, what to keep,
what must stay, where it was made.
"""
