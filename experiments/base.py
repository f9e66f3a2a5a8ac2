"""Every configuration key, once, with its meaning and unit. The values are the paper's 2B DeepSeekMoE (Table 7).

Other files of this folder start from `get_config()` and change values; none adds a key. Opening one imports
ml_collections only. `moe/config.py` turns the result into frozen dataclasses, and says so when a value is wrong.
"""

from ml_collections import ConfigDict


def expert_width(d_model: int, relative_size: float, multiple_of: int = 8) -> int:
  """Hidden width of an expert `relative_size` times a standard FFN (8/3 · d_model), rounded up to a multiple.

  The paper rounds to 64 from 16B upward; its 2B widths (853.3, 3413.3) are no integers, and 8 keeps them within 0.4%.
  """
  return int(-(-(relative_size * 8 * d_model / 3 - 1e-6) // multiple_of)) * multiple_of


def get_config() -> ConfigDict:
  config = ConfigDict()
  config.name = 'base'  # shown in logs and reports

  config.model = model = ConfigDict()
  model.vocab_size = 8000  # rows of the embedding and of the output head
  model.num_layers = 9
  model.d_model = 1280
  model.num_heads = 10
  model.num_kv_heads = 10  # fewer than num_heads: grouped-query attention; must divide num_heads
  model.head_dim = 128
  model.num_dense_layers = 0  # the first so many layers have one dense FFN instead of experts
  model.d_ff = 0  # hidden width of those dense FFNs
  model.rope_base = 10_000.0  # base of the rotary frequencies
  model.norm_eps = 1e-6  # added to the mean square in RMSNorm
  model.init_std = 0.006  # every matrix starts from N(0, init_std²) (4.1.3)
  model.dtype = (
    'bfloat16'  # compute type: bfloat16 | float32; parameters, routing, norms and loss are float32
  )
  # What backward recomputes: none | full | dots (keep matmul outputs) | moe (recompute only MoE layers)
  model.remat = 'none'

  config.moe = moe = ConfigDict()
  moe.num_experts = 63  # routed experts, mN − K_s in the paper; 0: shared experts only
  moe.experts_per_token = 7  # routed experts a token, mK − K_s
  moe.num_shared_experts = 1  # K_s: experts that see every token, ungated
  moe.d_expert = expert_width(1280, 0.25)  # hidden width of one expert, routed or shared
  moe.router = 'softmax'  # softmax (top-k of the raw affinities, Eq. 7–11) | hash (fixed, by token id; gates are 1)
  moe.hash_seed = 0  # of the hash router's table
  moe.expert_balance_loss = 0.01  # α1 of Eq. 12
  moe.device_balance_loss = 0.0  # α2 of Eq. 15
  moe.device_groups = 1  # D of Eq. 15: groups of consecutive experts; independent of the mesh
  moe.balance_scope = (
    'sequence'  # the T of Eq. 13–14: sequence (each row of the batch, then averaged) | batch
  )
  moe.router_z_loss = 0.0  # weight of mean(logsumexp(router logits)²)

  config.ops = ops = ConfigDict()
  ops.implementation = (
    'auto'  # of every op in moe/ops: auto (by platform) | reference | xla | pallas_tpu | pallas_gpu
  )

  config.mesh = mesh = (
    ConfigDict()
  )  # devices along each axis; their product is the number of devices, -1 fills
  mesh.data = -1  # copies of the model
  mesh.fsdp = 1  # parameters and optimizer state are split over these (ZeRO), as batches are
  mesh.expert = (
    1  # routed experts live on different devices; all else treats this as one more data axis
  )
  mesh.tensor = 1  # heads, FFN widths and vocabulary are split over these
  mesh.stage = 1  # layers are split over these: a pipeline of train.microbatches
  mesh.zero = 3  # what fsdp splits: 3 parameters and optimizer state | 1 optimizer state only
  mesh.transport = (
    'auto'  # of tokens to experts: auto | ragged (TPU, GPU) | padded | all_gather (few devices)
  )
  mesh.receive_buffer = (
    1.5  # a device's room for tokens, over its share when balanced; more come in further rounds
  )

  config.data = data = ConfigDict()
  # 'builtin', or DOMAIN[@WEIGHT]=GLOB, several separated by ';' (.txt and code, .jsonl, .parquet; .gz too)
  data.sources = 'builtin'
  data.validation_sources = (
    ''  # the same for held-out text; '': hold out whole documents of `sources`
  )
  data.holdout = 0.02  # share of documents held out, chosen by a hash of their text (builtin: of their file's path)
  data.text_key = (
    'text'  # the field of a JSONL row, or column of a Parquet file, that holds the text
  )
  data.dir = (
    ''  # where prepared data lies or will be written, for several runs to share; '': WORKDIR/data
  )
  data.tokenizer = ''  # an existing SentencePiece .model; '': train one on the corpus
  data.vocab_size = 0  # pieces of the tokenizer; 0: model.vocab_size (which may be padded above it)
  data.tokenizer_sample_mb = (
    10.0  # MB (10⁶ bytes) of training text that a new tokenizer is trained on
  )
  data.seq_len = 2048  # tokens a sequence
  data.batch_size = 2048  # sequences a step, over all devices and microbatches
  data.reset_at_documents = True  # attention and rotary positions restart at document boundaries
  data.seed = 0  # of the order of documents, sequences and domains
  data.num_threads = 2  # threads that read and pack; never changes what a step sees
  data.prefetch = 8  # batches kept ready

  config.optimizer = optimizer = ConfigDict()
  optimizer.peak_lr = 1.08e-3
  optimizer.schedule = 'step_decay'  # after warm-up: step_decay | constant | cosine
  optimizer.warmup_steps = 2000  # linear, from 0
  optimizer.decay_at = (
    0.8,
    0.9,
  )  # step_decay: shares of num_steps at which the rate is multiplied by decay_factor
  optimizer.decay_factor = 0.316
  optimizer.final_lr_fraction = 0.1  # cosine: where it ends, as a share of peak_lr
  optimizer.b1 = 0.9
  optimizer.b2 = 0.95
  optimizer.eps = 1e-8
  optimizer.weight_decay = 0.1  # on matrices, not on norm scales
  optimizer.clip_norm = 1.0  # global gradient norm; 0: no clipping

  config.train = train = ConfigDict()
  train.num_steps = 25_000
  train.seed = 0  # of the initial parameters
  train.microbatches = (
    1  # gradient accumulation: parts that a batch is computed in; never changes the loss
  )
  train.log_every = 10  # steps between metrics, the only steps that wait for the device
  train.heatmap_every = 500  # steps between expert-load heatmaps in TensorBoard; 0: none
  train.loss_chunk = 2048  # tokens whose logits exist at once
  train.max_bad_steps = 10  # more non-finite steps than this in a row stop the run

  config.evaluation = evaluation = ConfigDict()
  evaluation.every_steps = 1000  # steps between held-out losses while training; 0: only at the end
  evaluation.batch_size = 16  # sequences at once
  evaluation.max_batches = 32  # batches a domain while training; launch.evaluate scores everything
  evaluation.context = (
    0.5  # share of a window that is context only when a document is longer than a sequence
  )

  config.checkpoint = checkpoint = ConfigDict()
  checkpoint.every_steps = 1000
  checkpoint.keep_last = 2
  checkpoint.keep_best = 1  # by held-out loss, which is then measured at every checkpoint; 0: none

  return config.lock()
