"""GGUF files run by llama.cpp, an implementation of the whole model that shares nothing with this
one: PyPI's `xllamacpp`.
"""

import contextlib
import importlib.util
import json
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path


class LlamaCpp:
  """A file that is open. Its keys, values and scores are float32."""

  def __init__(self, address: str):
    self._address = address

  def encode(self, text: str) -> list[int]:
    """Ids of a text, without BOS; what spells a control piece is text."""
    asked = {'content': text, 'add_special': False, 'parse_special': False}
    return self._post('/tokenize', asked)['tokens']

  def decode(self, ids: Sequence[int]) -> str:
    return self._post('/detokenize', {'tokens': list(ids)})['content']

  def greedy(self, prompt: str | Sequence[int], tokens: int, bos_id: int, eos_id: int) -> list[int]:
    """What follows a text, which gets its BOS, or ids, as `moe.generate` has it:
    without BOS, which llama.cpp would draw, and with the end's token.
    """
    found = self._complete(prompt, tokens, logit_bias=[[bos_id, False]])
    return found['tokens'] + [eos_id] * (found['stop_type'] == 'eos')

  def time(self, ids: Sequence[int], tokens: int) -> None:
    """Reads the prompt, and says so many tokens after it, whatever they are."""
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
  """The file, served within this process. ImportError without xllamacpp."""
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
  # float16 otherwise.
  params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
  params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
  server = xllamacpp.Server(params)
  try:
    yield LlamaCpp(server.listening_address)
  finally:
    del server
