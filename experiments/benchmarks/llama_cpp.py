"""GGUF files run by llama.cpp (PyPI's `xllamacpp`), an implementation of the whole model that
shares nothing with this one.
"""

import contextlib
import importlib.util
import json
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path


class LlamaCpp:
  """A GGUF file that llama.cpp serves. Keys, values and scores of attention are float32."""

  def __init__(self, address: str):
    self._address = address

  def encode(self, text: str) -> list[int]:
    """Ids of a text, without BOS; text that spells a control piece stays text."""
    asked = {'content': text, 'add_special': False, 'parse_special': False}
    return self._post('/tokenize', asked)['tokens']

  def decode(self, ids: Sequence[int]) -> str:
    return self._post('/detokenize', {'tokens': list(ids)})['content']

  def greedy(self, prompt: str | Sequence[int], tokens: int, bos_id: int, eos_id: int) -> list[int]:
    """The greedy continuation of a text, which gets a BOS, or of ids, as `moe.generate` gives it:
    without BOS, which llama.cpp alone might choose, and with a final EOS.
    """
    found = self._complete(prompt, tokens, logit_bias=[[bos_id, False]])
    return found['tokens'] + [eos_id] * (found['stop_type'] == 'eos')

  def time(self, ids: Sequence[int], tokens: int) -> None:
    """Reads the prompt and generates so many tokens after it, whatever they are."""
    self._complete(ids, tokens, ignore_eos=True)

  def _complete(self, prompt, tokens, **more):
    prompt = prompt if isinstance(prompt, str) else list(prompt)
    asked = {'prompt': prompt, 'n_predict': tokens, 'temperature': 0, 'return_tokens': True}
    return self._post('/completion', asked | {'cache_prompt': False} | more)

  def _post(self, path, content):
    asked = urllib.request.Request(
      self._address + path, json.dumps(content).encode(), {'Content-Type': 'application/json'}
    )
    with urllib.request.urlopen(asked, timeout=300) as answer:
      return json.load(answer)


def is_installed() -> bool:
  return importlib.util.find_spec('xllamacpp') is not None


@contextlib.contextmanager
def opened(file: Path, context: int = 512) -> Iterator[LlamaCpp]:
  """Serves the file within this process. ImportError without xllamacpp."""
  import xllamacpp

  params = xllamacpp.CommonParams()
  params.model.path = str(file)
  params.n_ctx = context
  params.n_parallel = 1
  params.cpuparams.n_threads = 2
  params.n_gpu_layers = 0
  params.port = 0
  params.warmup = params.fit_params = False
  params.verbosity = -1
  # Keys and values are float16 by default.
  params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
  params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
  server = xllamacpp.Server(params)
  try:
    yield LlamaCpp(server.listening_address)
  finally:
    del server
