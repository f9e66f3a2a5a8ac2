"""Supervised fine-tuning: DeepSeekMoE Chat 16B, DeepSeek Chat 7B and LLaMA2 SFT 7B (Section 6.1,
Table 5).

  python -m launch.train --config=experiments/sft.py:deepseek_moe_16b_chat --workdir=DIR \\
    --config.train.init_from=BASE --config.data.sources='chats=/data/*.jsonl'

BASE is a run of the base model, trained or converted. The paper's data, 1.4M English and Chinese
examples, is not published. What the paper says about training:

  batch 1,024 examples, 8 epochs (10,937 steps), AdamW, constant rate 1e-5, sequences of 4K packed
  as densely as possible, no dropout

It does not state weight decay, betas, clipping and balance losses; they are the base model's here.
Nor does it state a warm-up (none here) or whether prompts are learnt (only replies here;
data.learn_from=all learns prompts, too).

A step holds whole sequences, and so a varying number of examples. data.batch_size is 1,024 examples
of 512 tokens on average; this length is our assumption. A run tells at its start how many
conversations a sequence of its data holds, and logs `examples` each step. For 1,024 on average, set
batch_size to 1,024 divided by the first number; steps vary by about 3% (docs/chat.md).

On a CPU take the same names from `proxy.py`. Expected (Table 5): the 16B on a par with both 7B
models at 40% of their compute.
"""

from ml_collections import ConfigDict

from experiments import scaling, variants

_SFT = {
  'data.format': 'chat',
  'data.chat_template': 'deepseek',
  'data.learn_from': 'assistant',
  'data.too_long': 'cut',
  'data.seq_len': 4096,
  'data.batch_size': 128,
  # 0: as many as the tokenizer of train.init_from has.
  'data.vocab_size': 0,
  'train.num_steps': 10_937,
  'train.microbatches': 2,  # one sequence a device on 64
  'optimizer.peak_lr': 1e-5,
  'optimizer.schedule': 'constant',
  'optimizer.warmup_steps': 0,
}

VARIANTS = {
  'deepseek_moe_16b_chat': scaling.VARIANTS['deepseek_moe_16b'] | _SFT,
  'deepseek_7b_chat': scaling.VARIANTS['deepseek_7b'] | _SFT,
  'llama2_7b_sft': scaling.VARIANTS['llama2_7b'] | _SFT,
}


def get_config(name: str = 'deepseek_moe_16b_chat') -> ConfigDict:
  return variants.build(__file__, VARIANTS, name)
