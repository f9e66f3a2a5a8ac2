"""Several processes as one program: how they find each other, act as one, and stop together.

Alone, every function here returns at once and starts nothing. What a process does on its own (reading files) may fail
on it alone; `together` and `main_first` make that every process's failure, so that none waits for one that has left.
"""

import contextlib
import os
import signal
import sys
import traceback
import uuid
import warnings
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from orbax.checkpoint import multihost

from moe.errors import UserError

T = TypeVar('T')
_LONGEST_WAIT = 7 * 24 * 3600  # seconds, for data to be prepared; a process that dies meanwhile ends it
_MESSAGE_BYTES = 1000  # of an error that is told to the other processes


class Cluster(NamedTuple):
  """How processes find each other. All of the first three, or none: then the cluster's environment tells, if any."""

  coordinator: str | None = None  # HOST:PORT of process 0
  num_processes: int | None = None
  process_id: int | None = None
  heartbeat_timeout: int = 60  # seconds of silence after which a process counts as dead, and the others end
  start_timeout: int = 300  # seconds in which all of them must have come
