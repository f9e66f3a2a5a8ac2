"""Prints the schedule of one MoE layer's forward, compiled for eight v5e chips that share the
experts.

test_overlap.py runs it in the TPU compiler's environment.
"""

import jax
import jax.numpy as jnp

from moe.layers.moe_layer import MoELayer
from moe.ops.implementation import compiling_for
from moe.parallel import mesh as mesh_lib
from moe.parallel import sharding
from moe.parallel.compiler import compiler_options
from moe.parallel.feeding import batch_sharding
from moe.planner import machine
from tests.small import small_config

_OVERRIDES = {
  'model.d_model': 256,
  'model.dtype': 'bfloat16',
  'moe.num_experts': 16,
  'moe.num_shared_experts': 2,
  'moe.d_expert': 256,
  'data.batch_size': 8,
  'mesh.data': 1,
  'mesh.expert': 8,
}


def main() -> None:
  config = small_config(**_OVERRIDES)
  mesh = mesh_lib.make_mesh(config, machine.devices(machine.parse('v5e:2x4')))
  layer = MoELayer(config)
  u_BLD, ids_BL = jnp.zeros((8, 512, 256), jnp.bfloat16), jnp.zeros((8, 512), jnp.int32)
  declared = jax.eval_shape(lambda: layer.init(jax.random.key(0), u_BLD, ids_BL, ids_BL == 0))
  shapes = sharding.unboxed(declared['params'])
  where = sharding.shardings(mesh, shapes, declared['params'], config.mesh.zero)
  placed = lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)
  params = jax.tree.map(placed, shapes, where)
  batch = batch_sharding(mesh)
  with mesh_lib.use(mesh, config.mesh.zero), compiling_for('tpu'):
    forward = jax.jit(lambda params, u, ids: layer.apply({'params': params}, u, ids, ids == 0)[0])
    lowered = forward.lower(params, placed(u_BLD, batch), placed(ids_BL, batch))
  text = lowered.compile(compiler_options(mesh)).as_text()
  print(text[text.index('\nENTRY ') :])


if __name__ == '__main__':
  main()
