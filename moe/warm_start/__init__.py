"""Warm starts: a new run from the weights of another, `train.init_from`.

The source is checked before anything of the new run is written (find.py). Whatever does not fit is
named with the keys that cause it (fitting.py). Each parameter is then read straight into the new
run's sharding (start.py). The run saves itself as step 0 before its first step, and never needs the
source again.
"""
