"""The config files that come with the package, and all their variants by name, FILE:VARIANT."""

from ml_collections import ConfigDict

from experiments import ablations, proxy, quickstart, scaling, sft, validation

FILES = {
  'validation': validation,
  'scaling': scaling,
  'ablations': ablations,
  'sft': sft,
  'proxy': proxy,
  'quickstart': quickstart,
}


def configs() -> dict[str, ConfigDict]:
  """Every variant of every file: {'validation:deepseek_moe': …, …}."""
  return {
    f'{file}:{variant}': module.get_config(variant)
    for file, module in FILES.items()
    for variant in module.VARIANTS
  }
