"""What the real training step takes of a machine that is not here:
memory, FLOPs, traffic, a roofline step time.
"""
