"""Fine-tuning a part of a model: which experts of which layer, `finetune.experts`, and the tree of
arrays that is trained, `finetune.trainable`.

The model's parameters stay one whole tree, which every program can open. A step takes the trained
part out of it (`split`), differentiates only that, and puts it back; the optimizer has state for
that part only.
"""
