"""Two processes feed a batch to a mesh whose rows alternate between them,
as the rows of a TPU slice wind through its hosts.

  python -m tests.moe.processes.feeding PORT PROCESS

Prints as JSON this process's share, and the batch that all devices then hold together, by row.
"""

import json
import sys

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from moe.parallel import feeding, processes
from moe.parallel import mesh as mesh_lib

ROWS = 8


def main(port: str, process: str) -> None:
  jax.config.update('jax_num_cpu_devices', 2)
  with processes.join(processes.Cluster(f'127.0.0.1:{port}', 2, int(process))):
    first, second, third, fourth = jax.devices()  # two for each process
    grid = np.array([first, third, fourth, second]).reshape(1, 4, 1, 1, 1)
    mesh = Mesh(grid, mesh_lib.AXES)
    index, count = feeding.batch_share(mesh)
    mine_B = np.arange(ROWS // count) + 100 * index
    batch_B = feeding.place(mine_B, mesh)
    found = multihost_utils.process_allgather(batch_B, tiled=True)
    print(json.dumps({'share': [index, count], 'batch': found.tolist()}))


if __name__ == '__main__':
  main(*sys.argv[1:])
