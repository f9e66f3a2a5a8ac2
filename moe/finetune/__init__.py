"""Fine-tuning a part of a model: which experts of which layer, `finetune.experts`, and the tree of
arrays that is trained, `finetune.trainable`.

The model's parameters stay a whole tree, which every program opens. A step takes the trained part
out of it (`split`), differentiates that alone, and puts it back; the optimizer has a state of that
part alone.
"""
