"""Warm starts: a new run from the weights of another, `train.init_from`.

The source is looked at before anything of the new run is written (find.py), and what of it does not
fit is named with the keys that cause it (fitting.py). Each parameter is then read straight into the
new run's sharding (start.py). The run saves itself as step 0 before its first step, and needs the
source never again.
"""
