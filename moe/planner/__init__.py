"""What the real training step needs on a machine that is not here: memory, FLOPs, traffic, and a
roofline of its time.
"""
